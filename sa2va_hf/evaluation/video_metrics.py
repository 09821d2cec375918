"""J and F of video segmentation (DAVIS): how well areas and outlines agree, frame by frame.

Masks are packed to 64 pixels a word, cropped to where there is an outline at all, and an outline is widened to a disk
by shifting words: the figures are those of a dilation, to the last digit, at a fraction of its time. One frame is held
at a time, so that a long clip needs no more memory than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np

from sa2va_hf.evaluation.metrics import checked, iou, mean

BOUNDARY_BOUND = 0.008  # of the diagonal: how far a boundary may be off (DAVIS)
WORD = 64


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
    """F: how well the outlines agree, bool (..., H, W) -> float64 (...).

    Precision: the share of the predicted outline within `bound` (of the diagonal; at least 1: in pixels) of the
    target's; recall: the other way round; F their harmonic mean. Without any outline on both sides F is 1, on one 0.
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
    """J and F of the (prediction, target) masks of a clip, or of several; each is asked for once and let go."""
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
    both = np.stack([pack(prediction, radius), pack(target, radius)])
    if void is not None:
        both &= ~pack(void, radius)
    either = both[0] | both[1]
    if not either.any():
        return 1.0, 1.0
    rows, columns = _around(either, radius)
    both = np.ascontiguousarray(both[:, rows, columns])
    intersection, union = _counts(np.stack([both[0] & both[1], either[rows, columns]]))
    j = intersection / union
    lines = outline(both, width - columns.start * WORD)
    points, others = _counts(lines)
    if not points or not others:  # both without: a mask that fills the picture has no outline
        return j, float(points == others)
    near = lines & widen(lines, radius)[::-1]  # the points of each within the disks of the other
    precision, recall = (hits / count for hits, count in zip(_counts(near), (points, others), strict=True))
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pack(mask: np.ndarray, margin: int = 0) -> np.ndarray:
    """bool (H, W) -> uint64 (H, words), x from the lowest bit up; every row ends with at least `margin` zeros, so that
    what is shifted out of it does not arrive in the next one."""
    height, width = mask.shape
    packed = np.zeros((height, -(-(width + margin) // WORD) * WORD // 8), dtype=np.uint8)
    packed[:, : -(-width // 8)] = np.packbits(mask, axis=1, bitorder="little")
    return packed.view("<u8")


def unpack(words: np.ndarray, width: int) -> np.ndarray:
    """uint64 (..., H, words) -> bool (..., H, width)."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=width, bitorder="little").astype(bool)


def _around(words: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and words that hold a packed mask (H, words), its outline, and `margin` zeros at the end of every row."""
    rows = np.flatnonzero(reduce(np.bitwise_or, words.T))
    used = np.bitwise_or.reduce(words, axis=0)
    columns = np.flatnonzero(used)
    first, last = int(columns[0]), int(columns[-1])
    first -= first > 0 and bool(used[first] & np.uint64(1))  # the outline begins a pixel to the left
    end = last * WORD + int(used[last]).bit_length() + margin
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(first, -(-end // WORD))


def outline(words: np.ndarray, width: int) -> np.ndarray:
    """One pixel wide outlines of packed masks (..., H, words) of this width: pixels that differ from the one to the
    right, below, or both.

    The last row looks right only, the last column down only, so an object cut by the picture's edge is open there.
    """
    right = words >> np.uint64(1)  # at x: what is at x + 1
    right[..., :-1] |= words[..., 1:] << np.uint64(WORD - 1)
    inside = np.zeros(words.shape[-1] * WORD, dtype=bool)
    inside[: width - 1] = True  # the columns that have one to their right
    inside = np.packbits(inside, bitorder="little").view("<u8")
    edges = (words ^ right) & inside
    above, below = words[..., :-1, :], words[..., 1:, :]
    edges[..., :-1, :] |= (above ^ below) | ((above ^ right[..., 1:, :]) & inside)
    return edges


def widen(words: np.ndarray, radius: int) -> np.ndarray:
    """All pixels with dx^2 + dy^2 <= radius^2 of one of the packed masks (..., H, words) whose rows end with `radius`
    zeros; what lies beyond the array is dropped.

    A disk is a stack of rows: the widest is reached from the narrowest, and each is laid over at its distance.
    """
    result, row, wider, part = np.zeros_like(words), words.copy(), np.empty_like(words), np.empty_like(words)
    half = 0
    for distance in range(radius, -1, -1):
        wanted = math.isqrt(radius * radius - distance * distance)
        while half < wanted:
            step = min(wanted - half, 2 * half + 1, WORD - 1)  # no gap between the copies
            _spread(row, step, wider, part)
            row, wider = wider, row
            half += step
        if distance == 0:
            result |= row
        elif distance < words.shape[-2]:
            result[..., distance:, :] |= row[..., :-distance, :]
            result[..., :-distance, :] |= row[..., distance:, :]
    return result


def _spread(words: np.ndarray, step: int, result: np.ndarray, part: np.ndarray) -> None:
    """Packed masks with their copies `step` pixels (1 .. 63) to either side, into `result`; `part` is overwritten."""
    flat, found, carried = words.reshape(-1), result.reshape(-1), part.reshape(-1)
    up, down = np.uint64(step), np.uint64(WORD - step)
    np.left_shift(flat, up, out=found)
    found |= np.right_shift(flat, up, out=carried)
    found[1:] |= np.right_shift(flat[:-1], down, out=carried[1:])
    found[:-1] |= np.left_shift(flat[1:], down, out=carried[:-1])
    found |= flat


def _counts(words: np.ndarray) -> list[int]:
    """Pixels of each of some packed masks (n, H, words)."""
    return np.bitwise_count(words).reshape(len(words), -1).sum(-1, dtype=np.int64).tolist()
