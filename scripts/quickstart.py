"""The main job from end to end: prepare, fine-tune, reload, segment what was held out.

    python scripts/quickstart.py                     # a second drawn world, with words that shapes-tiny does not know
    python scripts/quickstart.py --data MY_FOLDER    # your photos and masks, about three minutes of training
    python scripts/quickstart.py --smoke             # all steps in about a minute

Every step is a command or a call that you can use alone; it is printed before it runs. Results: OUTPUT/pictures.png
(truth beside prediction, hits and misses marked), OUTPUT/clip.png, and the line of figures at the end.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights, here and in the commands it starts

import numpy as np
import torch
from datasets import disable_progress_bars, load_from_disk
from tqdm import tqdm

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.checkpoints.card import facts_of_run
from sa2va_hf.checkpoints.hub import export
from sa2va_hf.command_line import mistakes
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.prepare.manifest import Manifest
from sa2va_hf.data.prepare.run import PrepareError, prepare
from sa2va_hf.data.schema import from_row
from sa2va_hf.data.sources.recognise import recognise
from sa2va_hf.listings import LIMIT, listed
from sa2va_hf.quickstart.budget import enlarged, image_side, seconds_per_step, steps_in
from sa2va_hf.quickstart.photos import augmented
from sa2va_hf.quickstart.questions import Question, ask, constant_mask, questions, score, union, with_article
from sa2va_hf.quickstart.report import add_figures, explanation, last_line
from sa2va_hf.quickstart.sheets import clip_sheet, picture_sheet
from sa2va_hf.training.sa2va.build import build

ROOT = Path(__file__).resolve().parents[1]
START = time.time()
BUNDLED = "shapes-tiny"
COPIES = 800  # of the photos of --data, at most
SHOWN_PHOTOS = 32  # training photos that are asked about at the end


def say(text: str) -> None:
    print(f"\n[{time.time() - START:4.0f} s] {text}", flush=True)


def run(*words: object) -> None:
    words = [str(word) for word in words]
    print("    $ " + " ".join(words), flush=True)
    subprocess.run(words, check=True)


def draw_world(output: Path, smoke: bool) -> None:
    """The shifted world of `shapes`: colours, textures and nouns that the small model was not asked about; its vision
    tower has seen them."""
    scenes = {"world": "shifted", "min_objects": 1, "max_objects": 3, "kinds": ["attribute", "several"]}
    for split, count in (("train", 64 if smoke else 1600), ("val", 4 if smoke else 100)):
        with tqdm(desc=f"drawing {split}", total=count, unit=" images", mininterval=1) as bar:
            options = scenes | {"count": count}
            prepare("shapes", None, split, output / split, overwrite=True, options=options, progress=bar.update)
    clip = scenes | {"count": 1, "min_objects": 3, "clip_fraction": 1.0}
    prepare("shapes", None, "test", output / "clip", overwrite=True, options=clip)


def read_own(folder: Path, output: Path, phrase: str | None) -> None:
    """Prepare the user's photos and masks; without a validation split, one photo in five is held out.

    Raises:
        ValueError: the folder has none of the forms, or a phrase is given for data that name their objects.
    """
    form = recognise(folder)
    print(f"    reading {folder} as `{form.source}`, told by {form.file}")
    if phrase and form.source != "png_masks":
        raise ValueError(
            f"--phrase: expected photos with mask pictures, got `{form.source}`, whose labels name the objects: "
            "remove it"
        )
    for split in ("train", "val"):
        options = form.options(split, val_fraction=0.2) | ({"phrase": phrase} if phrase else {})
        made = prepare(form.source, folder, split, output / split, overwrite=True, skip_bad=True, options=options)
        tell_what_was_read(split, made, output / split)


def tell_what_was_read(split: str, made: Manifest, folder: Path) -> None:
    """Print the phrases that were found, for the user to check, and the records that were skipped."""
    found = Counter(one["text"] for row in load_from_disk(str(folder))["expressions"] for one in row)
    phrases = listed(f"{text!r} ({count})" for text, count in found.most_common())
    print(f"    {split}: {made.samples} pictures, phrases {phrases}")
    for reject in made.rejects[:LIMIT]:
        print(f"    skipped: {reject.id}: {with_our_options(reject.reason)}")
    if len(made.rejects) > LIMIT:
        print(f"    ... {len(made.rejects)} were skipped in total; all are in {folder}/manifest.json")


def with_our_options(text: str) -> str:
    """A message of the sources, which are told the phrase by an option of `prepare_data.py`."""
    return text.replace("--option phrase=", "--phrase ")


def answers(predictor: Sa2VAPredictor, asked: list[Question], title: str) -> list[np.ndarray]:
    with tqdm(desc=f"asking, {title}", total=len(asked), mininterval=1) as bar:
        return ask(predictor, asked, bar.update)


def write_clip_sheet(predictor: Sa2VAPredictor, folder: Path, path: Path) -> None:
    sample = from_row(load_from_disk(str(folder))[0])
    frames = load_frames(sample, list(range(sample.num_frames)))
    expression = next(e for e in sample.expressions if e.targets)
    prediction = predictor(video=frames, text=f"Please segment {with_article(expression.text)}.", max_new_tokens=16)
    truth = np.stack([union(sample, expression.targets, frame) for frame in range(sample.num_frames)])
    masks = prediction.masks.any(0) if len(prediction.masks) else np.zeros_like(truth)
    clip_sheet(frames, truth, masks, expression.text).save(path)


def launch(config: str, output: Path, *arguments: object) -> None:
    """train.py under `accelerate launch`, with one process."""
    shutil.rmtree(output / "run", ignore_errors=True)
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", 1]
    words += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    run(*words, ROOT / "scripts/train.py", ROOT / "configs" / config, "--output_dir", output / "run", *arguments)


def learn_world(output: Path, model: str, smoke: bool, extra: list[str]) -> Path:
    """Fine-tune with LoRA on the synthetic images, and merge the adapter into a model folder."""
    data = ["--train_data", output / "train", "--eval_data", output / "val", "--model_name_or_path", model]
    short = ["--max_steps", 4] if smoke else []
    launch("quickstart.yaml", output, *data, *short, *extra)
    say("4/5 merging the adapter into the weights")
    merged = output / "model"
    run(sys.executable, ROOT / "scripts/merge_lora.py", "--checkpoint", output / "run", "--output", merged)
    return merged


def learn_photos(output: Path, model: str, minutes: float, most: int, extra: list[str]) -> Path:
    """Train every part of the model on at most `most` augmented copies of a few photos, for a number of minutes."""
    base = model
    if model == BUNDLED:
        side = image_side(minutes, 128)
        model = str(enlarged(model, side, output / "start"))
    copies = augmented(output / "train", output / "copies", most)
    data = ["--train_data", output / "copies", "--eval_data", output / "train", "--model_name_or_path", model]
    config = ROOT / "configs/quickstart_photos.yaml"
    trainer, _ = build([str(word) for word in (config, "--output_dir", output / "run", *data, *extra)])
    seconds = seconds_per_step(trainer)
    steps, batch = steps_in(minutes, seconds), trainer.args.per_device_train_batch_size
    del trainer
    print(f"    {minutes:g} minutes at {seconds:.2f} s a step: {steps} steps of {batch} out of {copies} copies")
    schedule = ["--max_steps", steps, "--eval_steps", max(5, steps // 6)]
    launch("quickstart_photos.yaml", output, *data, *schedule, *extra)
    say("4/5 nothing to merge: every part was trained, so the weights are whole")
    finished = output / "model"  # as after merging: the model alone, without checkpoints and records of the run
    shutil.rmtree(finished, ignore_errors=True)
    shutil.copytree(
        output / "run", finished, ignore=shutil.ignore_patterns("checkpoint-*", "*_results.json", "train*")
    )
    # Without the run's own scores: it was evaluated on the photos that it was trained on.
    export(finished, replace(facts_of_run(output / "run", base), scores=[]))
    return finished


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with your photos and masks, or the export of a labelling tool"
    )
    parser.add_argument("--phrase", help="what your mask pictures show, whatever their names say")
    parser.add_argument("--minutes", type=float, default=3.0, help="with --data: how long to train; default: 3")
    parser.add_argument("--model", default=BUNDLED, help="what to start from; default: shapes-tiny")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/quickstart")
    parser.add_argument("--smoke", action="store_true", help="a minute: too short to learn")
    arguments, extra = parser.parse_known_args()
    output, own = arguments.output, bool(arguments.data)
    say("1/5 preparing data: every record is checked, masks become RLE in Arrow files")
    try:
        if own:
            read_own(arguments.data, output, arguments.phrase)
        else:
            draw_world(output, arguments.smoke)
    except (PrepareError, ValueError) as error:
        print(with_our_options(str(error)), file=sys.stderr)
        return 1
    held_out = questions(output / "val")
    say(f"2/5 {arguments.model} answers questions about the held-out images, before any training")
    before = answers(Sa2VAPredictor.from_pretrained(arguments.model), held_out, "before")
    if own:
        say("3/5 fine-tuning: every part of the model, on repeated, varied photos")
        minutes, most = (0.1, 48) if arguments.smoke else (arguments.minutes, COPIES)
        model = learn_photos(output, arguments.model, minutes, most, extra)
    else:
        say("3/5 fine-tuning: LoRA on the LLM, with SAM 2's mask decoder")
        model = learn_world(output, arguments.model, arguments.smoke, extra)
    say("5/5 loading the result with from_pretrained, and the same questions again")
    predictor = Sa2VAPredictor.from_pretrained(model)
    after = answers(predictor, held_out, "after")
    trained = questions(output / "train", 200)
    figures = {"before": score(before, held_out), "after": score(after, held_out)}
    figures["constant mask"] = score(constant_mask(trained, held_out), held_out)
    if own:
        shown = questions(output / "train", SHOWN_PHOTOS)
        figures["training photos"] = score(answers(predictor, shown, "training photos"), shown)
    picture_sheet(held_out, {"before": before, "after": after}).save(output / "pictures.png")
    if not own:
        write_clip_sheet(predictor, output / "clip", output / "clip.png")
    (output / "metrics.json").write_text(json.dumps(figures, indent=2))
    add_figures(model / "README.md", figures, len(held_out))
    say(f"done; look at {output}/pictures.png" + ("" if own else f" and {output}/clip.png"))
    if own:
        print(explanation(figures, arguments.model))
    print(last_line(figures, len(held_out)))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    torch.set_grad_enabled(False)
    disable_progress_bars()  # those of `datasets`: the script has its own
    with mistakes():
        sys.exit(main())
