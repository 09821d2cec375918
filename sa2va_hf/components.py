"""Connected components of masks: their boxes and areas, and masks without their small pieces."""

from typing import NamedTuple

import numpy as np

from sa2va_hf.boxes import Box


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
