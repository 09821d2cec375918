"""A contact sheet shows the samples that are there, with their text, and says what is wrong when it cannot.

Run: pytest tests/test_inspection.py
"""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import picture

from sa2va_hf import inspection, masks
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import Expression, Object, Sample, Turn
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.drawing import COLOURS, TINT
from sa2va_hf.inspection import draw_sample, draw_samples, save_sheet

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "inspect_data.py"


@pytest.fixture
def folder(tmp_path):
    prepare("shapes", None, "train", tmp_path / "shapes", options={"count": 20, "size": 48, "clip_fraction": 0.3})
    return tmp_path / "shapes"


def square(size, x, y):
    mask = np.zeros(size[::-1], bool)
    mask[y : y + 20, x : x + 20] = True
    return masks.encode(mask)


def test_masks_boxes_and_ignored_pixels_lie_where_they_are_and_text_is_told(tmp_path):
    size = (240, 120)  # enlarged twice
    Image.new("RGB", size, (100, 100, 100)).save(tmp_path / "a.png")
    things = [Object([square(size, 10, 50)], [None], "cup"), Object([None], [(100.0, 40.0, 140.0, 80.0)])]
    sample = Sample("a", "referring", *size, frames=[str(tmp_path / "a.png")], objects=things, source="x")
    sample.expressions = [Expression("the cup", [0], "easy"), Expression("a dog", [])]
    sample.ignore = [square(size, 200, 90)]
    drawn = draw_sample(sample)
    assert drawn.picture.size == (480, 240)
    assert drawn.lines == ["a (referring, 240 x 120, 1 frames)", "the cup -> 0 (easy)", "a dog -> nothing"]
    pixels = np.asarray(drawn.picture).astype(int)
    for colour, (x, y) in ((COLOURS[0], (45, 125)), (COLOURS[2], (430, 212))):
        assert np.abs(pixels[y, x] - (100 * (1 - TINT) + np.array(colour) * TINT)).max() <= 1
    assert (pixels[120, 199:202] == COLOURS[1]).all(axis=1).any()  # the box's left side
    assert tuple(pixels[120, 240]) == (100, 100, 100)


def test_a_clip_shows_annotated_frames_and_a_text_has_no_picture(tmp_path):
    frames = [picture(tmp_path / f"{number}.png") for number in range(9)]
    thing = Object([square((40, 30), 5, 5)] * 3, [None] * 3)
    clip = Sample("c", "question", 40, 30, frames=frames, annotated=[2, 4, 8], objects=[thing])
    clip.turns = [Turn("What?", "It, [SEG].", [[0]])]
    drawn = draw_sample(clip)
    assert drawn.picture.width >= 3 * 120 and drawn.lines[1:] == ["Q: What?", "A: It, [SEG]. -> 0"]
    text = draw_sample(Sample("t", "question", turns=[Turn("Q", "A")]))
    assert text.lines == ["t (question, 0 x 0, 0 frames)", "Q: Q", "A: A"]


def test_the_same_seed_draws_the_same_samples(folder):
    once, again, other = (draw_samples(folder, 5, seed) for seed in (0, 0, 1))
    assert [one.lines for one in once] == [one.lines for one in again] != [one.lines for one in other]
    assert len(draw_samples(folder, 100)) == 20
    ids = [sample.id for sample in SOURCES["shapes"](None, "train", count=20, size=48, clip_fraction=0.3)]
    assert [one.lines[0].split()[0] for one in draw_samples(folder, 100)] == ids


def test_html_needs_no_other_file_and_png_is_a_picture(folder, tmp_path):
    drawn = draw_samples(folder, 3)
    drawn[0].lines.append("a <b> & c")
    save_sheet(drawn, tmp_path / "sheet.html", title="<shapes>")
    page = (tmp_path / "sheet.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3 and "a &lt;b&gt; &amp; c" in page and "&lt;shapes&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    save_sheet(drawn, tmp_path / "sheet.png", columns=2)
    assert Image.open(tmp_path / "sheet.png").width > inspection.ENLARGED * 48
    with pytest.raises(ValueError, match="ends with .png or .html"):
        save_sheet(drawn, tmp_path / "sheet.pdf")


def test_the_command_writes_or_says_why_not(folder, tmp_path, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    run(folder, "--output", tmp_path / "a.png", "--count", 4)
    assert (tmp_path / "a.png").exists()
    with pytest.raises(SystemExit, match=r"no prepared dataset; run scripts/prepare_data\.py"):
        run(tmp_path, "--output", tmp_path / "a.png")
    with pytest.raises(SystemExit, match="count: expected a positive number"):
        run(folder, "--output", tmp_path / "a.png", "--count", 0)
    frame = picture(tmp_path / "gone.png")
    sample = Sample("a", "referring", 40, 30, [frame], objects=[Object([square((40, 30), 5, 5)], [None])])
    sample.expressions = [Expression("it", [0])]
    monkeypatch.setitem(SOURCES, "given", lambda root, split: iter([sample]))
    prepare("given", tmp_path, "train", tmp_path / "out")
    Path(frame).unlink()
    with pytest.raises(SystemExit, match=r"sample 'a': .*gone\.png: no such file"):
        run(tmp_path / "out", "--output", tmp_path / "b.png")
