"""Mask pictures as tools write them: palettes, greys, soft edges; one rule, and refusals that list the values.

Run: pytest tests/test_mask_pictures.py
"""

import io

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import mask_pictures


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


def test_palette_indices_are_read_raw_whatever_their_colours():
    ids = np.zeros((6, 8), dtype=np.uint8)
    ids[1:3, 2:5], ids[4, 4] = 2, 7
    for palette in ([0, 0, 0] * 256, list(range(256)) * 3):
        data = png(ids, palette=palette)
        assert Image.open(io.BytesIO(data)).mode == "P"
        assert np.array_equal(mask_pictures.read_ids(data), ids)
        assert np.array_equal(mask_pictures.from_png(data, object_id=7), ids == 7)
        with pytest.raises(ValueError, match="holds the values 2, 7, not one mask"):
            mask_pictures.from_png(data)
        assert np.array_equal(mask_pictures.read_objects(data), ids)


def test_grey_one_bit_sixteen_bit_and_grey_saved_in_colour_are_read():
    mask = block(6, 8, 1, 2, 4, 6)
    grey = mask.astype(np.uint8) * 255
    colour = np.stack([grey] * 3, axis=-1)
    opaque = np.concatenate([colour, np.full((6, 8, 1), 255, np.uint8)], axis=-1)
    for data in (png(grey), png(mask), png(mask.astype(np.uint16) * 300), png(colour), png(opaque)):
        assert np.array_equal(mask_pictures.from_png(data), mask)


def test_colours_and_jpeg_are_refused(tmp_path):
    colour = np.zeros((6, 8, 3), dtype=np.uint8)
    colour[2, 2] = 200, 10, 10
    with pytest.raises(ValueError, match="colour picture .* one channel"):
        mask_pictures.from_png(png(colour))
    with pytest.raises(ValueError, match="has transparent pixels .mode RGBA."):
        mask_pictures.from_png(png(np.concatenate([colour, colour[..., :1]], axis=-1)))
    path = tmp_path / "mask.jpg"
    Image.fromarray(colour[..., 0]).save(path)
    with pytest.raises(ValueError, match="mask.jpg is a JPEG"):
        mask_pictures.read_ids(path)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="mask.jpg cannot be read as a picture"):
        mask_pictures.from_png(path)


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
    elif kind == "half as bright":
        return soft("anti-aliased") // 2
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
        ("half as bright", "and 71 more, not one mask", "its edges look blurred: which of them are objects"),
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
        assert mask_pictures.read_mask(data).sum() == whole
    else:
        with pytest.raises(ValueError, match=whole):
            mask_pictures.read_mask(data)
    if isinstance(objects, dict):
        values, counts = np.unique(mask_pictures.read_objects(data), return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert {value: count for value, count in found.items() if value} == objects
    else:
        with pytest.raises(ValueError, match=objects):
            mask_pictures.read_objects(data)


def test_a_mask_that_was_a_jpeg_is_the_mask(tmp_path):
    """Also as a JPEG itself, where one mask is meant; ids of a JPEG are refused."""
    Image.fromarray(soft("plain")).save(tmp_path / "m.jpg", quality=50)
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
    for file in ("m.jpg", "m.png"):
        assert np.array_equal(mask_pictures.read_mask(tmp_path / file), soft("plain") > 0)
        assert set(np.unique(mask_pictures.read_objects(tmp_path / file)).tolist()) == {0, 255}


def test_ids_beyond_255_and_ids_of_a_palette_are_kept():
    ids = np.zeros((6, 8), np.uint16)
    ids[1, 1], ids[2, 2:4] = 300, 7
    assert np.array_equal(mask_pictures.read_objects(png(ids)), ids)
    declared = np.zeros((6, 8), np.uint8)
    declared[0], declared[1], declared[2:5] = 64, 32, 255
    colours = np.random.default_rng(0).integers(0, 256, 768).tolist()
    assert np.array_equal(mask_pictures.read_objects(png(declared, palette=colours)), declared)
    greys = sorted(list(range(256)) * 3)
    declared[0, 4:], declared[1] = 0, 0
    assert mask_pictures.read_mask(png(declared, palette=greys)).sum() == 24  # a palette of greys is a grey picture
