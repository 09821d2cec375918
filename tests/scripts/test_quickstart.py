"""The first command of the README, shortened: the whole road must be walkable, and say what it found."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from PIL import Image
from served import ask_server_and_demo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quickstart(monkeypatch):
    """`main` of the script, in this process; the commands that it prints are forks."""

    def quickstart(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, arguments)])
        main = runpy.run_path(str(ROOT / "scripts/quickstart.py"))["main"]
        main.__globals__["run"] = run_script
        return main()

    return quickstart


def run_script(*words: object) -> None:
    """What comes after python, or after `accelerate launch` and its arguments."""
    script = next(number for number, word in enumerate(words) if str(word).endswith(".py"))
    done = forks.run(words[script:])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_smoke_walks_the_whole_road(tmp_path):
    """As it is typed: it starts `accelerate launch` on train.py with a YAML and arguments, and merge_lora.py."""
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
    message, talk = ask_server_and_demo(tmp_path / "model", tmp_path / "pictures.png", "Please segment the star.")
    assert message["content"] == talk.turns[0][1] and len(message["masks"]) == message["content"].count("[SEG]")


@pytest.mark.slow
def test_own_photos_and_masks(quickstart, tmp_path, capsys):
    """A folder of photos and masks as people have it; one of them cannot be used and is named."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for number in range(20):
        x, y = rng.integers(20, 80, 2)
        photo = rng.integers(90, 110, (120, 160, 3), dtype=np.uint8)
        mask = np.zeros((120, 160), np.uint8)
        mask[y : y + 30, x : x + 40] = 255
        photo[mask > 0] = (200, 40, 40)
        Image.fromarray(photo).save(tmp_path / f"mine/images/{number:02d}.jpg")
        Image.fromarray(mask).save(tmp_path / f"mine/masks/{number:02d}.png")
    (tmp_path / "mine/images/bad.jpg").write_bytes(b"no picture")
    Image.fromarray(mask).save(tmp_path / "mine/masks/bad.png")
    data = ["--data", tmp_path / "mine", "--phrase", "red patch"]
    with torch.no_grad():
        assert quickstart("--smoke", *data, "--output", tmp_path / "out") == 0
    assert "bad.jpg" in capsys.readouterr().out, "the photo that was left out is not named"
    assert (tmp_path / "out/pictures.png").exists()


def test_a_folder_of_another_layout_is_explained(quickstart, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert quickstart("--data", tmp_path / "mine", "--output", tmp_path / "out") == 1
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
