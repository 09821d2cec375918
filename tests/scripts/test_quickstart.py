"""The first command of the README, shortened: the whole road must be walkable, and say what it found."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_smoke_walks_the_whole_road(tmp_path):
    """As it is typed: it starts `accelerate launch` on train.py with a YAML and arguments, and merge_lora.py. What it
    leaves is served in test_user_path.py."""
    command = [sys.executable, ROOT / "scripts/quickstart.py", "--smoke", "--output", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters are trained" in done.stderr and "eval_cIoU" in done.stdout
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert set(figures) == {"before", "after", "constant mask"}
    assert all(0 <= value <= 1 for scores in figures.values() for value in scores.values())
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("held-out cIoU / gIoU over") and f"{figures['after']['cIoU']:.3f}" in last
    for name in ("pictures.png", "clip.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10, f"{name} shows nothing"


def test_a_folder_of_another_layout_is_explained(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    words = ["quickstart.py", "--data", tmp_path / "mine", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    assert runpy.run_path(str(ROOT / "scripts/quickstart.py"))["main"]() == 1
    assert "images/X.jpg" in capsys.readouterr().err


def test_the_export_of_a_tool_is_read_and_the_phrases_are_shown(tmp_path, capsys):
    """What was found is printed, to be confirmed; a phrase beside data that name their objects is refused."""
    read_own = runpy.run_path(str(ROOT / "scripts/quickstart.py"))["read_own"]
    mine = tmp_path / "mine"
    (mine / "images/default").mkdir(parents=True)
    (mine / "annotations").mkdir()
    for number in range(5):
        Image.new("RGB", (64, 48)).save(mine / f"images/default/{number}.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(5)]
    polygon = [4, 4, 20, 4, 20, 20]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "segmentation": [polygon]} for n in range(5)]
    annotations.append({"id": 9, "image_id": 0, "category_id": 2, "segmentation": []})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    content["categories"].append({"id": 2, "name": "cat"})
    (mine / "annotations/instances_default.json").write_text(json.dumps(content))
    read_own(mine, tmp_path / "out", None)
    shown = capsys.readouterr().out
    assert "as `coco_json`, told by annotations/instances_default.json" in shown
    assert "train: 4 pictures, phrases 'dog' (4)" in shown and "val: 1 pictures, phrases 'dog' (1)" in shown
    assert "so 'cat' is not asked for in this picture" in shown
    with pytest.raises(ValueError, match="--phrase: expected photos with mask pictures"):
        read_own(mine, tmp_path / "out", "the dog")
