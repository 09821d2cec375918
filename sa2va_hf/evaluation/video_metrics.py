"""J and F of video segmentation (DAVIS): how well areas and outlines agree, frame by frame.

Masks are packed to 64 pixels a word and cropped to where there is an outline at all. Whether the disk around a point
of one outline holds a point of the other is mostly seen by shifting words: the square in the disk holds one, or the
square around it holds none. Only points between the two are looked at one by one. The figures are those of a dilation,
to the last digit, at a fraction of its time. One frame is held at a time, so that a long clip needs no more memory
than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sa2va_hf.evaluation.metrics import checked, iou, mean

BOUNDARY_BOUND = 0.008  # of the diagonal: how far a boundary may be off (DAVIS)
WORD = 64
ONE, LAST = np.uint64(1), np.uint64(WORD - 1)
POINTS_AT_ONCE = 4096  # that are looked at one by one


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
    both = pack(prediction, target, margin=radius)
    if void is not None:
        both &= ~pack(void, margin=radius)
    either = both[0] | both[1]
    if not either.any():
        return 1.0, 1.0
    rows, columns = _around(either, radius)
    both = np.ascontiguousarray(both[:, rows, columns])
    j = _count(both[0] & both[1]) / _count(either[rows, columns])
    lines = outline(both, width - columns.start * WORD)
    points, others = map(_count, lines)
    if not points or not others:  # both without: a mask that fills the picture has no outline
        return j, float(points == others)
    hits, other_hits = near(lines, radius)
    precision, recall = hits / points, other_hits / others
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pack(*masks: np.ndarray, margin: int = 0) -> np.ndarray:
    """bool (H, W) each -> uint64 (n, H, words), x from the lowest bit up; every row ends with at least `margin` zeros,
    so that what is shifted out of it does not arrive in the next one."""
    height, width = masks[0].shape
    packed = np.zeros((len(masks), height, -(-(width + margin) // WORD) * WORD // 8), dtype=np.uint8)
    for mask, words in zip(masks, packed, strict=True):
        words[:, : -(-width // 8)] = np.packbits(mask, axis=1, bitorder="little")
    return packed.view("<u8")


def unpack(words: np.ndarray, width: int) -> np.ndarray:
    """uint64 (..., H, words) -> bool (..., H, width)."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=width, bitorder="little").astype(bool)


def _around(words: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and words that hold a packed mask (H, words), its outline, and `margin` zeros at the end of every row."""
    rows = np.flatnonzero(words.any(axis=1))
    used = np.bitwise_or.reduce(words, axis=0)
    columns = np.flatnonzero(used)
    first, last = int(columns[0]), int(columns[-1])
    first -= first > 0 and bool(used[first] & ONE)  # the outline begins a pixel to the left
    end = last * WORD + int(used[last]).bit_length() + margin
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(first, -(-end // WORD))


def outline(words: np.ndarray, width: int) -> np.ndarray:
    """One pixel wide outlines of packed masks (..., H, words) of this width: pixels that differ from the one to the
    right, below, or both.

    The last row looks right only, the last column down only, so an object cut by the picture's edge is open there.
    """
    right = words >> ONE  # at x: what is at x + 1
    right[..., :-1] |= words[..., 1:] << LAST
    place, bit = divmod(width - 1, WORD)
    if place < words.shape[-1]:  # the last column sees itself
        right[..., place] |= words[..., place] & np.uint64(1 << bit)
    some, all_ = words | right, words & right
    edges = some ^ all_
    edges[..., :-1, :] = (some[..., :-1, :] | some[..., 1:, :]) ^ (all_[..., :-1, :] & all_[..., 1:, :])
    return edges


def near(lines: np.ndarray, radius: int) -> tuple[int, int]:
    """How many points of each of two packed outlines (2, H, words) have one of the other in the disk around them,
    dx^2 + dy^2 <= radius^2. Rows end with `radius` zeros."""
    inside = math.isqrt(radius * radius // 2)  # half the side of the largest square in the disk
    close = widen(lines, inside)
    others = lines[::-1]
    found = [_count(points) for points in others & close]
    maybe = others & ~close
    if maybe.any():
        maybe &= widen(close, radius - inside, inside)
        for number in np.flatnonzero(maybe.any(axis=(1, 2))):
            found[number] += _in_disks(maybe[number], lines[number], radius)
    return found[1], found[0]


def widen(words: np.ndarray, by: int, done: int = 0) -> np.ndarray:
    """All pixels within a square of `by` to every side of one of the packed masks (..., H, words) whose rows end with
    as many zeros; what lies beyond the array is dropped. done: they are squares of so much already."""
    result, spare, part = words.copy(), np.empty_like(words), np.empty_like(words)
    for step in _steps(by, done):
        _spread(result, step, spare, part)
        result, spare = spare, result
    for step in _steps(by, done):
        if step < words.shape[-2]:
            np.copyto(spare, result)
            spare[..., step:, :] |= result[..., :-step, :]
            spare[..., :-step, :] |= result[..., step:, :]
            result, spare = spare, result
        else:
            result |= np.bitwise_or.reduce(result, axis=-2, keepdims=True)
    return result


def _steps(by: int, done: int) -> Iterator[int]:
    """Shifts to both sides that widen a run of 2 done + 1 points by `by`. Half the run must reach the copy: at the
    array's edge the other half may be missing."""
    while by > 0:
        step = min(by, done + 1, WORD - 1)
        yield step
        by, done = by - step, done + step


def _spread(words: np.ndarray, step: int, result: np.ndarray, part: np.ndarray) -> None:
    """Packed masks with their copies `step` pixels (1 .. 63) to either side, into `result`; `part` is overwritten."""
    flat, found, carried = words.reshape(-1), result.reshape(-1), part.reshape(-1)
    up, down = np.uint64(step), np.uint64(WORD - step)
    np.left_shift(flat, up, out=found)
    found |= np.right_shift(flat, up, out=carried)
    found[1:] |= np.right_shift(flat[:-1], down, out=carried[1:])
    found[:-1] |= np.left_shift(flat[1:], down, out=carried[:-1])
    found |= flat


def _in_disks(points: np.ndarray, others: np.ndarray, radius: int) -> int:
    """How many of some packed points (H, words) have one of `others` within `radius`: each looks at the rows of its
    disk, 64 pixels at a time."""
    height, count = points.shape
    words = np.flatnonzero(points)
    bits = np.flatnonzero(np.unpackbits(points.reshape(-1)[words].view(np.uint8), bitorder="little"))
    y, word = np.divmod(words[bits // WORD], count)
    x = word * WORD + bits % WORD
    margin = -(-(radius + 1) // WORD)
    padded = np.zeros((height + 2 * radius, count + 2 * margin), dtype=np.uint64)
    padded[radius : radius + height, margin : margin + count] = others
    rows = np.arange(2 * radius + 1) * padded.shape[1]
    found = np.zeros(len(x), dtype=bool)
    for part in (slice(start, start + POINTS_AT_ONCE) for start in range(0, len(x), POINTS_AT_ONCE)):
        for first in range(-radius, radius + 1, WORD):
            left = x[part] + first + margin * WORD
            places = (y[part] * padded.shape[1] + left // WORD)[:, None] + rows
            shift = (left % WORD).astype(np.uint64)[:, None]
            seen = padded.take(places) >> shift | padded.take(places + 1) << ONE << (LAST - shift)
            found[part] |= (seen & _disk(radius, first)).any(axis=1)
    return int(np.count_nonzero(found))


@lru_cache(maxsize=64)
def _disk(radius: int, first: int) -> np.ndarray:
    """The rows of a disk from column `first` (0 is its middle) on, 64 pixels of each: uint64 (2 radius + 1,)."""
    rows = []
    for distance in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - distance * distance)
        columns = range(max(-half, first), min(half, first + WORD - 1) + 1)
        rows.append(sum(1 << (column - first) for column in columns))
    return np.array(rows, dtype=np.uint64)


def _count(words: np.ndarray) -> int:
    """Pixels of a packed mask."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))
