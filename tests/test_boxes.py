"""Boxes as texts and numbers: exact round trips, what malformed texts give, and the recorded texts of the original.

Run: pytest tests/test_boxes.py
"""

import json
import math
import re

import numpy as np
import pytest
from golden import system

from sa2va_hf import boxes
from sa2va_hf.boxes import JSON, PLAIN, SPATIAL, TEXT_FORMS, THOUSANDTHS, read, write

A, HALF, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [20.0, 20, 30, 30]


def test_iou_and_giou():
    assert boxes.box_iou(A, HALF) == 0.5
    assert boxes.box_iou(A, FAR) == 0.0
    assert boxes.box_giou(A, FAR) == pytest.approx(-(900 - 200) / 900)
    assert boxes.box_iou([5, 5, 5, 5], [5, 5, 5, 5]) == 0.0
    np.testing.assert_array_equal(boxes.box_iou(np.array([A, FAR])[:, None], np.array([[A, FAR]])), np.eye(2))
    with pytest.raises(ValueError, match=r"the shapes \(3,\) and \(4,\)"):
        boxes.box_iou([0.0, 0, 10], A)


def random_frames(rng: np.random.Generator, count: int, width: int, height: int) -> list[list[boxes.Box]]:
    def one() -> boxes.Box:
        return tuple((np.sort(rng.random((2, 2)), axis=0) * (width, height)).ravel().tolist())

    return [[one() for _ in range(rng.integers(0, 4))] for _ in range(count)]


@pytest.mark.parametrize("form", [SPATIAL, THOUSANDTHS, JSON])
@pytest.mark.parametrize("count", [1, 5])
def test_what_is_written_is_read_back_exactly(form, count):
    rng = np.random.default_rng(0)
    for width, height in ((640, 427), (1, 1), (333, 7777)):
        frames = random_frames(rng, count, width, height)
        text = write(frames, width, height, form, switches=[count - 1])
        found = read(text, width, height, frames=count)
        assert found.problems == () and found.switches == (count - 1,)
        assert write(found.frames, width, height, form, found.switches) == text
        step = 10**-boxes.DECIMALS if form == SPATIAL else 1 / boxes.GRID
        for true, back in zip(frames, found.frames, strict=True):
            assert len(true) == len(back)
            for one, other in zip(true, back, strict=True):
                np.testing.assert_allclose(other, one, rtol=0, atol=0.5 * step * max(width, height) + 1e-9)


def test_the_forms_themselves():
    frames = [[(0, 0, 320, 480), (-5, 0, 900, 480)], []]
    assert (
        write(frames, 640, 480)
        == "<box>0.0000,0.0000,0.5000,1.0000<box_sep>0.0000,0.0000,1.0000,1.0000<next><no_box></box>"
    )
    assert write(frames, 640, 480, THOUSANDTHS) == "<box>[[0, 0, 500, 1000], [0, 0, 1000, 1000]]<next><no_box></box>"
    assert json.loads(write(frames[:1], 640, 480, JSON))[0] == {"bbox_2d": [0, 0, 500, 1000]}
    assert json.loads(write(frames, 640, 480, JSON))[2] == {"frame": 1, "bbox_2d": None}
    assert write([[(0, 0, 320, 480)]], 640, 480, PLAIN) == "[0, 0, 500, 1000]"
    assert write(frames[:1], 640, 480, SPATIAL, switches=[0]).startswith("<box><switch>0.0000")


@pytest.mark.parametrize(
    ("frames", "form", "message"),
    [
        ([[(0, 0, 1, math.nan)]], SPATIAL, "finite numbers"),
        ([[(5, 0, 1, 2)]], JSON, "x0 <= x1 and y0 <= y1, got"),
        ([[(0, 0, 1)]], THOUSANDTHS, "a box needs 4 values"),
        ([], SPATIAL, "frames: expected the boxes of at least one frame"),
        ([[]], PLAIN, "form plain: expected one box"),
        ([[A]], "xml", "form: expected one of spatial, thousandths, json, plain, got 'xml'"),
    ],
)
def test_what_cannot_be_written_is_an_error(frames, form, message):
    with pytest.raises(ValueError, match=message):
        write(frames, 100, 100, form)


B, C = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
READ = [  # text, frames in shares, number of problems
    ("<box>[0.1, 0.2, 0.3, 0.4]</box>", [[B]], 0),  # the three coordinate styles of the original
    ("<box> 0.1000,0.2000,0.3000,0.4000 </box>", [[B]], 0),
    ("<box>0.1, 0.2, 0.3, 0.4</box><single_img>.", [[B]], 0),
    ("<box>\n0.1,0.2,0.3,0.4\n<NEXT>\n<No_Box></Box>", [[B], []], 0),
    ("<box><switch>0.1,0.2,0.3,0.4</box>", [[B]], 0),
    ("<box>(0.1,0.2),(0.3,0.4)</box>", [[B]], 0),  # Qwen-VL
    ("<box>0.1 0.2 0.3 0.4</box>", [[B]], 0),
    ("<ref>dog</ref><box>[[100, 200, 300, 400]]</box> <ref>cat</ref><box>[[500, 600, 700, 800]]</box>", [[B, C]], 0),
    ("<box>[[100, 200, 300, 400], [500, 600, 700, 800]]</box>", [[B, C]], 0),
    ("<box>100,200,300,400</box>", [[B]], 0),
    ('```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "dog"}]\n```', [[B]], 0),
    ('{"bbox_2d": [100, 200, 300, 400], "label": "a"}, {"bbox_2d": [500, 600, 700, 800]}', [[B, C]], 0),
    ("it is [[500,200,100,2000]].", [[(0.1, 0.2, 0.5, 1.0)]], 0),
    ("the one at [100, 200, 300, 400]", [[B]], 0),
    ("<box>0.3,0.4,0.1,0.2</box>", [[B]], 0),  # corners the other way round
    ("<box>-0.1,0.2,1.3,1.0001</box>", [[(0.0, 0.2, 1.0, 1.0)]], 0),
    ("<box>0,0,1,1</box>", [[(0.0, 0.0, 1.0, 1.0)]], 0),
    ("<box>0.2,0.2,0.2,0.2</box>", [[(0.2,) * 4]], 0),
    ("no box [1, 2, 3] here", [], 1),
    ("see [1] and [SEG]", [], 1),
    ("", [], 1),
    ("Sorry, it is not visible.", [], 1),
    ("<box></box>", [None], 1),
    ("<box>0.1,0.2,0.3,0.4", [[B]], 1),
    ("<box>0.1000,0.2000,0.3000,0.4000<next>0.5000,0.6000,0.7000,0.80", [[B], None], 2),  # a cut number
    ("<box>0.1000,0.2000,0.3000,0.4000<nex", [[B]], 1),
    ("<box>[[100, 200, 300, 400], [500, 600, 7", [[B]], 2),
    ('[{"bbox_2d": [100, 200, 300, 400], "label": "dog"}, {"bbox_2d": [500, 600, 7', [[B]], 1),
    ("0.1,0.2,0.3,0.4</box>", [[B]], 1),
    ("<box>0.1,0.2,0.3,0.4<next></box>", [[B], None], 1),
    ("<box>0.1,0.2,0.3<next>0.5,0.6,0.7,0.8</box>", [None, [C]], 1),
    ("<box>0.1,0.2,0.3,0.4<box_sep>0.5,0.6</box>", [[B]], 1),
    ("<box><no_box><box_sep>0.1,0.2,0.3,0.4</box>", [[B]], 2),
    ("<box>nan,0.2,0.3,0.4<next>1e999,0,1,1<next>1_0,0.2,0.3,0.4<next>0.1,0.2,0.3,0.4%</box>", [None] * 4, 4),
    ("a <box>0.1,0.2,0.3,0.4</box> b <box>0.5,0.6,0.7,0.8</box>", [[B]], 1),
    ('{"bbox_2d": [1, 2, 3, 4], "frame": 99999999999}', [], 1),
    ('{"bbox_2d": [1, 2, 3, 4], "frame": 999999999}', [], 1),
]


@pytest.mark.parametrize(("text", "frames", "problems"), READ)
def test_malformed_texts_give_what_can_be_read_and_say_what_not(text, frames, problems):
    found = read(text, 1, 1)
    assert [frame is None for frame in found.frames] == [frame is None for frame in frames]
    for one, other in zip(found.frames, frames, strict=True):
        np.testing.assert_allclose(one or np.zeros((0, 4)), other or np.zeros((0, 4)), rtol=0, atol=1e-12)
    assert len(found.problems) == problems, found.problems
    assert all("\n" not in problem for problem in found.problems)


def test_the_number_of_frames_is_checked():
    text = "<box>0.1,0.2,0.3,0.4<next><no_box></box>"
    short, long = read(text, 1, 1, frames=3), read(text, 1, 1, frames=1)
    assert short.frames[1:] == [[], None] and short.problems == ("expected boxes of 3 frames, got 2",)
    assert len(long.frames) == 1 and long.problems == ("expected boxes of 1 frames, got 2",)
    assert read("nothing", 1, 1, frames=2).frames == [None, None]


def test_pixels_of_a_resized_picture_and_a_bounded_list_of_problems():
    ((box,),) = read('{"bbox_2d": [14, 28, 42.0, 56]}', 100, 200, sides=(140, 280)).frames
    assert box == pytest.approx((10, 20, 30, 40))
    found = read("<box>" + "<next>".join(["x"] * 30) + "</box>", 1, 1)
    assert len(found.problems) == boxes.MAX_PROBLEMS + 1 and found.problems[-1] == "and 10 more"


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_no_text_raises(form):
    """Every beginning of a text, and texts with a character changed: reading ends and gives boxes in the picture."""
    rng = np.random.default_rng(1)
    frames = [[tuple(B)]] if form == PLAIN else [[B, C], [], [C]]
    text = write(frames, 1, 1, form)
    changed = [text[:end] for end in range(len(text))]
    for at in rng.integers(0, len(text), 100):
        changed.append(text[:at] + chr(rng.integers(32, 127)) + text[at + 1 :])
    for one in changed:
        for frame in read(one, 1, 1).frames:
            for x0, y0, x1, y1 in frame or ():
                assert 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1


# ---------------------------------------------------------------- what the original wrote and read


@pytest.fixture(scope="module")
def spatial(shared_data):
    return system(shared_data, "J_spatial_boxes.json")


def fixed(frames):
    """What the corrected reader gives for boxes that the original read: cut at the edges, corners in order."""
    return [[boxes.to_pixels(np.divide(box, (640, 360) * 2), 640, 360) for box in frame] for frame in frames]


def test_the_same_answers_are_read_as_the_same_boxes(spatial):
    cases = spatial["parser"]["cases"]
    width, height = spatial["parser"]["image_size"] if "image_size" in spatial["parser"] else (640, 360)
    read_by_both = 0
    for case in cases:
        found = read(case["answer"], width, height)
        wanted = case.get("boxes_per_frame")
        odd = re.search("nan|inf|_\\d|100,200", case["answer"])
        if wanted is None or odd:  # errors of the original, and numbers that are none
            assert odd or found.problems or any(frame for frame in found.frames), case["answer"]
            continue
        read_by_both += 1
        assert found.problems == () or case["answer"].count("<box>") > 1
        for one, other in zip(found.frames, fixed(wanted), strict=True):
            np.testing.assert_allclose(one or np.zeros((0, 4)), other or np.zeros((0, 4)), rtol=0, atol=1e-6)
    assert read_by_both >= 15


def test_the_same_boxes_are_written_as_the_same_text(spatial):
    compared = 0
    for case in spatial["boxes_to_text"]:
        width, height = case["size"]
        tracks = case["objects_by_frame"]
        frames = [[box for box in frame if box is not None] for frame in zip(*tracks, strict=True)]
        text = case["inside_one_box_tag"]
        if any(float(number) > 1 or float(number) < 0 for number in re.findall(r"-?\d+\.\d+", text)):
            continue  # the original writes boxes beyond the picture, ours are cut at its edges
        if any(box[0] > box[2] or box[1] > box[3] for frame in frames for box in frame):
            continue
        assert write(frames, width, height) == f"<box>{text}</box>"
        compared += 1
    assert compared >= 8


def test_the_answers_of_whole_samples(spatial):
    """The supervised text of every video sample, made of its tracks and read back."""
    for item in spatial["dataset_items"]:
        answers = re.findall("<box>.*?</box>", item["supervised_text"])
        assert len(answers) == len(item["turns"])
        for answer, turn in zip(answers, item["turns"], strict=True):
            parts = [read(frame, 1, 1).frames[0] for frame in turn["frames"]]
            found = read(answer, 1, 1, frames=len(item["frames_sampled"]))
            assert found.frames == parts and found.problems == ()
            if item["kind"] == "switch":
                assert list(found.switches) == item["switch_positions_in_sample"]
            assert write(found.frames, 1, 1, SPATIAL, found.switches) == answer


def test_answers_about_pictures(spatial):
    for item in spatial["image_items"]:
        answers = re.findall(r"<box>.*?</box><single_img>", item["supervised"])
        for answer, true in zip(answers, item["boxes_normalized_float32"], strict=True):
            ((box,),) = read(answer, 1, 1).frames
            np.testing.assert_allclose(box, true, rtol=0, atol=0.6e-4)
