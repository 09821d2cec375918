"""zero_to_fp32.py and merge_lora.py, one after the other as they are run: from shards to the live model's logits."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from toy_run import finished, logits

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_shards_become_the_live_model(monkeypatch, toy_runs, tmp_path, name):
    run = finished(toy_runs, name)
    steps = {
        "zero_to_fp32.py": [run / "checkpoint-4", tmp_path / "fp32"],
        "merge_lora.py": ["--checkpoint", tmp_path / "fp32", "--output", tmp_path / "merged"],
    }
    for script, arguments in steps.items():
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged")
    said = logits(model, Sa2VAProcessor.from_pretrained(tmp_path / "merged"))
    assert (said - torch.load(run / "logits.pt")).abs().max() < 1e-5
