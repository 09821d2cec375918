"""Bad boxes at every place where boxes come in: what can be used is used, and what cannot is named in one line.

A row is an entry point, a fault, a call, and what must come of it: boxes, or (part of) the message. Messages of the
reader are problems, those of sources are reasons of rejects, all others are errors.

Run: pytest tests/locating/test_bad_boxes.py
"""

import json
import re

import numpy as np
import pytest
import test_box_json
import test_spatial_relations as spatial
from dictated import said
from PIL import Image
from tiny import tiny_model, tiny_processor

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.boxes import read, write
from sa2va_hf.commands.predict import main as predict
from sa2va_hf.commands.search import main as run_search
from sa2va_hf.search import search
from sa2va_hf.search.settings import Located

SIZE = (100, 50)
NOWHERE, NAN = "no/such.png", float("nan")


@pytest.fixture(scope="module")
def predictor():
    return Sa2VAPredictor(tiny_model(), tiny_processor())


@pytest.fixture(scope="module")
def clip():
    return [Image.new("RGB", SIZE, (value, 0, 0)) for value in (0, 80, 160)]


# ---------------------------------------------------------------- what models write

READ = [  # fault, text of two frames in the form "spatial", boxes per frame (None: not read), problem
    ("a clip shorter than its boxes", "<box>0,0,0.5,1<next>0,0,0.5,1<next>0,0,0.5,1</box>", 2, "2 frames, got 3"),
    ("a clip longer than its boxes", "<box>0,0,0.5,1</box>", 1, "boxes of 2 frames, got 1"),
    ("partly outside", "<box>-0.5,0,0.5,1.5<next>0,0,0.5,1</box>", 2, None),
    ("outside", "<box>1.2,1.2,1.5,1.5<next>0,0,0.5,1</box>", 1, "frame 0, object 0: a box without area"),
    ("NaN", "<box>nan,0,0.5,1<next>0,0,0.5,1</box>", 1, "frame 0: expected 4 numbers, got 'nan,0,0.5,1'"),
    ("reversed corners", "<box>0.5,1,0,0<next>0,0,0.5,1</box>", 2, None),
    ("without area", "<box>0.5,0,0.5,1<next>0,0,0.5,1</box>", 1, "frame 0, object 0: a box without area"),
    ("cut at max_new_tokens", "<box>0.000,0.000,0.500,1.000<next>0.000,0.000,0.5", 1, "cut at max_new_tokens"),
    ("nothing", "", 0, "no box is written in ''"),
]


@pytest.mark.parametrize(("fault", "text", "count", "problem"), READ, ids=[row[0] for row in READ])
def test_what_a_model_writes(predictor, clip, monkeypatch, fault, text, count, problem):
    monkeypatch.setattr(predictor.processor, "box_form", "spatial")
    said(predictor, monkeypatch, text)
    found = predictor.locate(video=clip[:2], text="the dog", num_frames=2)
    boxes = found.boxes[np.isfinite(found.boxes).all(-1)]
    np.testing.assert_allclose(boxes, np.tile([0.0, 0.0, 50.0, 50.0], (count, 1)))
    assert any(problem in one for one in found.problems) if problem else found.problems == ()
    assert all("\n" not in one for one in found.problems)
    direct = read(text, *SIZE, frames=2)
    assert len(direct.frames) == 2
    assert set(direct.problems) <= set(found.problems)


# ---------------------------------------------------------------- what is given to a predictor or a writer

CALLS = [
    (
        "segment_boxes",
        "a clip shorter than its boxes",
        lambda p, c: p.segment_boxes(video=c, boxes={3: [(0, 0, 9, 9)]}),
        "the clip has frames 0 to 2, got boxes on frames 3",
    ),
    (
        "segment_boxes",
        "outside",
        lambda p, c: p.segment_boxes(image=c[0], boxes=[(200, 0, 210, 9)]),
        "frame 0, object 0: [200.0, 0.0, 210.0, 9.0] has no area in a picture of 100 x 50",
    ),
    (
        "segment_boxes",
        "NaN",
        lambda p, c: p.segment_boxes(video=c, boxes={1: [None, (NAN, 0, 9, 9)]}),
        "frame 1, object 1: expected [x0, y0, x1, y1] of finite numbers",
    ),
    (
        "segment_boxes",
        "reversed corners",
        lambda p, c: p.segment_boxes(image=c[0], boxes=[(9, 9, 0, 0)]),
        "frame 0, object 0: [9.0, 9.0, 0.0, 0.0] has no area",
    ),
    (
        "segment_boxes",
        "no numbers",
        lambda p, c: p.segment_boxes(image=c[0], boxes=["left"]),
        "frame 0, object 0: expected [x0, y0, x1, y1] of finite numbers, got 'left'",
    ),
    (
        "segment_boxes",
        "one box, not a list",
        lambda p, c: p.segment_boxes(video=c, boxes={0: (0, 0, 9, 9)}),
        "frame 0, object 0: expected [x0, y0, x1, y1] of finite numbers, got 0",
    ),
    (
        "segment_boxes",
        "no list",
        lambda p, c: p.segment_boxes(image=c[0], boxes=None),
        "boxes: frame 0: expected a list of boxes, got NoneType",
    ),
    (
        "segment_boxes",
        "frames as text",
        lambda p, c: p.segment_boxes(video=c, boxes={"0": [(0, 0, 9, 9)]}),
        "boxes: expected indices of frames, whole numbers, got '0'",
    ),
    (
        "segment_boxes",
        "an image that does not open",
        lambda p, c: p.segment_boxes(image=NOWHERE, boxes=[(0, 0, 9, 9)]),
        "no/such.png: cannot be read as a picture",
    ),
    (
        "locate",
        "a reference box without area",
        lambda p, c: p.locate(image=c[0], text="left of [9, 9, 9, 20]"),
        "[9, 9, 9, 20]: expected a box [x0, y0, x1, y1] in thousandths",
    ),
    (
        "locate",
        "a reference box outside",
        lambda p, c: p.locate(image=c[0], text="left of [9, 9, 1200, 20]"),
        "in thousandths of the picture's sides, with x0 < x1 and y0 < y1",
    ),
    (
        "locate",
        "reversed reference",
        lambda p, c: p.locate(video=c, text="left of [90, 9, 20, 20]"),
        "in thousandths of the picture's sides, with x0 < x1 and y0 < y1",
    ),
    (
        "locate",
        "an empty text",
        lambda p, c: p.locate(image=c[0], text=" "),
        "text: expected a text that is not empty",
    ),
    (
        "locate",
        "an image that does not open",
        lambda p, c: p.locate(image=NOWHERE, text="dog"),
        "no/such.png: cannot be read as a picture",
    ),
    (
        "write",
        "NaN",
        lambda p, c: write([[(NAN, 0, 9, 9)]], *SIZE),
        "expected a box [x0, y0, x1, y1] of finite numbers",
    ),
    (
        "write",
        "reversed corners",
        lambda p, c: write([[(9, 9, 0, 0)]], *SIZE),
        "x0 <= x1 and y0 <= y1, got [9, 9, 0, 0]",
    ),
]


@pytest.mark.parametrize(("entry", "fault", "call", "message"), CALLS, ids=[f"{row[0]}: {row[1]}" for row in CALLS])
def test_what_is_given(predictor, clip, entry, fault, call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call(predictor, clip)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- files of boxes


def in_json(box):
    def records(root):
        content = [{"image": "a.jpg", "boxes": [box], "text": ["dog"]}]
        return test_box_json.read(test_box_json.write(root, "boxes.json", content))

    return records


def in_relations(**changes):
    tracks = {"0": spatial.LEFT, "1": spatial.RIGHT, "2": spatial.NEVER} | changes.pop("boxes", {})

    def records(root):
        return spatial.read(spatial.write(root, "relative", spatial.relative(**changes), boxes=tracks), "relative")

    return records


SOURCES = [
    ("box_json", "NaN", in_json([NAN, 0, 9, 9]), "nan"),
    ("box_json", "outside", in_json([90, 3, 9, 9]), "is mostly out of its picture of 40 x 30"),
    ("box_json", "reversed corners", in_json([20, 20, -9, -9]), "-9 x -9 pixels: no object"),
    ("box_json", "without area", in_json([20, 20, 0, 9]), "0 x 9 pixels: no object"),
    ("spatial", "a clip shorter than its boxes", in_relations(boxes={"0": spatial.LEFT + [None]}), "7"),
    ("spatial", "a clip longer than its boxes", in_relations(boxes={"0": spatial.LEFT[:-1]}), "5"),
    ("spatial", "NaN", in_relations(boxes={"0": [[NAN, 5, 19, 14]] * 6}), "nan"),
    ("spatial", "outside", in_relations(boxes={"0": [[110, 5, 119, 14]] * 6}), "[110, 5, 119, 14]"),
    ("spatial", "reversed corners", in_relations(boxes={"0": [[19, 14, 10, 5]] * 6}), "[19, 14, 10, 5]"),
    ("spatial", "a reference box without area", in_relations(box=(60, 5, 59, 14)), "'ref_box'"),
    ("spatial", "no reference box", in_relations(box=None), "ref_box"),
]


@pytest.mark.parametrize(("source", "fault", "records", "message"), SOURCES, ids=[f"{r[0]}: {r[1]}" for r in SOURCES])
def test_what_files_hold(tmp_path, source, fault, records, message):
    samples, rejects = records(tmp_path)
    assert samples == [] and any(message in reject.reason for reject in rejects), rejects
    assert all(reject.file and "\n" not in reject.reason for reject in rejects)


# ---------------------------------------------------------------- a search


class Model:
    def __init__(self, box):
        self.box = box

    def locate(self, crops, texts):
        return [Located(np.array([0.9]), np.array([self.box], dtype=float), np.ones((1, 1)))] * len(crops)


@pytest.mark.parametrize(
    ("box", "expected"), [((0.5, 0.8, -0.5, 0.2), (0, 10, 50, 40)), ((0.2, 0.2, NAN, 0.4), "not finite")]
)
def test_what_the_model_of_a_search_says(clip, box, expected):
    if isinstance(expected, tuple):
        assert search(clip[0], "cup", Model(box)).box == pytest.approx(expected)
        return
    with pytest.raises(ValueError, match=expected):
        search(clip[0], "cup", Model(box))


# ---------------------------------------------------------------- the commands

COMMANDS = [
    (predict, "--text", "an empty text", "a.png", " ", "--text: expected a question, got an empty text"),
    (predict, "--text", "an image that does not open", NOWHERE, "dog", "no/such.png: cannot be read as a picture"),
    (run_search, "--target", "an empty text", "a.png", " ", "--target: expected the name of what is searched"),
    (
        run_search,
        "--target",
        "an image that does not open",
        NOWHERE,
        "cup",
        "no/such.png: cannot be read as a picture",
    ),
]


@pytest.mark.parametrize(("command", "option", "fault", "image", "text", "message"), COMMANDS)
def test_a_command_says_so_before_it_loads_a_model(tmp_path, command, option, fault, image, text, message):
    picture = tmp_path / image
    if image == "a.png":
        Image.new("RGB", SIZE).save(picture)
    arguments = ["--model", "there is none", "--image", str(picture), option, text, "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=re.escape(message)):
        command([*arguments, *(["--answer_with", "boxes"] if command is predict else [])])
    assert not (tmp_path / "out").exists()


def test_boxes_that_are_not_written_are_null_in_the_file(tmp_path):
    """NaN is no JSON: what boxes.json holds can be read by any program."""
    from sa2va_hf.commands.predict import write_boxes
    from sa2va_hf.prediction import Prediction

    boxes = np.array([[[NAN] * 4, [0, 0, 9, 9]]], np.float32)
    write_boxes(Prediction("", None, boxes, None, None, None, problems=("frame 0: x",)), tmp_path)
    content = json.loads((tmp_path / "boxes.json").read_text(), parse_constant=pytest.fail)
    assert content == {"boxes": [[None, [0, 0, 9, 9]]], "problems": ["frame 0: x"]}
