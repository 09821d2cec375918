"""A new user's path by README: five photos with masks -> quickstart -> Hub -> a process without this repository;
and the model behind the server and on the demo's page."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from served import ask_server_and_demo
from stub_hub import environment, stub_hub

ROOT = Path(__file__).resolve().parents[2]
RELOAD = """
import sys
sys.modules["sa2va_hf"] = None
import re
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("user/lesions", "README.md")).read()
exec(re.findall(r"```python\\n(.*?)```", card, re.DOTALL)[1])
print("MODEL", type(model).__module__)
"""


def photos(folder):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        image, mask = Image.new("RGB", (128, 96), (200, 200, 200)), Image.new("L", (128, 96))
        box = (10 + 8 * number, 20, 50 + 8 * number, 60)
        ImageDraw.Draw(image).ellipse(box, fill=(220, 30, 30))
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        image.save(folder / "images" / f"{number}.jpg")
        mask.save(folder / "masks" / f"{number}.png")
    (folder / "images/broken.jpg").write_bytes(b"no picture")
    mask.save(folder / "masks/broken.png")


def run(command, folder, **variables):
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=os.environ | variables, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_from_five_photos_to_a_model_on_the_hub(tmp_path, record_property):
    photos(tmp_path / "photos")
    python = Path(sys.executable)
    path = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    said = run(
        [python, ROOT / "scripts/quickstart.py", "--data", tmp_path / "photos", "--phrase", "the red lesion",
         "--smoke", "--output", tmp_path / "out", "--max_steps", "6"],
        tmp_path,
        **path,
    )  # fmt: skip
    assert "broken.jpg" in said, "the photo that was skipped is named"
    assert (tmp_path / "out/pictures.png").is_file()
    with stub_hub() as hub:
        model = tmp_path / "out" / "model"
        push = [python, ROOT / "scripts/push_to_hub.py", "--model", model, "--repo", "lesions", "--license", "mit"]
        said = run(push, tmp_path, **path, **environment(hub))
        assert f"uploaded: {hub.address}/user/lesions/commit/" in said
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "picture.jpg").write_bytes((tmp_path / "photos/images/0.jpg").read_bytes())
        variables = environment(hub) | {"HF_HOME": str(elsewhere / "home"), "PYTHONPATH": ""}
        assert "MODEL transformers_modules.user" in run([python, "-c", RELOAD], elsewhere, **variables)
    photo, question = tmp_path / "photos/images/0.jpg", "Please segment the red lesion."
    message, talk = ask_server_and_demo(model, photo, question)
    assert talk.turns == ((question, message["content"]),), "the page answers what the server answers"
    assert len(message["masks"]) == message["content"].count("[SEG]") == len(talk.masks)
    record_property("seconds", round(time.perf_counter() - start, 1))
