"""Masks in every form a dataset brings them in, as one: compressed COCO run-length encoding (RLE).

The only importer of pycocotools. An RLE is `{"size": [height, width], "counts": str}`; runs go down the columns, start
with background, and fill the mask exactly. pycocotools reads a damaged string without complaint (and beyond its end),
so every RLE is parsed and checked here before it is used.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from sa2va_hf.boxes import Box


class RLE(TypedDict):
    """A compressed COCO mask: `size` is [height, width]; `counts` a str, not bytes, so that it is JSON and Arrow."""

    size: list[int]
    counts: str


MAX_RUN_CHARACTERS = 7  # 5 bits each: 2**34 pixels, more than any mask has
WHITE = 255  # the object in an 8-bit mask of one object; beside ids, pixels that do not count
FEW_IDS = 16  # ids from 1 to this are ids; more values, or larger ones beside 255, may be the edges of a grey mask


# ---------------------------------------------------------------- RLE <-> array


def encode(mask: Any) -> RLE:
    """A mask (H, W), bool or of zeros and ones, as RLE. ValueError for another shape, an empty side, other values."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a mask must have the shape (height, width) with both positive, got {mask.shape}")
    if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
        raise ValueError(f"a mask must be bool or hold only 0 and 1, got {mask.dtype} up to {mask.max()}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: dict) -> np.ndarray:
    """The bool mask (H, W) of an RLE whose counts are str, bytes or an uncompressed list of run lengths.

    ValueError when it is garbage, with the reason: the runs must fill the size exactly.
    """
    height, width = _size(rle)
    runs = _runs(rle)
    mask = np.zeros((height, width), dtype=bool)
    behind = int(runs[-1]) if len(runs) % 2 else 0  # background after the last pixel
    first, last = int(runs[0]) // height, width - behind // height
    if first >= last:
        return mask
    runs = runs.copy()  # of the columns that the mask covers: an object is small as a rule
    runs[0] -= first * height
    runs[-1] -= (width - last) * height
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    mask[:, first:last] = np.repeat(values, runs).reshape(last - first, height).T
    return mask


def decode_at(rle: dict, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`decode(rle)[np.ix_(rows, columns)]`, bool (len(rows), len(columns)), without painting the mask."""
    height, _ = _size(rle)
    ends = np.cumsum(_runs(rle))
    return np.searchsorted(ends, columns[None, :] * height + rows[:, None], side="right") % 2 == 1


def area(rle: dict) -> int:
    """Number of pixels of the mask. ValueError when the RLE is garbage."""
    return int(_runs(rle)[1::2].sum())


def normalize(rle: dict) -> RLE:
    """Any RLE (counts as str, bytes or list) as a checked compressed one. ValueError when it is garbage."""
    height, width = _size(rle)
    runs = _runs(rle)
    if isinstance(rle["counts"], str):
        return {"size": [height, width], "counts": rle["counts"]}
    if isinstance(rle["counts"], bytes):
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    packed = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def empty(height: int, width: int) -> RLE:
    """The mask without a pixel: "annotated as absent", unlike None, which is "not annotated"."""
    return normalize({"size": [height, width], "counts": [height * width]})


def _size(rle: dict) -> tuple[int, int]:
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        shown = sorted(map(str, rle)) if isinstance(rle, dict) else type(rle).__name__
        raise ValueError(f"an RLE must be a dict with the keys size and counts, got {shown}")
    size = rle["size"]
    if not isinstance(size, list | tuple | np.ndarray) or len(size) != 2 or not all(_is_int(side) for side in size):
        raise ValueError(f"an RLE's size must be [height, width] as integers, got {size!r}")
    if min(size) <= 0:
        raise ValueError(f"an RLE's size must be positive, got {list(size)}")
    return int(size[0]), int(size[1])


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _runs(rle: dict) -> np.ndarray:
    """Checked run lengths, int64: background first, alternating; they sum to height * width."""
    height, width = _size(rle)
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        runs = _unpack(counts)
    elif isinstance(counts, list | tuple | np.ndarray) and all(_is_int(run) for run in counts):
        try:
            runs = np.asarray(counts, dtype=np.int64)
        except OverflowError as error:
            raise ValueError(f"RLE garbage: its runs are from {min(counts)} to {max(counts)} pixels long") from error
    else:
        raise ValueError(f"an RLE's counts must be a str, bytes or a list of integers, got {type(counts).__name__}")
    if (runs < 0).any():
        raise ValueError(f"RLE garbage: run {int(np.argmax(runs < 0))} has the negative length {int(runs.min())}")
    if (total := int(runs.sum())) != height * width:
        raise ValueError(
            f"RLE garbage: counts must fill the size {height} x {width} = {height * width} pixels, they fill {total}"
        )
    return runs


def _unpack(counts: str | bytes) -> np.ndarray:
    """Run lengths of a compressed string: signed base-32 digits, low first, each run from the third on as difference
    to the run two before (pycocotools common/maskApi.c, rleFrString)."""
    raw = counts.encode("utf-8") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, dtype=np.uint8) - np.uint8(48)  # values below 48 wrap to above 63
    if len(digits) == 0:
        raise ValueError("RLE garbage: counts is empty")
    if digits.max() > 63:
        position = int(np.argmax(digits > 63))
        raise ValueError(
            f"RLE garbage: byte {raw[position : position + 1]!r} at {position} is not of the RLE alphabet"
        )
    last = (digits & 32) == 0  # the sixth bit says that the number continues
    if not last[-1]:
        raise ValueError(f"RLE garbage: counts of {len(raw)} characters ends within a number (cut off?)")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > MAX_RUN_CHARACTERS:
        raise ValueError(f"RLE garbage: a run is written with {lengths.max()} characters, more than a mask can need")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    digits = digits.astype(np.int64)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)  # sign bit of the last digit
    for first in (1, 2):  # run 2 is written as it is, so the differences start at 3 and 4
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


# ---------------------------------------------------------------- other forms -> RLE


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """The union of polygons `[x0, y0, x1, y1, ...]` (pixels, at least 3 points each), rastered as COCO does.

    Overlapping polygons do not add up and no polygon cuts a hole. ValueError for fewer than 3 points, an odd number of
    values, values that are not finite numbers, or points so far outside that they belong to a picture of another size.
    """
    if not isinstance(polygons, list | tuple) or not polygons:
        raise ValueError(f"polygons must be a non-empty list of [x, y, x, y, ...] lists, got {polygons!r:.80}")
    if min(height, width) <= 0 or height * width >= 2**32:  # pycocotools counts pixels in 32 bits
        raise ValueError(f"a picture of {width} x {height} (width x height) pixels cannot have polygons")
    checked = [_polygon(polygon, number, height, width) for number, polygon in enumerate(polygons)]
    merged = coco.merge(coco.frPyObjects(checked, height, width), intersect=False)
    return {"size": [int(height), int(width)], "counts": merged["counts"].decode("ascii")}


def _polygon(polygon: Sequence[float], number: int, height: int, width: int) -> list[float]:
    if not isinstance(polygon, list | tuple | np.ndarray):
        raise ValueError(f"polygon {number} must be a list of numbers [x, y, x, y, ...], got {polygon!r:.80}")
    if len(polygon) and isinstance(polygon[0], list | tuple | np.ndarray):  # [[x, y], [x, y], ...], as labelme writes
        if any(not isinstance(point, list | tuple | np.ndarray) or len(point) != 2 for point in polygon):
            raise ValueError(f"polygon {number} must be [x, y, x, y, ...] or [[x, y], ...], got {polygon!r:.80}")
        polygon = [value for point in polygon for value in point]
    if len(polygon) % 2:
        raise ValueError(f"polygon {number} has {len(polygon)} values: x and y must come in pairs")
    if len(polygon) < 6:
        raise ValueError(f"polygon {number} has {len(polygon) // 2} points: at least 3 are needed")
    try:
        values = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"polygon {number} must hold only numbers, got {polygon!r:.80}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"polygon {number} holds values that are not finite: {polygon!r:.80}")
    for axis, values_of_axis, side in (("x", values[0::2], width), ("y", values[1::2], height)):
        slack = max(0.1 * side, 16)  # annotators overshoot the edge; more than that is another picture's polygon
        low, high = values_of_axis.min(), values_of_axis.max()
        if low < -slack or high > side + slack:
            raise ValueError(
                f"polygon {number} spans {axis} = {low:g} to {high:g}, but the picture is {width} x {height}: "
                "is the mask of a picture of another size?"
            )
    return values.tolist()


def from_segmentation(segmentation: Any, height: int, width: int) -> RLE | None:
    """Any form of a COCO `segmentation` as RLE of height x width.

    Polygons, a compressed or uncompressed RLE, a list of RLEs (their union), `[]` (annotated as empty) or None
    (not annotated: None comes back). ValueError when it is none of these or of another size.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        return _sized(normalize(segmentation), height, width)
    if not isinstance(segmentation, list | tuple):
        raise ValueError(f"a segmentation must be polygons, an RLE or a list of RLEs, got {segmentation!r:.80}")
    if len(segmentation) == 0:
        return empty(height, width)
    if any(isinstance(part, dict) for part in segmentation):
        parts = [_sized(normalize(part), height, width) for part in segmentation]
        return union(parts, height, width)
    if isinstance(segmentation[0], int | float):
        segmentation = [segmentation]  # one flat polygon instead of a list of them
    return from_polygons(segmentation, height, width)


def union(rles: Sequence[dict], height: int, width: int) -> RLE:
    """The union of masks of one size; the empty mask when there are none. ValueError when a size differs."""
    parts = [_sized(normalize(rle), height, width) for rle in rles]
    if not parts:
        return empty(height, width)
    merged = coco.merge(parts, intersect=False)
    return {"size": [int(height), int(width)], "counts": merged["counts"].decode("ascii")}


def _sized(rle: RLE, height: int, width: int) -> RLE:
    if rle["size"] != [height, width]:
        raise ValueError(
            f"the mask is {rle['size'][1]} x {rle['size'][0]} (width x height) but the picture is {width} x {height}"
        )
    return rle


# ---------------------------------------------------------------- mask pictures -> array


class MaskPicture(NamedTuple):
    """A decoded mask picture, before it is decided what its values mean.

    values: int32 (H, W), the palette index or the grey value. palette: the values are indices of a palette of colours,
    which declares an id per object. lossy: the file is a JPEG. name: how messages call it.
    """

    values: np.ndarray
    palette: bool
    lossy: bool
    name: str


def read_ids(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """The values (H, W) of a mask picture as integers: the index of a palette PNG, the value of a grey or 1-bit one.

    For pictures whose values are declared: by a list of classes, a labels.json, or the id that is asked for. 16-bit
    ids are kept. Colours are never turned into a palette, since the indices would be invented.

    Raises:
        ValueError: no picture, a colour picture (unless red, green and blue are equal everywhere and nothing is
            transparent, which is grey saved in colour), or a JPEG, whose compression changes the values.
    """
    picture = open_mask(png)
    if picture.lossy:
        raise ValueError(f"{picture.name} is a JPEG, whose compression changes mask values: save masks as PNG")
    return picture.values


def read_mask(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """The one mask (H, W), bool, of a picture that a phrase or a file name describes as a whole.

    With one value beside 0, the mask is where that value is. A grey mask from 0 to 255 with soft edges (anti-aliased,
    resized, saved as JPEG in between) is cut at 128.

    Raises:
        ValueError: as `read_ids`, or the picture has several values that are not such edges; it lists them.
    """
    picture = open_mask(png)
    values, counts = _foreground(picture)
    if len(values) == 0 or (len(values) == 1 and not picture.lossy):
        return picture.values != 0
    if _is_soft(picture, values, counts):
        return _above_half(picture.values)
    raise ValueError(
        f"{picture.name} holds the values {_listed(values)}, not one mask: save it with 0 and 255 only, or say which "
        'value is meant ({"png": FILE, "id": 3}, or ids in labels.json)'
    )


def read_objects(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """Ids (H, W) of the objects of a mask picture: 0 background, and 255 beside other ids is void.

    A grey mask from 0 to 255 with soft edges is one object, of the id 255.

    Raises:
        ValueError: as `read_ids`, or it cannot be told whether the values are ids or soft edges; it lists them.
    """
    picture = open_mask(png)
    values, counts = _foreground(picture)
    if _is_soft(picture, values, counts):
        return np.where(_above_half(picture.values), 255, 0).astype(np.int32)
    others = values[values != WHITE]
    mixed = not picture.palette and 0 < len(others) < len(values) and others.max() > FEW_IDS
    if mixed or (picture.lossy and len(values)):
        blurred = "its edges look blurred: " if len(values) > FEW_IDS else ""
        raise ValueError(
            f"{picture.name} holds the values {_listed(values)}: {blurred}which of them are objects is not known. "
            "Save it with 0 and 255 only, or as a palette PNG with one index per object"
        )
    return picture.values


def from_png(png: str | Path | bytes | Image.Image, object_id: int | None = None) -> np.ndarray:
    """The bool mask (H, W) of a mask picture: its one mask (`read_mask`), or where it is `object_id` (`read_ids`)."""
    return read_mask(png) if object_id is None else read_ids(png) == object_id


def open_mask(png: str | Path | bytes | Image.Image) -> MaskPicture:
    """The values of a mask picture as they are stored. Raises ValueError for no picture, and for a colour picture."""
    name = "the mask" if isinstance(png, bytes | Image.Image) else str(png)
    try:
        image = png if isinstance(png, Image.Image) else Image.open(io.BytesIO(png) if isinstance(png, bytes) else png)
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    values, lossy = np.asarray(image), image.format in ("JPEG", "MPO")
    if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        palette = image.mode == "P" and not _is_grey_ramp(image)
        return MaskPicture(values.astype(np.int32), palette, lossy, name)
    if image.mode in ("RGB", "RGBA", "LA"):
        opaque = image.mode == "RGB" or bool((values[..., -1] == 255).all())
        colours = values[..., : 3 if image.mode.startswith("RGB") else 1]
        if opaque and bool((colours == colours[..., :1]).all()):
            return MaskPicture(colours[..., 0].astype(np.int32), False, lossy, name)
    raise ValueError(
        f"{name} is a colour picture (mode {image.mode}): which colour is which object is not known. "
        "Save the mask with one channel: 0 background and 255 object, or one value (palette index or grey) per object"
    )


def _is_grey_ramp(image: Image.Image) -> bool:
    """Whether the palette gives every index the grey of that value: then the indices are greys, not ids."""
    palette = np.array(image.getpalette("RGB") or [], dtype=int).reshape(-1, 3)
    return len(palette) == 256 and bool((palette == np.arange(256)[:, None]).all())


def _foreground(picture: MaskPicture) -> tuple[np.ndarray, np.ndarray]:
    """The values beside 0, rising, and how many pixels have each."""
    values, counts = np.unique(picture.values, return_counts=True)
    return values[values != 0], counts[values != 0]


def _is_soft(picture: MaskPicture, values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether a grey picture is one mask from 0 to white whose edges are blurred, and not a picture of ids.

    Of many values there must be no more in the middle than at the white end. Of few, the other values must not look
    like ids from 1 on and must cover less than half of what white does.
    """
    white = 65535 if len(values) and values.max() > WHITE else WHITE
    if picture.palette or len(values) == 0 or (len(values) == 1 and not picture.lossy):
        return False
    shares = values / white
    if len(values) > FEW_IDS or picture.lossy:
        middle = counts[(shares > 0.25) & (shares < 0.75)].sum()
        return bool(shares.max() >= 0.875 and middle <= counts[shares >= 0.75].sum())
    others = values < white
    edges = others.sum() < len(values) and values[others].max() > FEW_IDS
    return bool(edges and 2 * counts[others].sum() <= counts[-1])


def _above_half(values: np.ndarray) -> np.ndarray:
    return values > (65535 if values.max() > WHITE else WHITE) // 2


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(map(str, values[:20].tolist()))
    return shown if len(values) <= 20 else f"{shown} and {len(values) - 20} more"


# ---------------------------------------------------------------- boxes, overlap


def mask_to_box(mask: np.ndarray) -> Box | None:
    """The tight box (x0, y0, x1, y1) of a bool mask (H, W), x1 and y1 exclusive; None when it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def rle_to_box(rle: dict) -> Box | None:
    """`mask_to_box` of an RLE, from its runs: the mask is not decoded. ValueError when the RLE is garbage."""
    height, _ = _size(rle)
    runs = _runs(rle)
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2]
    starts, lasts = (ends - lengths)[lengths > 0], ends[lengths > 0] - 1
    if len(starts) == 0:
        return None
    x0, x1 = starts[0] // height, lasts[-1] // height + 1
    if (starts // height != lasts // height).any():  # a run into the next column holds the last row and the first
        return float(x0), 0.0, float(x1), float(height)
    return float(x0), float((starts % height).min()), float(x1), float((lasts % height).max() + 1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1.0 when both are empty."""
    if a.shape != b.shape:
        raise ValueError(f"masks to compare must have one shape, got {a.shape} and {b.shape}")
    total = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / total if total else 1.0


# ---------------------------------------------------------------- connected components


class Component(NamedTuple):
    """A connected piece of a mask: its tight box, its pixels, and its value in `components`."""

    box: Box
    area: int
    number: int


def components(mask: np.ndarray) -> np.ndarray:
    """A bool mask (H, W) -> int32 (H, W): 0 background, 1, 2, ... its pieces in order of their first pixel by rows.

    Pixels that touch at a corner are connected.
    """
    height, width = mask.shape
    starts, ends, numbers = _connected_runs(mask)
    steps = np.zeros(height * (width + 2) + 1, dtype=np.int32)
    steps[starts] = numbers
    steps[ends] -= numbers
    return np.ascontiguousarray(steps.cumsum(dtype=np.int32)[:-1].reshape(height, width + 2)[:, 1:-1])


def masks_to_boxes(mask: np.ndarray, min_area: int = 1, keep: str = "all") -> list[Component]:
    """The pieces of a bool mask (H, W) with at least `min_area` pixels, largest first; keep "largest": that one only.

    No piece is large enough: the list is empty. ValueError for another shape or another `keep`.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask must be bool of the shape (height, width), got {mask.dtype} {mask.shape}")
    if keep not in ("all", "largest"):
        raise ValueError(f"keep must be 'all' or 'largest', got {keep!r}")
    stride = mask.shape[1] + 2
    starts, ends, numbers = _connected_runs(mask)
    count = int(numbers.max(initial=0))
    areas = np.bincount(numbers, weights=ends - starts, minlength=count + 1).astype(np.int64)
    low = np.full((2, count + 1), mask.size, dtype=np.int64)  # x0, y0
    high = np.zeros((2, count + 1), dtype=np.int64)  # x1, y1
    np.minimum.at(low, (slice(None), numbers), np.stack([starts % stride - 1, starts // stride]))
    np.maximum.at(high, (slice(None), numbers), np.stack([ends % stride - 1, starts // stride + 1]))
    boxes = np.concatenate([low, high]).T.astype(float).tolist()
    found = [Component(tuple(boxes[number]), int(areas[number]), number) for number in range(1, count + 1)]
    found = sorted((one for one in found if one.area >= min_area), key=lambda one: -one.area)
    return found[:1] if keep == "largest" else found


def keep_components(mask: np.ndarray, min_area: int = 1, keep: str = "all") -> np.ndarray:
    """The mask (H, W) with only the pieces that `masks_to_boxes` gives."""
    kept = [one.number for one in masks_to_boxes(mask, min_area, keep)]
    return np.isin(components(mask), kept)


def _connected_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of a mask along its rows as (starts, ends, number of their component from 1 on).

    Positions count through the rows of the mask with an empty column on either side, ends exclusive.
    """
    height, width = mask.shape
    stride = width + 2
    flat = np.zeros((height, stride), dtype=np.int8)
    flat[:, 1:-1] = mask
    flips = np.flatnonzero(np.diff(flat.ravel())) + 1
    starts, ends = flips[0::2], flips[1::2]
    # The runs below that touch a run are neighbours in the list: from `first` on, `counts` of them.
    first = np.searchsorted(ends, starts + stride)
    counts = np.searchsorted(starts, ends + stride, side="right") - first
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    roots, before = np.arange(len(starts)), None
    while before is None or (roots != before).any():  # the smallest number spreads; a few rounds as a rule
        before, low = roots, np.minimum(roots[above], roots[below])
        roots = roots.copy()
        for side in (above, below):
            np.minimum.at(roots, before[side], low)
            np.minimum.at(roots, side, low)
        while (roots != roots[roots]).any():
            roots = roots[roots]
    return starts, ends, np.unique(roots, return_inverse=True)[1].astype(np.int32) + 1
