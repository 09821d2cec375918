"""J and F of video segmentation (DAVIS): how well areas and outlines agree, frame by frame.

Masks are packed to eight pixels a byte: a mask is cut into eight stripes of as many rows, which lie upon one another,
a bit each. So the next pixel to the right is in the next byte, the one below in the next row, and to move a mask is to
read it from another place. Outlines, and their dilation by a disk, are made of such moves. The figures are those of a
dilation of pictures, to the last digit, at a fraction of its time. One frame is held at a time, so that a long clip
needs no more memory than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sa2va_hf.evaluation.metrics import checked, iou, mean

BOUNDARY_BOUND = 0.008  # of the diagonal: how far a boundary may be off (DAVIS)
STRIPES = 8  # of a packed mask: bits of a byte


class Scores(NamedTuple):
    """Per frame, float64 (frames,) each."""

    j: np.ndarray
    f: np.ndarray


def region_similarity(predictions: np.ndarray, targets: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """J: the IoU of every frame, bool (..., H, W) -> float64 (...). Pixels of `void` do not count."""
    return iou(predictions, targets, void)


def boundary_accuracy(
    predictions: np.ndarray, targets: np.ndarray, void: np.ndarray | None = None, bound: float = BOUNDARY_BOUND
) -> np.ndarray:
    """F: the agreement of two outlines, bool (..., H, W) -> float64 (...).

    Precision is the share of the predicted outline that lies within `bound` of the target's outline; recall is the
    share of the target's outline that lies within `bound` of the predicted one. F is their harmonic mean: 1 if neither
    mask has an outline, 0 if only one of them has.

    Args:
        bound: a share of the image's diagonal, or pixels if it is 1 or more.
    """
    predictions, targets = checked(predictions, targets)
    void = None if void is None else np.broadcast_to(void, targets.shape)
    scores = np.empty(targets.shape[:-2])
    for index in np.ndindex(scores.shape):
        scores[index] = _frame(predictions[index], targets[index], None if void is None else void[index], bound)[1]
    return scores


def frame_scores(prediction: np.ndarray, target: np.ndarray, void: np.ndarray | None = None) -> tuple[float, float]:
    """(J, F) of one frame: bool masks (H, W), of which the pixels of `void` do not count."""
    return _frame(*checked(prediction, target), void, BOUNDARY_BOUND)


def clip_scores(frames: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scores:
    """J and F of the (prediction, target) masks of a clip, or of several; each pair is read once and not kept."""
    found = [frame_scores(prediction, target) for prediction, target in frames]
    return Scores(*np.array(found, dtype=np.float64).reshape(-1, 2).T)


def j_and_f(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Means over all frames of one object: {"J", "F", "J&F"} of masks (frames, H, W).

    Which frames count is the benchmark's business: see `video_conventions`.
    """
    scores = clip_scores(zip(*checked(predictions, targets), strict=True))
    j, f = mean(scores.j), mean(scores.f)
    return {"J": j, "F": f, "J&F": (j + f) / 2}


# ---------------------------------------------------------------- one frame, packed


def _frame(prediction: np.ndarray, target: np.ndarray, void: np.ndarray | None, bound: float) -> tuple[float, float]:
    height, width = target.shape
    radius = int(bound) if bound >= 1 else math.ceil(bound * math.hypot(height, width))
    both = pack(prediction, target, margin=radius)
    if void is not None:
        both &= ~pack(void, margin=radius)
    columns = _around(both, radius)
    if columns is None:
        return 1.0, 1.0
    both = np.ascontiguousarray(both[..., columns])
    lines = outline(both, height, width - columns.start)
    near = lines & disks(lines, radius)[::-1]
    parts = (both[:1] & both[1:], both[:1] | both[1:], lines, near)
    inside, area, points, others, hits, other_hits = _count(np.concatenate(parts))
    if not points or not others:  # neither has a boundary: a mask that fills the image has none
        return inside / area, float(points == others)
    precision, recall = hits / points, other_hits / others
    return inside / area, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pack(*masks: np.ndarray, margin: int = 0) -> np.ndarray:
    """bool (H, W) each -> uint8 (n, rows, columns): pixel (y, x) is bit y // rows of byte (y % rows, x).

    There are at least `margin` rows, and every row ends with at least so many zeros, and one: what is moved out of a
    row does not arrive in the next. Columns are a multiple of 8, so that bytes can be counted as words.
    """
    height, width = masks[0].shape
    rows = max(-(-height // STRIPES), margin)
    packed = np.zeros((len(masks), rows, _whole_words(width + margin + 1)), dtype=np.uint8)
    for mask, place in zip(masks, packed, strict=True):
        stripes = np.zeros((rows, width), dtype=np.uint8)
        for first in range((STRIPES - 1) * rows, -1, -rows):
            stripe = mask[first : first + rows].view(np.uint8)
            stripes += stripes  # a bit up
            stripes[: len(stripe)] |= stripe
        place[:, :width] = stripes
    return packed


def _whole_words(count: int) -> int:
    return -(-count // 8) * 8


def _around(packed: np.ndarray, margin: int) -> slice | None:
    """The columns that hold some packed masks, their outlines, which begin a pixel before them, and the margin; None
    where there is nothing."""
    used = np.flatnonzero(np.bitwise_or.reduce(packed, axis=(0, 1)))
    if not len(used):
        return None
    first = max(int(used[0]) - 1, 0)
    return slice(first // 8 * 8, _whole_words(int(used[-1]) + 1 + margin + 1))


def unpack(packed: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (n, rows, columns) -> bool (n, height, width)."""
    stripes = packed[:, None] >> np.arange(STRIPES, dtype=np.uint8)[:, None, None] & np.uint8(1)
    return stripes.reshape(len(packed), -1, packed.shape[-1])[:, :height, :width].astype(bool)


def outline(packed: np.ndarray, height: int, width: int) -> np.ndarray:
    """One pixel wide outlines of packed masks (n, rows, columns) of pictures of this size, of which empty columns at
    the right may be cut off: pixels that differ from the one to the right, below, or both.

    The last row looks right only, the last column down only, so an object cut by the picture's edge is open there.
    """
    right = np.empty_like(packed)
    right.reshape(-1)[:-1], right[..., -1] = packed.reshape(-1)[1:], 0
    if width <= right.shape[-1]:
        right[..., width - 1] = packed[..., width - 1]
    some, every = packed | right, packed & right
    return (some | _below(some, height)) ^ (every & _below(every, height))


def _below(packed: np.ndarray, height: int) -> np.ndarray:
    """At every pixel: what is below it, and below the last row of a picture, that row again."""
    below = np.empty_like(packed)
    below[:, :-1], below[:, -1] = packed[:, 1:], packed[:, 0] >> 1
    stripe, row = divmod(height - 1, packed.shape[1])
    if stripe < STRIPES:
        bit = np.uint8(1 << stripe)
        below[:, row] = below[:, row] & ~bit | packed[:, row] & bit
    return below


def disks(packed: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel with a point of the same packed mask (n, rows, columns) within dx^2 + dy^2 <= radius^2. The masks
    have a margin of `radius`, in which there is anything afterwards.

    A disk is a stack of runs that are the longer the nearer they are to its middle row. From the outermost one on:
    what is there so far, moved a row up and down, and the next run.
    """
    if radius == 0:
        return packed
    above, below = packed[:, -radius:] << 1, packed[:, :radius] >> 1  # where a stripe ends, the next one begins
    found = np.concatenate([above, packed, below], axis=1)
    runs, half, spare, row = found.copy(), 0, np.zeros_like(found), packed.shape[-1]
    for distance in range(radius - 1, -1, -1):
        _join_moved(found, row, spare, whole=True)
        found, spare = spare, found
        wanted = math.isqrt(radius * radius - distance * distance)
        while half < wanted:
            step = min(wanted - half, 2 * half + 1)
            _join_moved(runs, step, spare, whole=step > half)
            runs, spare = spare, runs
            half += step
        found |= runs
    return found[:, radius:-radius]


def _join_moved(masks: np.ndarray, by: int, result: np.ndarray, whole: bool) -> None:
    """Masks moved by so many bytes both ways, joined into `result`; whole: joined with themselves, too. The first and
    last `by` bytes, of the outermost rows, stay as they are there."""
    flat, middle = masks.reshape(-1), result.reshape(-1)[by:-by]
    np.bitwise_or(flat[2 * by :], flat[: -2 * by], out=middle)
    if whole:
        middle |= flat[by:-by]


def _count(packed: np.ndarray) -> list[int]:
    """Pixels of each of some packed masks (n, rows, columns)."""
    bits = np.bitwise_count(packed.view(np.uint64))
    return bits.reshape(len(packed), -1).sum(axis=1, dtype=np.uint32).tolist()
