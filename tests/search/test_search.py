"""What the search does beyond V*: batches, several instances, budgets, evidence; crops of large pictures; the drawing.

Run: pytest tests/search/test_search.py
"""

import json
import tracemalloc
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from searched import Blank, FakeModel

from sa2va_hf.boxes import box_iou
from sa2va_hf.search import Located, SearchSettings, search
from sa2va_hf.search.locator import CONFIDENCES, Sa2VALocator, located
from sa2va_hf.search.overlay import draw_search
from sa2va_hf.search.patches import Crop, Heat
from sa2va_hf.search.phrases import cue_phrase, question_about
from sa2va_hf.search.picture import LargePicture

SIZE = (1600, 1200)


def world(*boxes, gain=14.0, heat=9.0):
    """Instances that are sure of only in small crops, and heat around the first of them."""
    instances = [{"box": list(box), "score": {"gain": gain, "cap": 0.9}} for box in boxes]
    x, y, width, height = boxes[0]
    warm = [{"gauss": [x + width / 2, y + height / 2, 150], "amp": heat}, {"const": 0.1}]
    return {"instances": instances, "target_heat": warm, "background": [[0.04, [0.5, 0.5, 0.2, 0.2]]]}


def look(content, target="cup", clock=None, size=SIZE, **settings):
    model = FakeModel(content, size, target)
    given = {} if clock is None else {"clock": clock}
    return search(Blank(size), target, model, SearchSettings(**{"overlap": 0.0} | settings), **given), model


@pytest.mark.parametrize("crops_at_once", [1, 3, 8])
def test_a_batch_of_crops_finds_the_same_box(crops_at_once):
    found, model = look(world((1300, 900, 30, 30)), crops_at_once=crops_at_once)
    assert found.found and found.ended == "found"
    assert found.box == pytest.approx((1300, 900, 1330, 930), abs=0.01)
    assert max(model.batches) <= crops_at_once and sum(model.batches) == found.calls["locate"] == len(found.visits)


def test_all_instances_each_once():
    boxes = [(1300, 900, 40, 40), (100, 100, 40, 40), (700, 560, 60, 60)]
    found, _ = look(world(*boxes), instances="all", overlap=0.2)
    assert found.ended == "exhausted" and len(found.instances) == 3
    for x, y, width, height in boxes:
        assert max(box_iou(one.box, (x, y, x + width, y + height)) for one in found.instances) > 0.9
    scores = [one.score for one in found.instances]
    assert scores == sorted(scores, reverse=True) and found.score == scores[0]


def test_what_is_not_there_is_said_with_evidence():
    found, _ = look(world((10, 10, 5, 5), gain=1.0))
    assert not found.found and found.box is None and found.score is None and found.instances == []
    assert found.ended == "exhausted" and found.covered == 1.0 and len(found.visits) == 21
    assert found.near_misses and found.near_misses[0].score < 0.3
    assert "not found in 21 crops" in found.describe() and "best score" in found.describe()


def test_the_budget_ends_the_search():
    nothing = world((10, 10, 5, 5), gain=1.0)
    found, _ = look(nothing, max_crops=6, crops_at_once=4)
    assert len(found.visits) == 6 and found.ended == "crops" and found.covered < 1
    ticks = count()
    found, _ = look(nothing, max_seconds=3.0, clock=lambda: float(next(ticks)))
    assert found.ended == "seconds" and len(found.visits) == 3
    found, _ = look(nothing, max_crops=21)
    assert found.ended == "exhausted"  # the budget was just enough


def test_a_crop_without_heat_ranks_its_parts_by_size_or_not_at_all():
    heat = np.full((4, 4), 3.0)
    part = Crop(0, 0, 50, 100)
    assert Heat(heat, Crop(0, 0, 100, 100), "area").share(part) == 0.5
    assert Heat(heat, Crop(0, 0, 100, 100), "zero").share(part) == 0.0


def test_shares_do_not_depend_on_the_size_of_the_heat():
    small = np.random.default_rng(0).random((6, 8))
    large = np.kron(small, np.ones((100, 100)))
    crop = Crop(10, 20, 800, 600)
    for part in (*crop.parts(), *crop.parts(0.1), Crop(33, 47, 251, 333)):
        assert Heat(small, crop).share(part) == pytest.approx(Heat(large, crop).share(part), rel=1e-9)


def test_parts_overlap_within_their_crop():
    crop = Crop(100, 50, 401, 300)
    plain, wide = crop.parts(), crop.parts(0.1)
    assert sum(part.width * part.height for part in plain) == 401 * 300
    for part, other in zip(plain, wide, strict=True):
        assert other.x <= part.x and other.x + other.width >= part.x + part.width
        assert crop.x <= other.x and other.x + other.width <= crop.x + crop.width
        assert (other.width, other.height) == (part.width + 20, part.height + 15)


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("The red mug is most likely to appear on the wooden table.", "wooden table"),
        ("The red mug is most likely to appear next to the red mug rack.", "red mug rack"),
        ("most likely to appear on the street or the sidewalk.", "street"),
        ("The red mug is most likely to appear at the crosswalk, next to the light.", "crosswalk"),
        ("The red mug is on the shelf", "shelf"),
        ("on top of the car that is parked", "car that is parked"),
        ("In the child's hand.", "child's hand"),
        ("The red mug is most likely to appear there.", None),
        ("the red mug", None),
        ("", None),
        (".", None),
    ],
)
def test_a_place_is_named_without_a_parser(answer, phrase):
    assert cue_phrase(answer, "red mug") == phrase


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("mug", "Find the mug now."),
        ("the mug", "Find the mug now."),
        ("The mug.", "Find the mug now."),
        ("a mug", "Find a mug now."),
        ("An  old mug", "Find an old mug now."),
        ("my mug", "Find my mug now."),
        ("the man's mug", "Find the man's mug now."),
        ("man's mug", "Find the man's mug now."),
        ("two mugs", "Find two mugs now."),
        ("mugs", "Find the mugs now."),
        ("theatre", "Find the theatre now."),
        ("{mug}", "Find the {mug} now."),
    ],
)
def test_a_target_with_a_determiner_of_its_own_is_asked_for_without_another(phrase, asked):
    assert question_about("Find the {} now.", phrase) == asked


@pytest.mark.parametrize("phrase", ["", " ", "."])
def test_an_empty_target_is_not_asked_for(phrase):
    with pytest.raises(ValueError, match="target: expected the name"):
        question_about("Find the {} now.", phrase)


@pytest.mark.parametrize("target", ["the red mug", "a red mug", "Red mug"])
def test_the_article_of_a_target_does_not_hide_its_place(target):
    assert cue_phrase("The red mug is on the table.", target) == "table"
    assert cue_phrase("the red mug.", target) is None


def test_an_answer_without_a_place_leaves_the_targets_own_heat():
    content = world((1300, 900, 30, 30), heat=2.0) | {"answer": "there"}
    found, _ = look(content)
    assert [visit.cue for visit in found.visits if visit.cue] == ["none"] * sum(
        v.cue is not None for v in found.visits
    )
    assert found.calls["ask"] and not found.calls["locate_cue"]
    without, _ = look(content, contextual_cue=False)
    assert without.calls["ask"] == 0
    assert [visit.crop for visit in without.visits] == [visit.crop for visit in found.visits]


class Broken:
    """A model whose one output is given."""

    def __init__(self, scores, boxes, heat):
        self.output = Located(np.array(scores), np.array(boxes), np.array(heat))

    def locate(self, crops, texts):
        return [self.output] * len(crops)


BOX = [[0.1, 0.1, 0.2, 0.2]]
BAD = [
    (lambda: look(world((1, 1, 5, 5)), target=" "), "target: expected the name of what is searched"),
    (lambda: search(Blank((0, 5)), "cup", None), "picture: expected at least one pixel"),
    (lambda: search(Blank(SIZE), "cup", Broken([0.5], BOX, [[np.nan]])), r"crop \[0, 0, 1600, 1200\].* not finite"),
    (lambda: search(Blank(SIZE), "cup", Broken([np.nan], BOX, [[0.0]])), "not finite"),
    (lambda: search(Blank(SIZE), "cup", Broken([0.5, 0.5], BOX, [[0.0]])), r"expected scores \(n,\), boxes \(n, 4\)"),
    (lambda: SearchSettings(confidence_high=1.5), "confidence_high: expected 0 to 1, got 1.5"),
    (lambda: SearchSettings(max_crops=0), "max_crops: expected 1 to inf, got 0"),
    (lambda: SearchSettings(crops_at_once=0), "crops_at_once: expected 1"),
    (lambda: SearchSettings(overlap=0.9), "overlap: expected 0 to 0.5"),
    (lambda: SearchSettings(instances="some"), "instances: expected first or all, got 'some'"),
    (lambda: LargePicture("no/such.png"), "no/such.png: cannot be read as a picture"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_boxes_outside_a_crop_and_reversed_corners_are_put_right():
    found = search(Blank(SIZE), "cup", Broken([0.9], [[1.5, 0.8, 0.5, -0.2]], [[1.0]]))
    assert found.box == pytest.approx((800.0, 0.0, 1600.0, 960.0))


def test_the_trace_is_json():
    found, _ = look(world((1300, 900, 30, 30)))
    trace = json.loads(json.dumps(found.to_json()))
    assert trace["found"] and trace["visits"][0]["crop"] == [0, 0, *SIZE]
    assert trace["queue"][0][0] == "put" and len(trace["visits"]) == found.path_length


# ---------------------------------------------------------------- pixels


@pytest.fixture(scope="module")
def large():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((2000, 1500), Image.Resampling.BICUBIC)


def test_crops_of_a_large_picture(large):
    picture = LargePicture(large)
    exact = picture.read(Crop(300, 200, 100, 60), 128)
    np.testing.assert_array_equal(np.asarray(exact), np.asarray(large.crop((300, 200, 400, 260))))
    small = picture.read(Crop(0, 0, 2000, 1500), 200)
    assert small.size == (200, 150)
    difference = np.asarray(small, float) - np.asarray(large.resize((200, 150), Image.Resampling.BOX), float)
    assert np.abs(difference).mean() < 1
    assert picture.read(Crop(0, 0, 2000, 1), 100).size == (100, 1)


def test_a_search_holds_no_more_than_crops(large):
    picture = LargePicture(large)
    tracemalloc.start()
    picture.read(Crop(0, 0, *picture.size), 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.6 * 3 * 2000 * 1500  # bytes of the picture


def test_the_drawing_shows_crops_and_what_was_found(large):
    picture = LargePicture(large)
    found, _ = look(world((1300, 900, 30, 30)), size=picture.size)
    sheet = np.asarray(draw_search(picture, found))
    again = np.asarray(draw_search(picture, found))
    np.testing.assert_array_equal(sheet, again)
    nothing, _ = look(world((10, 10, 5, 5), gain=1.0), size=picture.size)
    assert draw_search(picture, nothing).size[0] == sheet.shape[1]


# ---------------------------------------------------------------- Sa2VA as the model


def prediction(logits, scores):
    return SimpleNamespace(mask_logits=np.array(logits, np.float32)[:, None], scores=np.array(scores, np.float32))


def test_candidates_are_the_parts_of_the_masks():
    logits = np.full((1, 16, 32), -5.0)
    logits[0, 2:6, 4:8], logits[0, 10:14, 20:30] = 8.0, 2.0
    found = located(prediction(logits, [0.8]))
    assert len(found.scores) == 2 and found.heat.max() == 8 and found.heat.min() == 0
    best = int(found.scores.argmax())
    np.testing.assert_allclose(found.boxes[best], [4 / 32, 2 / 16, 8 / 32, 6 / 16])
    assert found.scores[best] == pytest.approx(0.8 / (1 + np.exp(-8.0)), rel=1e-5)
    with_object_score = SimpleNamespace(**vars(prediction(logits, [0.8])), object_scores=np.array([0.7]))
    scores = {name: located(with_object_score, name).scores for name in CONFIDENCES}
    np.testing.assert_allclose(scores["iou"], found.scores)
    np.testing.assert_allclose(scores["mask"], found.scores / 0.8, rtol=1e-6)
    assert scores["object_score"].max() == pytest.approx(0.7)
    assert scores["object_score"].argmax() == best and scores["object_score"].min() < 0.65
    nothing = located(prediction(np.zeros((0, 16, 16)), []))
    assert len(nothing.scores) == 0 and nothing.heat.max() == 0


def test_the_locator_gives_the_model_small_crops(large):
    calls = []

    def segment(image, text, answer):
        calls.append((image, text, answer))
        return [prediction(np.zeros((1, 16, 16)), [0.1]) for _ in image]

    locator = Sa2VALocator(SimpleNamespace(segment=segment), side=64)
    picture = LargePicture(large)
    settings = SearchSettings(minimum_size=900, contextual_cue=False, crops_at_once=4)
    found = search(picture, "red cup", locator, settings)
    images = [image for batch, *_ in calls for image in batch]
    assert len(images) == len(found.visits) == 5 and max(max(image.size) for image in images) == 64
    assert calls[0][1] == ["Please segment the red cup in this image."] and len(calls) == 2
