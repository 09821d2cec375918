"""Masks: whatever form comes in, the same pixels come out; garbage never does.

Run: pytest tests/test_masks.py
"""

import numpy as np
import pytest
from pycocotools import mask as coco

from sa2va_hf import masks


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 40, 2)
        yield rng.random((height, width)) < rng.choice([0, 0.02, 0.3, 0.5, 0.98, 1])


def block(height, width, y0, x0, y1, x1):
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


# ---------------------------------------------------------------- RLE


def test_encode_then_decode_is_the_identity_and_area_and_box_agree_with_the_pixels():
    for mask in random_masks(300):
        rle = masks.encode(mask)
        assert isinstance(rle["counts"], str) and rle["size"] == list(mask.shape)
        assert np.array_equal(masks.decode(rle), mask)
        assert masks.area(rle) == mask.sum()
        assert masks.rle_to_box(rle) == masks.mask_to_box(mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools.mask.decode
def test_own_parser_agrees_with_pycocotools():
    for mask in random_masks(200, seed=1):
        rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert np.array_equal(masks.decode(rle), coco.decode(rle).astype(bool))
        assert masks.area(rle) == int(coco.area(rle))


def test_a_box_from_runs_is_the_box_of_the_pixels():
    rng = np.random.default_rng(3)
    for _ in range(300):  # blocks too: in noise nearly every box is the whole picture
        height, width = rng.integers(1, 12, 2)
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask = block(height, width, y0, x0, y1, x1) & (rng.random((height, width)) < rng.choice([0.3, 1]))
        assert masks.rle_to_box(masks.encode(mask)) == masks.mask_to_box(mask)
    assert masks.rle_to_box({"size": [2, 3], "counts": [2, 0, 1, 1, 2]}) == (1.0, 1.0, 2.0, 2.0)  # an empty run
    with pytest.raises(ValueError, match="they fill 5"):
        masks.rle_to_box({"size": [2, 3], "counts": [2, 3]})


def test_str_bytes_and_list_counts_are_one_mask():
    for mask in random_masks(50, seed=2):
        flat = mask.flatten(order="F").astype(int)
        changes = np.flatnonzero(np.diff(np.concatenate(([0], flat)))).tolist()
        runs = np.diff([0, *changes, flat.size]).tolist()
        compressed = masks.encode(mask)
        packed = {"size": compressed["size"], "counts": compressed["counts"].encode()}
        listed = {"size": tuple(mask.shape), "counts": runs}
        for rle in (compressed, packed, listed):
            assert np.array_equal(masks.decode(rle), mask)
            assert masks.normalize(rle) == compressed


def test_decoded_mask_is_an_ordinary_writable_array():
    mask = masks.decode(masks.encode(np.ones((3, 5), dtype=bool)))
    mask[0, 0] = False
    assert mask.flags["C_CONTIGUOUS"] and mask.sum() == 14


GOOD = masks.encode(block(20, 30, 3, 4, 15, 25))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [20, 30], "counts": ""}, "counts is empty"),
        ({"size": [20, 30], "counts": "hello world"}, "not of the RLE alphabet"),
        ({"size": [20, 30], "counts": "日本"}, "not of the RLE alphabet"),
        ({"size": [20, 30], "counts": "`"}, "ends within a number"),
        ({"size": [20, 30], "counts": GOOD["counts"][:-6]}, "must fill the size 20 x 30 = 600 pixels, they fill"),
        ({"size": [20, 31], "counts": GOOD["counts"]}, "must fill the size 20 x 31 = 620 pixels, they fill 600"),
        ({"size": [20, 30], "counts": "P" * 12 + "0"}, "written with 13 characters"),
        ({"size": [20, 30], "counts": [700, -100]}, "negative length"),
        ({"size": [20, 30], "counts": [600.0]}, "a list of integers"),
        ({"size": [20, 30], "counts": None}, "must be a str, bytes or a list"),
        ({"size": [20, 30]}, "keys size and counts, got \\['size'\\]"),
        ("abc", "must be a dict"),
        ({"size": [20], "counts": GOOD["counts"]}, r"\[height, width\]"),
        ({"size": [0, 30], "counts": "0"}, "size must be positive"),
    ],
)
def test_garbage_is_refused_with_the_reason(rle, message):
    for function in (masks.decode, masks.area, masks.normalize):
        with pytest.raises(ValueError, match=message):
            function(rle)


@pytest.mark.parametrize("mask", [np.zeros((2, 3, 4), bool), np.zeros((0, 4), bool), np.full((2, 2), 255)])
def test_encode_refuses_what_is_no_mask(mask):
    with pytest.raises(ValueError, match="a mask must"):
        masks.encode(mask)


# ---------------------------------------------------------------- polygons and other segmentations

SQUARE = [0, 0, 10, 0, 10, 10, 0, 10]


def test_overlapping_polygons_do_not_add_up():
    rle = masks.from_polygons([SQUARE, [5, 5, 15, 5, 15, 15, 5, 15]], 20, 20)
    assert masks.area(rle) == 100 + 100 - 25
    assert masks.from_polygons([SQUARE, SQUARE], 20, 20) == masks.from_polygons([SQUARE], 20, 20)


def test_a_polygon_covers_what_it_outlines():
    expected = block(20, 30, 0, 0, 10, 10)
    assert np.array_equal(masks.decode(masks.from_polygons([SQUARE], 20, 30)), expected)
    points = [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]  # the form labelme writes
    assert np.array_equal(masks.decode(masks.from_polygons([points], 20, 30)), expected)


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[1, 1, 5, 5]], "polygon 0 has 2 points: at least 3"),
        ([SQUARE, [1, 1]], "polygon 1 has 1 points: at least 3"),
        ([[1, 1, 5, 5, 9]], "has 5 values: x and y must come in pairs"),
        ([[0, 0, 9, 0, float("nan"), 9]], "not finite"),
        ([["a", "b"] * 3], "must hold only numbers"),
        ([7], "must be a list of numbers"),
        ([], "non-empty list"),
        ([[0, 0, 300, 0, 300, 10]], "spans x = 0 to 300, but the picture is 30 x 20"),
        ([[0, 0, 10, 0, 10, -40]], "spans y = -40 to 0, but the picture is 30 x 20"),
    ],
)
def test_bad_polygons_are_refused_with_the_reason(polygons, message):
    with pytest.raises(ValueError, match=message):
        masks.from_polygons(polygons, 20, 30)


def test_every_form_of_a_segmentation_gives_the_same_mask():
    mask = block(20, 30, 0, 0, 10, 10)
    rle = masks.encode(mask)
    left, right = masks.encode(block(20, 30, 0, 0, 10, 6)), masks.encode(block(20, 30, 0, 4, 10, 10))
    uncompressed = {"size": [20, 30], "counts": [0] + [10, 10] * 9 + [10, 10 + 400]}
    for form in ([SQUARE], SQUARE, rle, uncompressed, [left, right]):
        assert masks.from_segmentation(form, 20, 30) == rle
    assert masks.area(masks.from_segmentation([], 20, 30)) == 0
    assert masks.from_segmentation(None, 20, 30) is None


def test_a_segmentation_of_another_size_is_refused():
    for form in (GOOD, [GOOD]):
        with pytest.raises(ValueError, match="the mask is 30 x 20 .* but the picture is 20 x 30"):
            masks.from_segmentation(form, 30, 20)
    with pytest.raises(ValueError, match="polygons, an RLE or a list of RLEs"):
        masks.from_segmentation("abc", 20, 30)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_single_pixels_are_read_from_the_runs(density):
    mask = np.random.default_rng(1).random((37, 53)) < density
    rle = masks.encode(mask)
    for count in (16, 37, 60):  # fewer than there are, all but a few columns, some twice
        rows, columns = np.arange(count) * 37 // count, np.arange(count) * 53 // count
        read = masks.decode_at(rle, masks.spread(37, count), masks.spread(53, count))
        assert np.array_equal(read, mask[np.ix_(rows, columns)])
    assert np.array_equal(masks.decode_at(rle, masks.spread(37, 37), masks.spread(53, 53)), mask)


# ---------------------------------------------------------------- boxes and overlap


def test_box_is_tight_and_exclusive():
    assert masks.mask_to_box(block(20, 30, 3, 4, 15, 25)) == (4, 3, 25, 15)
    assert masks.mask_to_box(np.zeros((4, 4), bool)) is None
    assert masks.mask_to_box(np.ones((4, 5), bool)) == (0, 0, 5, 4)


def test_iou():
    left, both = block(4, 8, 0, 0, 4, 4), np.ones((4, 8), bool)
    nothing = np.zeros((4, 8), bool)
    assert masks.iou(left, both) == 0.5 and masks.iou(both, both) == 1 and masks.iou(left, ~left) == 0
    assert masks.iou(nothing, nothing) == 1 and masks.iou(nothing, left) == 0
    with pytest.raises(ValueError, match="one shape"):
        masks.iou(left, both.T)
