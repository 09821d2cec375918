"""predict.py, run as it is run: what lies in the output folder is what the predictor says.

Run: pytest tests/scripts/test_predict.py
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_processor, tiny_talker

from sa2va_hf import Sa2VAPredictor

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "predict.py"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_talker().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, model_folder, tmp_path):
    def run(*arguments: str) -> Path:
        output = tmp_path / "out"
        command = [str(SCRIPT), "--model", str(model_folder), "--output", str(output), "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return output

    return run


def save_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        noise = np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((71, 53)).save(file)
    return files


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_a_picture(run, model_folder, tmp_path, capsys):
    (file,) = save_pictures(tmp_path / "in", 1)
    output = run("--image", str(file), "--text", "the dog")
    expected = Sa2VAPredictor.from_pretrained(model_folder, device="cpu")(image=file, text="the dog")
    assert (output / "text.txt").read_text() == "Sure, it is [SEG].\n"
    assert "Sure, it is [SEG]." in capsys.readouterr().out
    assert [mask.name for mask in (output / "masks").iterdir()] == ["object1_frame00000.png"]
    np.testing.assert_array_equal(read(output / "masks" / "object1_frame00000.png"), expected.masks[0, 0] * 255)
    drawn, plain = read(output / "overlay.png"), read(file)
    assert drawn.shape == plain.shape
    changed = (drawn != plain).any(-1)
    assert changed[expected.masks[0, 0]].mean() > 0.9  # tinted where the mask is


def test_objects_of_an_earlier_run_do_not_stay(run, tmp_path):
    (file,) = save_pictures(tmp_path / "in", 1)
    run("--image", str(file), "--text", "all", "--answer", "[SEG] and [SEG] and [SEG]")
    output = run("--image", str(file), "--text", "all", "--answer", "[SEG] and [SEG]")
    names = sorted(mask.name for mask in (output / "masks").iterdir())
    assert names == ["object1_frame00000.png", "object2_frame00000.png"]


def test_a_clip_becomes_a_clip(run, tmp_path):
    av = pytest.importorskip("av")
    save_pictures(tmp_path / "in", 4)
    output = run("--video", str(tmp_path / "in"), "--text", "the dog")
    assert len(list((output / "masks").glob("object1_frame*.png"))) == 4
    with av.open(str(output / "overlay.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == 4 and frames[0].size == (72, 54)  # even sides
    # and what was written can be read again
    run("--video", str(output / "overlay.mp4"), "--text", "the dog")


def test_a_clip_becomes_frames_when_asked(run, tmp_path):
    save_pictures(tmp_path / "in", 3)
    output = run("--video", str(tmp_path / "in"), "--text", "the dog", "--frames")
    assert sorted(file.name for file in (output / "overlay").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert read(output / "overlay" / "00002.png").shape == (53, 71, 3)


def test_picture_or_clip_is_required(run):
    with pytest.raises(SystemExit):
        run("--text", "the dog")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_frames", "0"], "--num_frames: expected a whole number from 1 on, got 0"),
        (["--max_objects", "-1"], "--max_objects: expected a whole number from 1 on, got -1"),
        (["--output", __file__], "test_predict.py is a file"),
        (["--device", "gpu"], "device: expected 'cpu', 'cuda' or 'cuda:INDEX', got 'gpu'"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(arguments, message, tmp_path, monkeypatch):
    from sa2va_hf.commands.predict import main

    [picture] = map(str, save_pictures(tmp_path / "pictures", 1))
    question = ["--model", "there is none", "--image", picture, "--text", "the dog", "--output", str(tmp_path / "out")]
    monkeypatch.setenv("SA2VA_TRACEBACK", "1")
    with pytest.raises(ValueError, match=message):
        main([*question, *arguments])


@pytest.mark.parametrize(("form", "file"), [("rle", "masks.json"), ("coco", "coco.json")])
def test_masks_in_other_forms(run, tmp_path, form, file):
    [picture] = save_pictures(tmp_path / "pictures", 1)
    output = run("--image", str(picture), "--text", "Please segment the dog.", "--format", form)
    assert {path.name for path in output.iterdir()} == {"text.txt", "overlay.png", file}
