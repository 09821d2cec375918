"""A user's mistake ends a script with one line that says what to do."""

import runpy
import sys
from pathlib import Path

import pytest

from sa2va_hf.command_line import mistakes

SCRIPTS = Path(__file__).parents[2] / "scripts"

IMAGE = str(SCRIPTS.parent / "docs/images/shapes.png")
MODEL = ["--model", "nowhere/at/all", "--image", IMAGE, "--text", "t", "--output", "out"]
WRONG = {
    "train.py": (["--model_name_or_path", "m", "--train_data", "d", "--lora_rnk", "4"], "argument '--lora_rnk'"),
    "train_sam2.py": (["--train_data", "[{path: nowhere}]", "--output_dir", "out"], "`model_name_or_path` is missing"),
    "merge_lora.py": (["--checkpoint", "nowhere", "--output", "out"], "nowhere"),
    "predict.py": (MODEL, "nowhere/at/all"),
    "zero_to_fp32.py": (["nowhere", "out"], "nowhere"),
}


@pytest.mark.parametrize("script", WRONG)
def test_a_mistake_is_one_line_and_status_1(monkeypatch, tmp_path, script):
    arguments, named = WRONG[script]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SA2VA_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert str(stopped.value.code).startswith("error: ") and named in stopped.value.code
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_traceback_is_there_for_who_asks_and_for_our_own_faults(monkeypatch):
    with pytest.raises(KeyError), mistakes():
        raise KeyError("ours")
    monkeypatch.setenv("SA2VA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="theirs"), mistakes():
        raise ValueError("theirs")
