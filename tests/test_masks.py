"""Masks: whatever form comes in, the same pixels come out; garbage never does.

Run: pytest tests/test_masks.py
"""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sa2va_hf import masks


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 40, 2)
        yield rng.random((height, width)) < rng.choice([0, 0.02, 0.3, 0.5, 0.98, 1])


def png(array, palette=None):
    image = Image.fromarray(array)
    if palette is not None:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
    rows, columns = np.arange(16) * 37 // 16, np.arange(16) * 53 // 16
    rle = masks.encode(mask)
    assert np.array_equal(masks.decode_at(rle, rows, columns), mask[np.ix_(rows, columns)])
    assert np.array_equal(masks.decode_at(rle, np.arange(37), np.arange(53)), mask)


# ---------------------------------------------------------------- mask pictures


def test_palette_indices_are_read_raw_whatever_their_colours():
    ids = np.zeros((6, 8), dtype=np.uint8)
    ids[1:3, 2:5], ids[4, 4] = 2, 7
    for palette in ([0, 0, 0] * 256, list(range(256)) * 3):
        data = png(ids, palette=palette)
        assert Image.open(io.BytesIO(data)).mode == "P"
        assert np.array_equal(masks.read_ids(data), ids)
        assert np.array_equal(masks.from_png(data, object_id=7), ids == 7)
        with pytest.raises(ValueError, match="holds the values 2, 7, not one mask"):
            masks.from_png(data)
        assert np.array_equal(masks.read_objects(data), ids)


def test_grey_one_bit_sixteen_bit_and_grey_saved_in_colour_are_read():
    mask = block(6, 8, 1, 2, 4, 6)
    grey = mask.astype(np.uint8) * 255
    colour = np.stack([grey] * 3, axis=-1)
    opaque = np.concatenate([colour, np.full((6, 8, 1), 255, np.uint8)], axis=-1)
    for data in (png(grey), png(mask), png(mask.astype(np.uint16) * 300), png(colour), png(opaque)):
        assert np.array_equal(masks.from_png(data), mask)


def test_colours_and_jpeg_are_refused(tmp_path):
    colour = np.zeros((6, 8, 3), dtype=np.uint8)
    colour[2, 2] = 200, 10, 10
    with pytest.raises(ValueError, match="colour picture .* one channel"):
        masks.from_png(png(colour))
    path = tmp_path / "mask.jpg"
    Image.fromarray(colour[..., 0]).save(path)
    with pytest.raises(ValueError, match="mask.jpg is a JPEG"):
        masks.read_ids(path)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="mask.jpg cannot be read as a picture"):
        masks.from_png(path)


def soft(kind):
    """A mask picture of 64 x 48 with a white box, after what tools do to it."""
    box = np.zeros((48, 64), np.uint8)
    box[10:30, 10:40] = 255
    if kind == "anti-aliased":
        large = Image.fromarray(np.kron(box, np.ones((4, 4), np.uint8)))
        return np.asarray(large.rotate(7, resample=Image.BICUBIC).resize((64, 48), Image.LANCZOS))
    if kind == "fringe lines":
        box[9, 10:40], box[30, 10:40] = 64, 32
    elif kind == "one fringe line":
        box[9, 10:40] = 64
    elif kind == "ids and void":
        box[40:44, :40], box[44:, :40] = 1, 2
    elif kind == "two greys":
        box[10:30, 40:60] = 128
    elif kind == "ramp":
        box[:] = np.arange(48 * 64).reshape(48, 64) % 256
    elif kind == "ids":
        box[10:30, 10:40], box[40:44] = 1, 2
    elif kind == "empty":
        box[:] = 0
    return box


@pytest.mark.parametrize(
    ("kind", "whole", "objects"),
    [
        ("plain", 600, {255: 600}),
        ("anti-aliased", 597, {255: 597}),
        ("fringe lines", 600, {255: 600}),
        ("one fringe line", 600, {255: 600}),
        ("empty", 0, {}),
        ("ids", "holds the values 1, 2, not one mask", {1: 600, 2: 256}),
        ("ids and void", "holds the values 1, 2, 255, not one mask", {1: 160, 2: 160, 255: 600}),
        ("two greys", "holds the values 128, 255, not one mask", "128, 255: which of them are objects is not known"),
        ("ramp", "1, 2, 3, .* and 235 more, not one mask", "its edges look blurred"),
    ],
)
def test_one_rule_for_grey_mask_pictures(kind, whole, objects):
    """A phrase for all of it: cut at 128, never 255 as void, or refused with the values. Ids: as they are declared."""
    data = png(soft(kind))
    if isinstance(whole, int):
        assert masks.read_mask(data).sum() == whole
    else:
        with pytest.raises(ValueError, match=whole):
            masks.read_mask(data)
    if isinstance(objects, dict):
        values, counts = np.unique(masks.read_objects(data), return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert {value: count for value, count in found.items() if value} == objects
    else:
        with pytest.raises(ValueError, match=objects):
            masks.read_objects(data)


def test_a_mask_that_was_a_jpeg_is_the_mask(tmp_path):
    """Also as a JPEG itself, where one mask is meant; ids of a JPEG are refused."""
    Image.fromarray(soft("plain")).save(tmp_path / "m.jpg", quality=50)
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
    for file in ("m.jpg", "m.png"):
        assert np.array_equal(masks.read_mask(tmp_path / file), soft("plain") > 0)
        assert set(np.unique(masks.read_objects(tmp_path / file)).tolist()) == {0, 255}


def test_ids_beyond_255_and_ids_of_a_palette_are_kept():
    ids = np.zeros((6, 8), np.uint16)
    ids[1, 1], ids[2, 2:4] = 300, 7
    assert np.array_equal(masks.read_objects(png(ids)), ids)
    declared = np.zeros((6, 8), np.uint8)
    declared[0], declared[1], declared[2:5] = 64, 32, 255
    colours = np.random.default_rng(0).integers(0, 256, 768).tolist()
    assert np.array_equal(masks.read_objects(png(declared, palette=colours)), declared)
    greys = sorted(list(range(256)) * 3)
    declared[0, 4:], declared[1] = 0, 0
    assert masks.read_mask(png(declared, palette=greys)).sum() == 24  # a palette of greys is a grey picture


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


# ---------------------------------------------------------------- connected components


def flooded(mask):
    """Components by the obvious way: from pixel to pixel, to all eight neighbours."""
    labels, count = np.zeros(mask.shape, int), 0
    for y, x in np.argwhere(mask):
        if labels[y, x]:
            continue
        count += 1
        todo = [(y, x)]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return labels


def test_components_are_what_flooding_finds():
    for mask in random_masks(150):
        assert (masks.components(mask) == flooded(mask)).all()


def test_a_winding_line_is_one_component():
    mask = np.zeros((41, 41), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True  # a snake
    assert masks.components(mask).max() == 1
    mask[20, 20] = False
    assert masks.components(mask).max() == 2


def test_boxes_and_areas_of_the_pieces_largest_first():
    for mask in random_masks(60, seed=1):
        labels, found = flooded(mask), masks.masks_to_boxes(mask)
        assert [one.area for one in found] == sorted((np.bincount(labels[mask])[1:].tolist()), reverse=True)
        for box, area, number in found:
            assert area == (labels == number).sum() and box == masks.mask_to_box(labels == number)
        large = [one for one in found if one.area >= 3]
        assert masks.masks_to_boxes(mask, min_area=3) == large
        assert masks.masks_to_boxes(mask, min_area=3, keep="largest") == large[:1]
        kept = np.isin(labels, [one.number for one in large]) & mask
        assert (masks.keep_components(mask, min_area=3) == kept).all()


def test_unusable_input_for_components_is_named():
    with pytest.raises(ValueError, match=r"must be bool of the shape \(height, width\), got uint8 \(2, 3\)"):
        masks.masks_to_boxes(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="keep must be 'all' or 'largest', got 'first'"):
        masks.masks_to_boxes(np.zeros((2, 3), bool), keep="first")
