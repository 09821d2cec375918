"""V*Bench with visual search: what is shown and asked after it, and how the search itself is scored.

Run: pytest tests/evaluation/test_searching.py
"""

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.data.schema import Object, Sample
from sa2va_hf.evaluation import searching
from sa2va_hf.evaluation.searching import around, focus, search_figures
from sa2va_hf.search import Located


class Sees:
    """A locator that finds a target of 40 x 40 pixels at one place in crops of at most 400 pixels."""

    def __init__(self, *places):
        self.places = dict(places)

    def locate(self, crops, texts):
        return [self._locate(crop, text) for crop, text in zip(crops, texts, strict=True)]

    def ask(self, crops, questions):
        return [""] * len(crops)

    def _locate(self, crop, text):
        heat = np.full((2, 2), 9.0)
        x, y = self.places.get(text, (-1, -1))
        inside = crop.x <= x < crop.x + crop.width and crop.y <= y < crop.y + crop.height
        if not inside or max(crop.width, crop.height) > 450:
            return Located(np.zeros(0), np.zeros((0, 4)), heat)
        corners = [x - 20 - crop.x, y - 20 - crop.y, x + 20 - crop.x, y + 20 - crop.y]
        return Located(np.array([0.9]), np.divide([corners], [crop.width, crop.height] * 2), heat)


@pytest.fixture
def picture():
    return Image.new("RGB", (1200, 900), "grey")


def test_the_part_with_the_targets_is_shown(picture, monkeypatch):
    monkeypatch.setattr(searching, "Sa2VALocator", lambda _: Sees(("red cup", (330, 300)), ("spoon", (500, 320))))
    shown, question, records = focus(None, picture, "<image>\nIs it left?", ["red cup", "spoon", "fork"])
    assert shown.size == (252, 224)  # 1.2 x 210, and the least
    assert question == (
        "<image>\nAdditional visual information to focus on: red cup at location [0.083,0.366,0.242,0.545]; "
        "spoon at location [0.758,0.455,0.917,0.634].\nIs it left?"
    )
    assert [record["found"] for record in records] == [True, True, False]


def test_without_a_target_nothing_changes(picture, monkeypatch):
    monkeypatch.setattr(searching, "Sa2VALocator", lambda _: Sees())
    shown, question, records = focus(None, picture, "<image>\nIs it left?", ["fork"])
    assert shown is picture and question == "<image>\nIs it left?" and records[0]["box"] is None


@pytest.mark.parametrize(
    ("boxes", "part"),
    [
        ([(100, 100, 140, 140)], (8, 8, 232, 232)),
        ([(0, 0, 40, 40)], (0, 0, 224, 224)),  # moved, not cut: the target keeps its surroundings
        ([(1180, 880, 1200, 900)], (976, 676, 1200, 900)),
        ([(100, 100, 400, 200), (500, 100, 600, 300)], (50, 80, 650, 320)),
        ([(0, 0, 1200, 900)], (0, 0, 1200, 900)),
    ],
)
def test_the_part_around_boxes(boxes, part):
    assert around(boxes, 1200, 900) == part


def test_the_search_is_scored_by_its_first_box():
    objects = [Object([None], [(0.0, 0.0, 10.0, 10.0)], name) for name in ("a", "b")]
    sample = Sample("x", "question", 20, 20, frames=["x.jpg"], objects=objects)
    record = {"found": True, "crops": 4}
    records = [record | {"target": "a", "box": (0, 0, 10, 9)}, record | {"target": "b", "box": (0, 0, 10, 5)}]
    found = search_figures([sample], [records])
    assert found == {"targets": 2, "search accuracy": 50.0, "search length": 4}  # an IoU of 0.5 is a miss
    assert search_figures([sample], [[]]) == {}
    missed = {"target": "a", "box": None, "found": False, "crops": 21}
    assert search_figures([sample], [[missed]]) == {"targets": 1, "search accuracy": 0.0}
