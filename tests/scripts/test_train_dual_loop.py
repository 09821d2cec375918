"""scripts/train_dual_loop.py as it is used: prepared folders and a YAML file -> an adapter, and scores."""

import json
from pathlib import Path

import pytest
import yaml
from toy_run import tiny_folder

from sa2va_hf.checkpoints.merge import check_adapter, find_base
from sa2va_hf.commands.train_dual_loop import main
from sa2va_hf.data.prepare.run import prepare

CONFIG = Path(__file__).parents[2] / "configs/dual_loop_tiny.yaml"


@pytest.fixture(scope="module")
def model(toy_runs):
    return tiny_folder(toy_runs)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving") / "clips"
    moving = {"count": 3, "clip_fraction": 1.0, "num_frames": 4, "max_objects": 2}
    prepare("shapes", None, "train", folder, options=moving)
    return str(folder)


def test_the_tiny_config_runs(model, clips, tmp_path):
    """As it stands, but for two steps, with a random model and fewer clips."""
    chosen = {"model_name_or_path": str(model), "train_data": clips, "output_dir": str(tmp_path)}
    chosen |= {"max_steps": "2", "save_steps": "2", "logging_steps": "1", "per_device_train_batch_size": "2"}
    main([str(CONFIG), *(word for name, value in chosen.items() for word in (f"--{name}", value))])
    state = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loops" in entry]
    assert len(logged) == 2 and all(0 < entry["caption_length"] <= 24 for entry in logged)
    assert (tmp_path / "checkpoint-2/ema.safetensors").is_file()
    check_adapter(tmp_path)


def test_a_run_from_prepared_folders(model, clips, tmp_path, monkeypatch):
    monkeypatch.delenv("SA2VA_TRACEBACK", raising=False)
    prepare("shapes", None, "train", tmp_path / "captions", options={"count": 3, "tasks": ["region_caption"]})
    settings = {
        "model_name_or_path": str(model),
        "train_data": [{"path": clips}, {"path": "gone"}],
        "caption_data": str(tmp_path / "captions"),
        "supervised_data": clips,
        "eval_data": clips,
        "use_captions": False,
        "caption_length": 4,
        "top_k": 8,
        "num_frames": 2,
        "lora_rank": 4,
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match="gone: no prepared dataset"):
        main([str(config)])
    main([str(config), "--allow_missing", "gone"])
    scores = json.loads((tmp_path / "run/eval_results.json").read_text())
    assert scores["eval_pairs"] == 3 and 0 <= scores["eval_cross_cIoU"] <= 1
    check_adapter(tmp_path / "run")
    assert find_base(tmp_path / "run") == str(model)
    with pytest.raises(SystemExit, match="`gradient_surgery`: not with FSDP"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setattr("sa2va_hf.arguments.base.BaseTrainingArguments._shard_on_cpus", lambda self: None)
        main([str(config), "--allow_missing", "gone", "--gradient_surgery", "true"])
