"""The road of a run: prepared data -> scripts/train.py -> folders that the next commands read."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_run import PATIENCE, tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.arguments import CONFIG_NAME, parse
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.data.prepare import prepare

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
def config(prepared, tmp_path, tmp_path_factory):
    """A run of a few steps on the tiny model, as a YAML file."""

    def config(**values):
        settings = {
            "model_name_or_path": str(tiny_folder(str(tmp_path_factory.getbasetemp() / "toy_runs"))),
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
    """`main` of the script, in this process."""
    return runpy.run_path(str(ROOT / "scripts/train.py"), run_name="train")["main"]


def test_a_run_leaves_everything_that_the_next_command_needs(config, train, tmp_path):
    train([config()])
    run = tmp_path / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["best_model_checkpoint"]
    scores = json.loads((run / "eval_results.json").read_text())
    assert scores["eval_masks"] > 0 and 0 <= scores["eval_cIoU"] <= 1 and 0 <= scores["eval_gIoU"] <= 1
    assert parse([str(run / CONFIG_NAME)])[0].lora_rank == 4
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert list(run.rglob("events.out.tfevents*")), "TensorBoard's file"
    best, kept = (load_file(Path(f) / "adapter_model.safetensors") for f in (state["best_model_checkpoint"], run))
    assert all(torch.equal(best[name], weight) for name, weight in kept.items()), "the best one is the result"
    for folder in (run, run / "checkpoint-2"):
        merge(folder, tmp_path / "merged" / folder.name)
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged" / folder.name)
        Sa2VAProcessor.from_pretrained(tmp_path / "merged" / folder.name)


def test_a_folder_that_was_never_prepared_is_named(config, train):
    with pytest.raises(ValueError, match=r"nowhere: no prepared dataset; run scripts/prepare_data\.py"):
        train([config(train_data="nowhere")])


@pytest.mark.slow
def test_the_command_as_it_is_written_down(config, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(ROOT / "scripts/train.py"), config(), "--max_steps", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters are trained" in done.stderr and "eval_cIoU" in done.stdout
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
