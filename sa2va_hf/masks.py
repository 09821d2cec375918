"""Masks in every form a dataset brings them in, as one: compressed COCO run-length encoding (RLE).

The only importer of pycocotools. An RLE is `{"size": [height, width], "counts": str}`; runs go down the columns, start
with background, and fill the mask exactly. pycocotools reads a damaged string without complaint (and beyond its end),
so every RLE is parsed and checked here before it is used.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco

from sa2va_hf.boxes import Box


class RLE(TypedDict):
    """A compressed COCO mask: `size` is [height, width]; `counts` a str, not bytes, so that it is JSON and Arrow."""

    size: list[int]
    counts: str


MAX_RUN_CHARACTERS = 7  # 5 bits each: 2**34 pixels, more than any mask has
LAST_DIGITS = np.arange(32, dtype=np.int64) - 32 * (np.arange(32) > 15)  # the fifth bit is the sign of the number


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
    mask = np.zeros((height, width), dtype=bool)
    first, columns = decode_columns(rle)
    mask[:, first : first + len(columns)] = columns.T
    return mask


def decode_columns(rle: dict) -> tuple[int, np.ndarray]:
    """The columns that the mask covers, which are few as a rule: the index of the first, and bool (n, height).
    ValueError as `decode`."""
    height, width = _size(rle)
    runs = _runs(rle)
    behind = int(runs[-1]) if len(runs) % 2 else 0  # background after the last pixel
    first, last = int(runs[0]) // height, width - behind // height
    if first >= last:
        return 0, np.zeros((0, height), dtype=bool)
    runs = runs.copy()
    runs[0] -= first * height
    runs[-1] -= (width - last) * height
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    return first, values.repeat(runs).reshape(last - first, height)


def column_runs(rle: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels of a mask as runs down its columns, from left to right: the column, the first row, and the row behind
    the last one of each, int64 (runs,). ValueError as `decode`."""
    height, _ = _size(rle)
    ends = _runs(rle).cumsum()
    starts, ends = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    columns, last = starts // height, (ends - 1) // height
    if (columns != last).any():  # a run that goes on in the next columns
        counts = last - columns + 1
        before = (counts.cumsum() - counts).repeat(counts)
        columns = columns.repeat(counts) + np.arange(len(before)) - before
        starts, ends = starts.repeat(counts), ends.repeat(counts)
    tops = columns * height
    return columns, np.maximum(starts - tops, 0), np.minimum(ends - tops, height)


class Picks:
    """Some rows or columns of a mask, as `decode_at` reads them: worked out once for a size.

    indices: of rows or columns among `side`, never falling; one may come several times.
    """

    def __init__(self, indices: np.ndarray, side: int):
        self.count = len(indices)
        once, again = np.unique(indices, return_inverse=True)
        self.once = len(once)
        self.again = None if len(once) == len(indices) else again
        pixels = np.arange(side + 1)  # of each, and of the end: how many indices are lower, and whether it is one
        self.lower = np.searchsorted(indices, pixels)
        self.lower_once = np.searchsorted(once, pixels)
        self.is_picked = np.isin(pixels, once).astype(np.int64)


@lru_cache(maxsize=4096)
def spread(side: int, count: int) -> Picks:
    """The first pixel of each of `count` equal parts of a side."""
    return Picks(np.arange(count) * side // count, side)


def decode_at(rle: dict, rows: Picks, columns: Picks) -> np.ndarray:
    """The values of a mask in these rows and columns, bool (rows.count, columns.count): `decode(rle)[np.ix_(...)]`
    without painting the mask. What it costs is the runs, and a byte per value."""
    height, _ = _size(rle)
    # how many of the values, down one column after the other, come before the end of each run
    at, rest = np.divmod(_runs(rle).cumsum(), height)
    before = columns.lower_once[at] * rows.count + columns.is_picked[at] * rows.lower[rest]
    mask = np.zeros((columns.once, rows.count), dtype=bool)
    values = np.zeros(len(before) - 1, dtype=bool)  # of the runs behind the first, which is background
    values[0::2] = True
    mask.reshape(-1)[before[0] :] = values.repeat(before[1:] - before[:-1])
    return (mask if columns.again is None else mask[columns.again]).T


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
    if runs.min() < 0:
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
    ends = (digits < 32).nonzero()[0]  # the sixth bit says that the number continues
    if digits[-1] >= 32:
        raise ValueError(f"RLE garbage: counts of {len(raw)} characters ends within a number (cut off?)")
    lengths = ends.copy()
    lengths[0] += 1
    lengths[1:] -= ends[:-1]
    longest = int(lengths.max())
    if longest > MAX_RUN_CHARACTERS:
        raise ValueError(f"RLE garbage: a run is written with {longest} characters, more than a mask can need")
    runs = LAST_DIGITS.take(digits.take(ends))
    longer = (lengths > 1).nonzero()[0]
    for behind in range(1, longest):
        runs[longer] = (runs[longer] << 5) + (digits[ends[longer] - behind] & 31)
        longer = longer[lengths[longer] > behind + 1]
    for first in (1, 2):  # run 2 is written as it is, so the differences start at 3 and 4
        np.add.accumulate(runs[first::2], out=runs[first::2])
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
