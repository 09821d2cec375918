"""scripts/train_sam2.py as it is used: from a folder of frames and masks to a checkpoint that the sam2 package loads.

Run: pytest tests/scripts/test_train_sam2.py
"""

import json
import math
from pathlib import Path

import av
import forks
import pytest
import torch
import torch.nn.functional as F
import yaml
from clips import disc, draw, tiny_clip_model, write_davis
from PIL import Image
from safetensors.torch import load_file, save_file

from sa2va_hf import masks
from sa2va_hf.arguments import parse
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.sam2 import load
from sa2va_hf.data.clips.vos import to_square
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.model.tracking import follow_objects
from sa2va_hf.training.sam2.arguments import SAM2_ARGUMENTS
from sa2va_hf.training.sam2.build import build

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("sam[23]/*.yaml"))


@pytest.fixture
def config(tmp_path):
    """A run of 3 steps on two small videos, validated on a third."""
    for split, videos in (("train", ["a", "b"]), ("val", ["c"])):
        write_davis(tmp_path / split, videos)
        prepare("vos_folders", tmp_path / split, split, tmp_path / f"{split}_rows")
    model = tiny_clip_model()
    save_file(model.sam.state_dict(), tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    settings = {
        "model_name_or_path": str(tmp_path),
        "train_data": [{"path": str(tmp_path / "train_rows"), "repeats": 2}],
        "eval_data": [{"path": str(tmp_path / "val_rows")}],
        "num_frames": 3,
        "max_steps": 3,
        "num_correction_pt_per_frame": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "gradient_checkpointing": True,
        "resume_from_checkpoint": "auto",
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(config, *arguments, processes=1):
    return forks.run([ROOT / "scripts/train_sam2.py", config, *arguments], processes)


@pytest.mark.slow
def test_from_folders_to_a_file_of_the_sam2_package(config, tmp_path):
    done = train(config)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "run/eval_results.json").read_text())
    assert 0 <= scores["eval_J&F"] <= 1 and scores["eval_objects"] == 2
    assert (tmp_path / "run/checkpoint-2/trainer_state.json").is_file()
    convert(tmp_path / "run", tmp_path / "pt", "sam2")
    (file,) = (tmp_path / "pt").iterdir()
    state = torch.load(file, weights_only=True)
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert set(state) == {"model"} and set(state["model"]) == set(before)
    assert all(torch.equal(state["model"][name], after[name]) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)


def write_film(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(number, 2)[0], format="rgb24")))
        container.mux(stream.encode())


def write_sav(root, frames=13):
    """A video as mp4, and one as the frames that were taken from it; numbers are floats, as SA-V has them."""
    folder = root / "sav_train/sav_000"
    write_film(folder / "sav_000001.mp4", frames)
    (folder / "sav_000002").mkdir()
    for number in range(frames):
        Image.fromarray(draw(number, 2)[0]).save(folder / f"sav_000002/{number:05d}.jpg")
    masklet = [[masks.encode(disc(number, thing)) for thing in range(2)] for number in range(0, frames, 4)]
    sizes = {"video_frame_count": float(frames), "video_height": 48.0, "video_width": 64.0}
    for name in ("sav_000001", "sav_000002"):
        content = {"video_id": name, **sizes, "masklet": masklet, "masklet_num": 2}
        (folder / f"{name}_manual.json").write_text(json.dumps(content))


def write_pictures(root, pictures=4):
    """The same pictures as SA-1B and as COCO have them."""
    images, annotations = [], []
    for folder in ("sa1b/sa_000000", "coco/train2017", "coco/annotations"):
        (root / folder).mkdir(parents=True)
    for number in range(1, pictures + 1):
        picture = Image.fromarray(draw(number, 3)[0])
        size = {"width": 64, "height": 48}
        picture.save(root / f"sa1b/sa_000000/sa_{number}.jpg")
        picture.save(root / f"coco/train2017/{number:012d}.jpg")
        found = [
            {"id": 10 * number + thing, "segmentation": masks.encode(disc(number, thing)), "iscrowd": 0}
            for thing in range(3)
        ]
        image = {"image_id": number, "file_name": f"sa_{number}.jpg", **size}
        (root / f"sa1b/sa_000000/sa_{number}.json").write_text(json.dumps({"image": image, "annotations": found}))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", **size})
        annotations += [{**one, "image_id": number, "category_id": 1} for one in found]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (root / "coco/annotations/instances_train2017.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_videos_and_pictures_by_the_shipped_mixture(config, tmp_path):
    """configs/sam2/sav_sa1b.yaml but for paths and sizes, on SA-V (mp4 and frames), SA-1B, COCO and DAVIS from
    disk: a step is of one dataset, with that dataset's batch size, in bfloat16."""
    write_sav(tmp_path / "sav")
    write_pictures(tmp_path)
    sources = {"sav": ("sav", "sav"), "sa1b": ("sa1b", "sa1b"), "coco": ("coco_json", "coco")}
    for name, (source, root) in sources.items():
        prepare(source, tmp_path / root, "train", tmp_path / f"{name}_rows")
    parts = [
        {"path": str(tmp_path / "sav_rows"), "batch_size": 1},
        {"path": str(tmp_path / "train_rows"), "batch_size": 2, "num_frames": 2},
        {"path": str(tmp_path / "sa1b_rows"), "batch_size": 4, "num_frames": 1},
        {"path": str(tmp_path / "coco_rows"), "batch_size": 3},
    ]
    settings = {
        "model_name_or_path": tmp_path,
        "image_size": 128,
        "train_data": json.dumps(parts),
        "eval_data": str(tmp_path / "val_rows"),
        "num_frames": 3,
        "max_steps": 4,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": "true",
        "save_strategy": "no",
        "eval_strategy": "no",
        "do_eval": "true",
        "report_to": "none",
        "output_dir": tmp_path / "mixed",
    }
    arguments = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    trainer, _ = build([str(ROOT / "configs/sam2/sav_sa1b.yaml"), *arguments])
    seen, put_together = [], trainer.data_collator

    def watch(examples):
        seen.append([(len(example["images"]), example["sample_id"].split()[0]) for example in examples])
        return put_together(examples)

    trainer.data_collator = watch
    trainer.train()
    assert trainer.args.bf16 and trainer.model.checkpointing
    assert sorted((len(batch), batch[0][0]) for batch in seen) == [(1, 3), (2, 2), (3, 1), (4, 1)]
    films = {name for batch in seen for frames, name in batch if frames == 3}
    assert films <= {"sav_000001_manual", "sav_000002_manual"}
    assert {row["video"] is None for row in trainer.train_dataset.entries[0].rows} == {True, False}
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4 and all(math.isfinite(entry["loss"]) and entry["objects"] > 0 for entry in steps)
    scores = trainer.evaluate()
    assert 0 <= scores["eval_J&F"] <= 1 and scores["eval_objects"] == 2


@pytest.mark.slow
def test_the_sam2_package_loads_a_fine_tuned_model_and_draws_the_same_masks(config, tmp_path):
    """SAM 2.1 tiny at its true widths, trained for a step at 256 px; its own builder reads the file strictly."""
    from sam2.build_sam import build_sam2_video_predictor

    tiny = Sa2VAGroundingConfig(version="2.1", size="tiny")
    torch.manual_seed(0)
    torch.save({"model": build_sam2(tiny).state_dict()}, tmp_path / "sam2.1_hiera_tiny.pt")
    few = ["--max_steps", "1", "--num_frames", "2", "--eval_strategy", "no", "--eval_data", "[]"]
    done = train(config, "--model_name_or_path", str(tmp_path / "sam2.1_hiera_tiny.pt"), "--image_size", "256", *few)
    assert done.returncode == 0, done.stderr[-3000:]
    convert(tmp_path / "run", tmp_path / "pt", "sam2")
    file, side = tmp_path / "pt/sam2.1_hiera_tiny.pt", ["++model.image_size=256"]
    yaml_of_package = "configs/sam2.1/sam2.1_hiera_t.yaml"
    theirs = build_sam2_video_predictor(
        yaml_of_package, str(file), device="cpu", apply_postprocessing=False, hydra_overrides_extra=side
    )
    (tmp_path / "frames").mkdir()
    for number in range(3):
        picture, _ = draw(number, 2, width=256, height=256)
        Image.fromarray(picture).save(tmp_path / f"frames/{number:05d}.jpg", quality=95)
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[40:160, 60:200] = True
    session = theirs.init_state(str(tmp_path / "frames"))
    theirs.add_new_mask(session, 0, 1, mask)
    wanted = {number: logits[0, 0] for number, _, logits in theirs.propagate_in_video(session)}
    ours, _ = load(tmp_path / "run")

    def open_frame(number):
        with Image.open(tmp_path / f"frames/{number:05d}.jpg") as picture:
            return to_square(picture.convert("RGB"), 256)

    found = dict(follow_objects(ours.eval(), open_frame, 3, {1: {0: mask}}))
    for number, logits in wanted.items():
        full = F.interpolate(found[number][1][None, None], size=(256, 256), mode="bilinear", align_corners=False)[0, 0]
        assert torch.equal(full > 0, logits > 0) and torch.allclose(full, logits, atol=1e-3), number
    assert sorted(wanted) == [0, 1, 2] and (wanted[0] > 0).any() and wanted[1].std() > 0


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_two_accumulated_batches(config, tmp_path):
    """The same clips, prompts and denominators; what noise decides (clicks, dropout, variations) is turned off."""
    same = ["--prob_to_use_pt_input_for_train", "0", "--no_augment", "--drop_path", "0", "--memory_dropout", "0"]
    same += ["--eval_strategy", "no", "--max_steps", "2", "--eval_data", "[]"]
    one = train(config, *same, "--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr[-3000:]
    two = train(config, *same, "--output_dir", str(tmp_path / "two"), processes=2)
    assert (tmp_path / "two/train_results.json").is_file(), two.stderr[-3000:]
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-3)


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_data": [{"path": "x", "batchsize": 2}]}, "`train_data` entry 1: unknown key `batchsize`"),
        ({"train_data": [{"path": "x", "batch_size": 0}]}, "`batch_size` of x: expected at least 1, got 0"),
        ({"clicks": 3}, "unknown key `clicks`"),
        ({"train_mask_decoder": "some"}, "`train_mask_decoder` expected one of full, lora, none"),
        ({"reverse_probability": 2}, "`reverse_probability`: expected a number in"),
        ({"num_frames": 0}, "`num_frames`: expected at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, change, words):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "m", "train_data": "d", "output_dir": "o"} | change))
    with pytest.raises(ValueError, match=words):
        parse([str(path)], SAM2_ARGUMENTS)


def test_weights_that_are_not_there():
    with pytest.raises(ValueError, match=r"nowhere\.pt: no such file or folder"):
        load("nowhere.pt")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_can_be_read(config):
    *_, training = parse([str(config), "--bf16", "false"], SAM2_ARGUMENTS)
    assert training.options()["lr"] and training.metric_for_best_model == "J&F"
