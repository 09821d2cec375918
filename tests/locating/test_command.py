"""predict.py --answer_with boxes, run as it is run.

Run: pytest tests/locating/test_command.py
"""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_processor, tiny_talker

from sa2va_hf.commands.predict import main


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_talker().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    Image.fromarray(np.zeros((53, 71, 3), dtype=np.uint8)).save(folder / "picture.png")
    return folder


def run(given, output, *more):
    arguments = ["--model", str(given / "model"), "--image", str(given / "picture.png"), "--text", "the dog"]
    main([*arguments, "--output", str(output), "--device", "cpu", "--answer_with", "boxes", *more])


def test_an_answer_without_boxes_says_so(given, tmp_path, capsys):
    run(given, tmp_path)
    written = json.loads((tmp_path / "boxes.json").read_text())
    assert written["boxes"] == [] and len(written["problems"]) == 1
    assert f"not read: {written['problems'][0]}" in capsys.readouterr().out
    assert (tmp_path / "overlay.png").is_file()


def test_what_does_not_apply_is_refused(given, tmp_path):
    with pytest.raises(SystemExit, match="--answer_with boxes: --region, --answer and --video_mode do not apply"):
        run(given, tmp_path, "--answer", "Sure, [SEG].")
