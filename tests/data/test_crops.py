"""Crops with and without a target: what is in them, and what is known of it.

Run: pytest tests/data/test_crops.py
"""

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.crops import Window, crops_of, find_pairs
from sa2va_hf.data.media import load_image
from sa2va_hf.data.schema import Expression, Object, Sample, validate
from sa2va_hf.data.sources import SOURCES

SIZE = (96, 64)
BOXES = [(10, 6, 24, 18), (70, 40, 90, 60), (2, 2, 92, 62)]  # two small objects, and one that fills the picture


def sample(name="s", boxes_only=False, kind="category"):
    things = []
    for box in BOXES:
        mask = np.zeros(SIZE[::-1], dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        things.append(Object([None if boxes_only else masks.encode(mask)], [tuple(map(float, box))]))
    texts = (("every cup", [0, 1]), ("dog", [0]), ("table", [2]), ("ghost", []))
    expressions = [Expression(text, targets, kind) for text, targets in texts]
    return Sample(name, "referring", *SIZE, frames=["x.png"], objects=things, expressions=expressions)


def picture():
    """Each pixel tells its place."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return Image.fromarray(np.stack([columns * 2, rows * 3, rows * 0], -1).astype(np.uint8))


@pytest.mark.parametrize("boxes_only", [False, True])
def test_a_pair_has_the_target_as_a_whole_and_not_at_all(boxes_only):
    base, seen = sample(boxes_only=boxes_only), set()
    for name in range(12):
        base.id = str(name)
        pairs = find_pairs(base, 3, 8)
        assert {pair.expression for pair in pairs} <= {0, 1} and pairs  # the table is in every crop, the ghost in none
        for here, away in zip(*[iter(crops_of(base, pairs, picture(), "mask"))] * 2, strict=True):
            validate(here), validate(away)
            assert (here.width, here.height) == (away.width, away.height)
            sides = [(box[2] - box[0], box[3] - box[1]) for thing in here.objects for box in thing.boxes if box]
            wholes = [(b[2] - b[0], b[3] - b[1]) for b in (BOXES[n] for n in range(len(here.objects)))]
            assert set(sides) & set(wholes)
            empty = [(0.0, 0.0, 0.0, 0.0)] if boxes_only else [None]
            assert all(thing.boxes == empty for thing in away.objects)
            assert boxes_only or all(masks.area(thing.masks[0]) == 0 for thing in away.objects)
            assert [one.expressions[0].kind for one in (here, away)] == ["present", "absent"]
            seen.add((here.width, here.height))
    assert seen == {(48, 32), (24, 16)}


def test_a_crop_shows_its_part_of_the_picture():
    base = sample()
    (pair,) = [pair for pair in find_pairs(base, 3, 8) if pair.expression == 1]
    here, _ = crops_of(base, [pair], picture(), "mask")
    pixels, window = np.asarray(load_image(here.frames[0])).astype(int), pair.present
    assert pixels.shape == (window.height, window.width, 3)
    np.testing.assert_allclose(pixels, np.asarray(picture().crop(window.box)), atol=6)  # JPEG
    (box,), (x0, y0, x1, y1) = here.objects[0].boxes, BOXES[0]
    assert box == (x0 - window.x, y0 - window.y, x1 - window.x, y1 - window.y)


def test_which_pictures_have_pairs():
    assert find_pairs(sample(), 2, 33) == []  # no crop is that large
    assert find_pairs(sample(kind="relation"), 2, 8) == []  # a crop changes who is the leftmost
    assert len(find_pairs(sample(), 1, 8)) == 1 and find_pairs(sample(), 2, 8) == find_pairs(sample(), 2, 8)
    unknown = sample(boxes_only=True)
    for thing in unknown.objects:
        thing.boxes = [None]
    assert find_pairs(unknown, 2, 8) == []


def test_an_absent_target_has_an_empty_mask_or_is_denied_in_words():
    (pair, *_), base = find_pairs(sample(), 1, 8), sample()
    for absent, targets in (("mask", True), ("words", False)):
        here, away = crops_of(base, [pair], picture(), absent)
        assert here.expressions[0].targets and bool(away.expressions[0].targets) == targets


def test_boxes_are_cut_at_the_window():
    window = Window(10, 20, 30, 40)
    assert window.cut((0, 0, 15, 70)) == (0.0, 0.0, 5.0, 40.0)
    assert window.cut((40, 20, 50, 30)) is None


def test_of_any_source_of_pictures():
    options = {"base": "shapes", "count": 8, "minimum_size": 32, "min_objects": 2}
    found = list(SOURCES["target_crops"](None, "val", **options))
    assert len(found) >= 8 and found == list(SOURCES["target_crops"](None, "val", **options))
    assert {one.expressions[0].kind for one in found[::2]} == {"present"}
    assert {one.source for one in found} == {"target_crops"}
    with pytest.raises(ValueError, match="absent one of mask, words, got 1, 32 and 'x'"):
        list(SOURCES["target_crops"](None, "val", absent="x", **options))
