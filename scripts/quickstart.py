"""The main job from end to end: prepare, fine-tune with LoRA, merge, reload, segment what was held out.

    python scripts/quickstart.py                     # a drawn world that shapes-tiny has not seen
    python scripts/quickstart.py --data MY_FOLDER    # your photos and masks
    python scripts/quickstart.py --smoke             # the whole road in about a minute

Every step is a command or a call that you can use alone; it is printed before it runs. Results: OUTPUT/pictures.png
(before, after, truth), OUTPUT/clip.png, and the line of figures at the end.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from PIL import Image
from tqdm import tqdm

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.prepare.manifest import Manifest
from sa2va_hf.data.prepare.run import PrepareError, prepare
from sa2va_hf.data.schema import Sample, from_row
from sa2va_hf.data.sources.recognise import recognise
from sa2va_hf.drawing import contact_sheet, overlay
from sa2va_hf.evaluation.metrics import CumulativeIoU
from sa2va_hf.listings import LIMIT, listed
from sa2va_hf.masks import decode

ROOT = Path(__file__).resolve().parents[1]
START = time.time()
PER_PICTURE = 3  # expressions asked about each held-out picture


@dataclass
class Question:
    """One thing to segment in one held-out picture."""

    picture: Image.Image
    phrase: str
    target: np.ndarray  # bool (H, W)


def say(text: str) -> None:
    print(f"\n[{time.time() - START:4.0f} s] {text}", flush=True)


def run(*words: object) -> None:
    words = [str(word) for word in words]
    print("    $ " + " ".join(words), flush=True)
    subprocess.run(words, check=True)


def draw_world(output: Path, smoke: bool) -> None:
    """The shifted world of `shapes`: other colours, textures and nouns than the small model was trained on."""
    scenes = {"world": "shifted", "min_objects": 1, "max_objects": 3, "kinds": ["attribute", "several"]}
    for split, count in (("train", 64 if smoke else 1600), ("val", 8 if smoke else 100)):
        with tqdm(desc=f"drawing {split}", unit=" pictures", mininterval=1) as bar:
            options = scenes | {"count": count}
            prepare("shapes", None, split, output / split, overwrite=True, options=options, progress=bar.update)
    clip = scenes | {"count": 1, "min_objects": 3, "clip_fraction": 1.0}
    prepare("shapes", None, "test", output / "clip", overwrite=True, options=clip)


def read_own(folder: Path, output: Path, phrase: str | None) -> None:
    """The user's own photos and masks, in any form that is known; without a validation split one in five is held out.

    Raises:
        ValueError: the folder has none of the forms, or a phrase is given for data that name their objects.
    """
    form = recognise(folder)
    print(f"    reading {folder} as `{form.source}`, told by {form.file}")
    if phrase and form.source != "png_masks":
        raise ValueError(f"--phrase is for photos with mask pictures; the labels of {form.file} say what is what")
    for split in ("train", "val"):
        options = form.options(split, val_fraction=0.2) | ({"phrase": phrase} if phrase else {})
        made = prepare(form.source, folder, split, output / split, overwrite=True, skip_bad=True, options=options)
        tell_what_was_read(split, made, output / split)


def tell_what_was_read(split: str, made: Manifest, folder: Path) -> None:
    """The phrases that were found, to be confirmed, and what had to be skipped."""
    found = Counter(one["text"] for row in load_from_disk(str(folder))["expressions"] for one in row)
    phrases = listed(f"{text!r} ({count})" for text, count in found.most_common())
    print(f"    {split}: {made.samples} pictures, phrases {phrases}")
    for reject in made.rejects[:LIMIT]:
        print(f"    skipped: {reject.id}: {reject.reason}")
    if len(made.rejects) > LIMIT:
        print(f"    ... {len(made.rejects)} were skipped in total; all are in {folder}/manifest.json")


def union(sample: Sample, targets: list[int], frame: int = 0) -> np.ndarray:
    masks = [sample.objects[target].masks[frame] for target in targets]
    return np.any([decode(mask) for mask in masks if mask is not None], axis=0)


def questions(folder: Path, pictures: int | None = None) -> list[Question]:
    """About all pictures of a prepared folder, or the first so many."""
    found = []
    rows = load_from_disk(str(folder))
    for row in rows if pictures is None else rows.select(range(min(pictures, len(rows)))):
        sample = from_row(row)
        picture = load_frames(sample, [0])[0]
        for expression in [e for e in sample.expressions if e.targets][:PER_PICTURE]:
            found.append(Question(picture, expression.text, union(sample, expression.targets)))
    return found


def ask(predictor: Sa2VAPredictor, asked: list[Question], title: str) -> list[np.ndarray]:
    """One mask per question; an answer without [SEG] is an empty mask."""
    answers = []
    for start in tqdm(range(0, len(asked), 16), desc=f"asking {title}", mininterval=1):
        batch = asked[start : start + 16]
        texts = [f"Please segment {with_article(question.phrase)} in this image." for question in batch]
        predictions = predictor(image=[question.picture for question in batch], text=texts, max_new_tokens=16)
        for question, prediction in zip(batch, predictions, strict=True):
            empty = np.zeros_like(question.target)
            answers.append(prediction.masks.any(0)[0] if len(prediction.masks) else empty)
    return answers


def with_article(phrase: str) -> str:
    return phrase if phrase.split()[0].lower() in ("the", "all", "a", "an", "every") else f"the {phrase}"


def score(answers: list[np.ndarray], asked: list[Question]) -> tuple[float, float]:
    """cIoU and gIoU."""
    total = CumulativeIoU()
    for answer, question in zip(answers, asked, strict=True):
        total.add(answer, question.target)
    return total.ciou(), total.giou()


def constant_mask(train: list[Question], asked: list[Question]) -> list[np.ndarray]:
    """What can be had without looking: the mean training mask, cut where that is best on the training pictures."""

    def resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize(shape[::-1]))

    mean = np.mean([resize(question.target, (64, 64)) for question in train], axis=0)
    cuts = np.quantile(mean, np.linspace(0, 0.98, 50))
    best = max(cuts, key=lambda cut: score([resize(mean, q.target.shape) >= cut for q in train], train)[0])
    return [resize(mean, question.target.shape) >= best for question in asked]


def picture_sheet(asked: list[Question], before: list[np.ndarray], after: list[np.ndarray]) -> Image.Image:
    """Rows of before, after and truth for a spread of held-out questions."""
    chosen = np.unique(np.linspace(0, len(asked) - 1, 6).astype(int))
    tiles, captions = [], []
    for i in chosen:
        for name, mask in (("before", before[i]), ("after", after[i]), ("truth", asked[i].target)):
            tiles.append(overlay(asked[i].picture, [mask]))
            captions.append(f"{name}: {asked[i].phrase}")
    return contact_sheet(tiles, columns=6, captions=captions)


def clip_sheet(predictor: Sa2VAPredictor, folder: Path) -> Image.Image:
    sample = from_row(load_from_disk(str(folder))[0])
    frames = load_frames(sample, list(range(sample.num_frames)))
    expression = next(e for e in sample.expressions if e.targets)
    prediction = predictor(video=frames, text=f"Please segment {with_article(expression.text)}.", max_new_tokens=16)
    masks = prediction.masks if len(prediction.masks) else np.zeros((1, len(frames), *frames[0].size[::-1]), bool)
    tiles = [overlay(frame, list(masks[:, number])) for number, frame in enumerate(frames)]
    return contact_sheet(tiles, columns=len(tiles), captions=[f"{expression.text} {i}" for i in range(len(tiles))])


def fine_tune(output: Path, smoke: bool, extra: list[str]) -> Path:
    """LoRA on the prepared pictures under `accelerate launch`, then one plain model folder."""
    shutil.rmtree(output / "run", ignore_errors=True)
    data = ["--train_data", output / "train", "--eval_data", output / "val", "--output_dir", output / "run"]
    short = ["--max_steps", 4, "--eval_strategy", "no", "--load_best_model_at_end", "false"] if smoke else []
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", 1]
    launch += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    run(*launch, ROOT / "scripts/train.py", ROOT / "configs/quickstart.yaml", *data, *short, *extra)
    merged = output / "model"
    run(sys.executable, ROOT / "scripts/merge_lora.py", "--checkpoint", output / "run", "--output", merged)
    return merged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with your photos and masks, or the export of a labelling tool"
    )
    parser.add_argument("--phrase", help="what your mask pictures show, whatever their names say")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/quickstart")
    parser.add_argument("--smoke", action="store_true", help="a minute: too short to learn")
    arguments, extra = parser.parse_known_args()
    output = arguments.output
    say("1/5 preparing data: every record checked, masks as RLE in Arrow")
    try:
        if arguments.data:
            read_own(arguments.data, output, arguments.phrase)
        else:
            draw_world(output, arguments.smoke)
    except (PrepareError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    asked = questions(output / "val")
    say("2/5 shapes-tiny before fine-tuning")
    before = ask(Sa2VAPredictor.from_pretrained("shapes-tiny"), asked, "before")
    say("3/5 LoRA fine-tuning, 4/5 merging")
    merged = fine_tune(output, arguments.smoke, extra)
    say("5/5 from_pretrained, and the same questions again")
    predictor = Sa2VAPredictor.from_pretrained(merged)
    after = ask(predictor, asked, "after")
    picture_sheet(asked, before, after).save(output / "pictures.png")
    if (output / "clip").exists() and not arguments.data:
        clip_sheet(predictor, output / "clip").save(output / "clip.png")
    constant = constant_mask(questions(output / "train", pictures=200), asked)
    figures = {
        name: dict(zip(("cIoU", "gIoU"), score(masks, asked), strict=True))
        for name, masks in (("before", before), ("after", after), ("constant mask", constant))
    }
    (output / "metrics.json").write_text(json.dumps(figures, indent=2))
    say(f"done; look at {output}/pictures.png" + ("" if arguments.data else f" and {output}/clip.png"))
    line = ", ".join(f"{name} {f['cIoU']:.3f} / {f['gIoU']:.3f}" for name, f in figures.items())
    print(f"held-out cIoU / gIoU over {len(asked)} expressions: {line}")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    torch.set_grad_enabled(False)
    sys.exit(main())
