"""search.py, run as it is run, with a model of random weights: what it writes, and what it refuses.

Run: pytest tests/scripts/test_search.py
"""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_processor, tiny_talker

from sa2va_hf.commands.search import main


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_talker().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 300)).save(folder / "picture.png")
    (folder / "text.png").write_text("no picture")
    return folder


def run(given, output, image="picture.png", target="dog", *more):
    arguments = ["--model", str(given / "model"), "--image", str(given / image), "--target", target]
    main([*arguments, "--output", str(output), "--device", "cpu", "--crop_size", "64", *more])


def test_what_is_written(given, tmp_path, capsys):
    how = ("--minimum_size", "160", "--minimum_size_scale", "10", "--no_contextual_cue", "--confidence_high", "1")
    run(given, tmp_path, "picture.png", "dog", *how, "--crops_at_once", "4", "--overlap", "0")
    trace = json.loads((tmp_path / "trace.json").read_text())
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(trace["visits"]) == 5 and trace["ended"] == "exhausted" and trace["calls"]["ask"] == 0
    assert result == {key: value for key, value in trace.items() if key not in ("visits", "queue")}
    assert Image.open(tmp_path / "overlay.png").size[0] > 400
    assert capsys.readouterr().out.startswith("dog: ")


@pytest.mark.parametrize(
    ("image", "target", "message"),
    [
        ("text.png", "dog", "text.png: cannot be read as a picture"),
        ("none.png", "dog", "none.png: cannot be read as a picture"),
        ("picture.png", " ", "--target: expected the name of what is searched, got an empty text"),
    ],
)
def test_what_is_refused(given, tmp_path, image, target, message):
    with pytest.raises(SystemExit, match=message):
        run(given, tmp_path, image, target)
    assert not list(tmp_path.iterdir())
