"""The road of a run: prepared data -> scripts/train.py -> folders that the next commands read."""

import json
import signal
import sys
import time
from pathlib import Path

import forks
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from toy_run import tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.arguments import CONFIG_NAME, parse
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.commands.train import main
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import FEATURES, Sample, Turn, to_row
from sa2va_hf.mixtures import MixtureEntry
from sa2va_hf.training.mixture import open_entry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Drawn pictures and clips, prepared: train and val folders."""
    folder = tmp_path_factory.mktemp("prepared")
    for split, count in (("train", 24), ("val", 8)):
        options = {"count": count, "clip_fraction": 0.25, "num_frames": 4, "max_objects": 2}
        prepare("shapes", None, split, folder / split, options=options)
    return folder


@pytest.fixture
def config(prepared, tmp_path, toy_runs):
    """A run of a few steps on the tiny model, as a YAML file."""

    def config(**values):
        settings = {
            "model_name_or_path": str(tiny_folder(toy_runs)),
            "train_data": [{"path": str(prepared / "train"), "repeats": 1.5}],
            "eval_data": str(prepared / "val"),
            "eval_samples": 4,
            "num_frames": 2,
            "lora_rank": 4,
            "max_steps": 4,
            "per_device_train_batch_size": 3,
            "logging_steps": 1,
            "output_dir": str(tmp_path / "run"),
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "load_best_model_at_end": True,
            "disable_tqdm": True,
            "report_to": "tensorboard",
            "dataloader_pin_memory": False,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(settings | values))
        return str(path)

    return config


@pytest.fixture(scope="module")
def train():
    """`main` of the command, in this process."""
    return main


def test_a_run_leaves_everything_that_the_next_command_needs(config, train, tmp_path):
    train([config()])
    run = tmp_path / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["best_model_checkpoint"]
    scores = json.loads((run / "eval_results.json").read_text())
    assert scores["eval_masks"] > 0 and 0 <= scores["eval_cIoU"] <= 1 and 0 <= scores["eval_gIoU"] <= 1
    assert parse([str(run / CONFIG_NAME)])[0].lora_rank == 4
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    best, kept = (load_file(Path(f) / "adapter_model.safetensors") for f in (state["best_model_checkpoint"], run))
    assert all(torch.equal(best[name], weight) for name, weight in kept.items()), "the best one is the result"
    for folder in (run, run / "checkpoint-2"):
        merge(folder, tmp_path / "merged" / folder.name)
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged" / folder.name)
        Sa2VAProcessor.from_pretrained(tmp_path / "merged" / folder.name)


def test_tensorboard_gets_the_loss_its_parts_and_the_scores(config, train, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train([config(max_steps=2, save_strategy="no", load_best_model_at_end=False)])
    folder = min((tmp_path / "run").rglob("events.out.tfevents*")).parent  # a new file for the evaluation at the end
    drawn = accumulator.EventAccumulator(str(folder)).Reload()
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    for tag, key in (("train/loss", "loss"), ("train/lm_loss", "lm_loss"), ("eval/cIoU", "eval_cIoU")):
        logged = [(entry["step"], entry[key]) for entry in history if key in entry]
        points = [(point.step, point.value) for point in drawn.Scalars(tag)]
        assert points[: len(logged)] == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged], tag
    assert {"train/mask_loss", "train/dice_loss", "train/padding_efficiency", "eval/gIoU"} <= set(
        drawn.Tags()["scalars"]
    )


def test_a_run_in_which_nothing_fits_names_a_sample_and_its_length(config, train):
    """Nothing is cut off behind max_length, where the [SEG] is."""
    with pytest.raises(SystemExit, match=r"the dataset is empty: .*shortest .* tokens, max_length is 20"):
        train([config(max_length=20)])


def test_a_folder_that_was_never_prepared_is_named(config, train):
    with pytest.raises(SystemExit, match=r"nowhere: no prepared dataset; run scripts/prepare_data\.py"):
        train([config(train_data="nowhere")])


def test_evaluation_alone_gives_the_scores_of_the_run(config, train, tmp_path):
    train([config(max_steps=2, save_steps=2, load_best_model_at_end=False)])
    scores = json.loads((tmp_path / "run/eval_results.json").read_text())
    last = str(tmp_path / "run/checkpoint-2")
    alone = ["--eval_only", "true", "--output_dir", str(tmp_path / "alone"), "--resume_from_checkpoint", last]
    train([config(train_data="nowhere"), *alone])
    again = json.loads((tmp_path / "alone/eval_results.json").read_text())
    names = [name for name in scores if "per_second" not in name and name not in ("eval_runtime", "epoch")]
    assert "eval_cIoU" in names and [again[name] for name in names] == pytest.approx(
        [scores[name] for name in names], rel=1e-5
    )
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["eval_results.json"]
    with pytest.raises(SystemExit, match="`eval_only`: expected `eval_data`"):
        train([config(eval_data=None, eval_strategy="no", load_best_model_at_end=False), *alone])


def test_evaluation_data_without_masks_are_scored_by_the_loss(config, train, tmp_path):
    """`metric_for_best_model` is not given: its default is a score of masks."""
    rows = [Sample(f"t{n}", "question", turns=[Turn("What is this?", "It is red.")]) for n in range(4)]
    folder = tmp_path / "text"
    Dataset.from_list([to_row(row) for row in rows], features=FEATURES).save_to_disk(str(folder))
    train([config(max_steps=2, eval_data=str(folder), save_steps=2)])
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(state["log_history"][-1].get("eval_loss", state["best_metric"]))
    assert state["best_model_checkpoint"].endswith("checkpoint-2")


def test_an_entry_may_lie_on_the_hub(prepared, monkeypatch):
    rows = open_entry(MixtureEntry(str(prepared / "train")))
    asked = []
    module = sys.modules["sa2va_hf.data.sources.prepared"]  # the package's attribute of this name is the source
    monkeypatch.setattr(module, "load_dataset", lambda place, **how: asked.append((place, how)) or rows)
    assert open_entry(MixtureEntry("hf://datasets/me/mine", 2.0, split="val")) is rows
    assert asked == [("me/mine", {"split": "val", "revision": None})]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "status"), [({"dataloader_persistent_workers": True}, 0), ({"learning_rate": 1e30}, 1)]
)
def test_a_run_with_loading_processes_ends_with_its_status(config, tmp_path, values, status):
    """Its process ends; the error of one that fails after its first step is one line."""
    values |= {"dataloader_num_workers": 1, "warmup_steps": 0, "eval_strategy": "no", "load_best_model_at_end": False}
    done = forks.run([ROOT / "scripts/train.py", config(**values)])
    assert done.returncode == status, done.stderr[-3000:]
    if status:
        assert done.stderr.strip().splitlines()[-1].startswith("error: step ") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_kill_9_in_mid_epoch_and_the_same_command_again(config, tmp_path):
    """The run is killed from outside, its workers with it, and goes on to the losses it would have had."""
    values = {"save_steps": 3, "max_steps": 12, "per_device_train_batch_size": 2, "dataloader_num_workers": 1}
    values |= {"eval_strategy": "no", "load_best_model_at_end": False, "resume_from_checkpoint": "auto"}
    command = [ROOT / "scripts/train.py", config(**values), "--output_dir"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert forks.run([*command, whole]).returncode == 0
    killed = forks.start([*command, part], tmp_path / "out.txt", tmp_path / "err.txt")
    patience = time.monotonic() + forks.PATIENCE
    while killed.exitcode is None and not (part / "checkpoint-3/trainer_state.json").is_file():
        assert time.monotonic() < patience, "no checkpoint"
        time.sleep(0.02)
    forks.kill(killed)
    assert killed.exitcode == -signal.SIGKILL and not (part / "trainer_state.json").exists()
    assert forks.run([*command, part]).returncode == 0
    one, other = (json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, part))
    names = ("step", "epoch", "loss", "lm_loss", "mask_loss", "dice_loss", "masks", "padding_efficiency", "grad_norm")
    assert len([entry for entry in one if "loss" in entry]) == 12
    for entry, again in zip(one[:12], other[:12], strict=True):
        assert [entry.get(name) for name in names] == [again.get(name) for name in names]
