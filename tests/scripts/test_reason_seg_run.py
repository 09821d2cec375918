"""A root in ReasonSeg's form, fine-tuned on, evaluated, merged and read again.

Run: pytest -m slow tests/scripts/test_reason_seg_run.py
"""

import json

import pytest
import torch
import yaml
from test_reason_seg import TARGET, record, shape, write
from toy_run import tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.commands.train import main
from sa2va_hf.data.prepare.run import prepare

FORMS = {"phrases": 0.45, "explained": 0.45, "told": 0.1}


@pytest.fixture
def data(tmp_path):
    """Three training images with explanations, two validation images; the mixture file, and the validation folder."""
    root = tmp_path / "ReasonSeg"
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            asked = record(shape("ignore", 2, 2, 5, 5), TARGET, text=[f"what barks {number}", "the dog"])
            write(root, asked, f"{split}{number}", split=split)
    told = [{"image": f"train{number}.jpg", "query": "", "outputs": "Dogs bark."} for number in range(3)]
    (root / "explanatory").mkdir()
    (root / "explanatory/train.json").write_text(json.dumps(told))
    parts = []
    for form, weight in FORMS.items():
        prepare("reason_seg", root, "train", tmp_path / form, options={"forms": [form]})
        parts.append({"path": str(tmp_path / form), "weight": weight})
    prepare("reason_seg", root, "val", tmp_path / "val", options={"explain": False})
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"samples_per_epoch": 20, "sampling": "rates", "parts": parts}))
    return str(mixture), str(tmp_path / "val")


@pytest.mark.slow
def test_reason_seg_is_trained_evaluated_merged_and_reloaded(data, tmp_path, toy_runs):
    model = tiny_folder(toy_runs)
    settings = {"model_name_or_path": str(model), "train_data": data[0], "eval_data": data[1], "lora_rank": 4}
    settings |= {"eval_strategy": "steps", "eval_steps": 2}
    settings |= {"max_steps": 2, "save_steps": 2, "num_points": 0, "disable_tqdm": True, "learning_rate": 1e-3}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / "run")}))
    main([str(config)])
    scores = json.loads((tmp_path / "run/eval_results.json").read_text())
    alone = ["--eval_only", "true", "--output_dir", str(tmp_path / "alone")]
    main([str(config), *alone, "--resume_from_checkpoint", str(tmp_path / "run/checkpoint-2")])
    again = json.loads((tmp_path / "alone/eval_results.json").read_text())
    names = [name for name in scores if "per_second" not in name and name not in ("eval_runtime", "epoch")]
    assert {"eval_gIoU", "eval_cIoU", "eval_loss"} <= set(names) and scores["eval_masks"] == 4
    assert [again[name] for name in names] == pytest.approx([scores[name] for name in names], rel=1e-5)

    merged = merge(tmp_path / "run", tmp_path / "merged")
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged")
    Sa2VAProcessor.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(weight, merged.state_dict()[name]) for name, weight in loaded.state_dict().items())
    # what is trained next begins with these weights: a step of rate 0 leaves them as they are
    next_run = ["--model_name_or_path", str(tmp_path / "merged"), "--max_steps", "1", "--learning_rate", "0"]
    main([str(config), *next_run, "--output_dir", str(tmp_path / "next")])
    kept = merge(tmp_path / "next", tmp_path / "kept")
    assert all(torch.equal(weight, kept.state_dict()[name]) for name, weight in loaded.state_dict().items())
