"""Metrics of bool masks in plain numpy: IoU and its sums over a data set, and J and F of video segmentation.

Masks are (..., H, W); every function works on all of the leading dimensions at once.
"""

from __future__ import annotations

import math

import numpy as np

# What LISA's evaluation (and Sa2VA's after it) adds to the union of every mask, and to the sum of all unions.
LISA_IOU_EPS, LISA_SUM_EPS = 1e-5, 1e-10
BOUNDARY_BOUND = 0.008  # of the diagonal: how far a boundary may be off (DAVIS)


# ---------------------------------------------------------------- IoU


def intersection_union(
    predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both and in either: bool (..., H, W) twice -> int64 (...) twice. Pixels of `ignore` do not count."""
    predictions, targets = _masks(predictions, targets)
    both, either = predictions & targets, predictions | targets
    if ignore is not None:
        both, either = both & ~ignore, either & ~ignore
    return both.sum((-2, -1), dtype=np.int64), either.sum((-2, -1), dtype=np.int64)


def iou(predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of masks (..., H, W) -> float64 (...); two empty masks agree: 1."""
    return _ratio(*intersection_union(predictions, targets, ignore))


class CumulativeIoU:
    """Sums over a data set: add (prediction, target) pairs as they come, then read the figures.

    A target may be empty (nothing matches the expression). Objects of several processes are joined by `merge`.
    """

    def __init__(self) -> None:
        self.intersections = np.zeros(0, dtype=np.int64)
        self.unions = np.zeros(0, dtype=np.int64)

    def add(self, predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> None:
        """One pair (H, W), or many (..., H, W)."""
        intersections, unions = intersection_union(predictions, targets, ignore)
        self.intersections = np.append(self.intersections, intersections)
        self.unions = np.append(self.unions, unions)

    def merge(self, other: CumulativeIoU) -> None:
        self.intersections = np.append(self.intersections, other.intersections)
        self.unions = np.append(self.unions, other.unions)

    def __len__(self) -> int:
        return len(self.unions)

    def ciou(self, eps: float = 0.0) -> float:
        """All intersections over all unions: large masks weigh more. 1 when all masks are empty.

        `eps=LISA_SUM_EPS` gives the last digits of LISA's and Sa2VA's evaluation.
        """
        self._require_some()
        total = int(self.unions.sum())
        return float(self.intersections.sum() / (total + eps)) if total else 1.0

    def giou(self, eps: float = 0.0) -> float:
        """Mean IoU of all pairs; two empty masks count 1. `eps=LISA_IOU_EPS` as LISA and Sa2VA, which lowers it."""
        self._require_some()
        return float(_ratio(self.intersections, self.unions, eps).mean())

    def precision(self, threshold: float) -> float:
        """Pr@threshold: share of pairs whose IoU is at least `threshold`, where a pair of empty masks counts as 0
        (as in LAVT's evaluation, which has no empty targets)."""
        self._require_some()
        return float((np.where(self.unions > 0, _ratio(self.intersections, self.unions), 0.0) >= threshold).mean())

    def _require_some(self) -> None:
        if not len(self):
            raise ValueError("no masks were added: there is nothing to average")


# ---------------------------------------------------------------- J and F of video


def region_similarity(predictions: np.ndarray, targets: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """J of the DAVIS benchmark: the IoU of every frame (..., H, W) -> (...)."""
    return iou(predictions, targets, void)


def boundary_accuracy(
    predictions: np.ndarray, targets: np.ndarray, void: np.ndarray | None = None, bound: float = BOUNDARY_BOUND
) -> np.ndarray:
    """F of the DAVIS benchmark: how well the outlines agree, (..., H, W) -> float64 (...).

    Precision: the share of the predicted outline within `bound` (of the diagonal; at least 1: in pixels) of the
    target's; recall: the other way round; F their harmonic mean. Without any outline on both sides F is 1, on one 0.
    """
    predictions, targets = _masks(predictions, targets)
    if void is not None:
        predictions, targets = predictions & ~void, targets & ~void
    height, width = targets.shape[-2:]
    radius = int(bound) if bound >= 1 else math.ceil(bound * math.hypot(height, width))
    found, wanted = outline(predictions), outline(targets)
    precision, recall = share_within(found, wanted, radius), share_within(wanted, found, radius)
    total = precision + recall  # an empty outline has ratio 1, so that the other side decides
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def j_and_f(predictions: np.ndarray, targets: np.ndarray, void: np.ndarray | None = None) -> dict[str, float]:
    """Means over all frames of one object: {"J", "F", "J&F"} of masks (frames, H, W).

    Which frames count is the benchmark's business: DAVIS (semi-supervised) leaves out the first and the last.
    """
    j = float(region_similarity(predictions, targets, void).mean())
    f = float(boundary_accuracy(predictions, targets, void).mean())
    return {"J": j, "F": f, "J&F": (j + f) / 2}


def outline(masks: np.ndarray) -> np.ndarray:
    """One pixel wide outlines of masks (..., H, W): pixels that differ from the one to the right, below, or both.

    The last row looks right only, the last column down only, so an object cut by the picture's edge is open there.
    """
    edges = np.zeros_like(masks)
    edges[..., :, :-1] |= masks[..., :, :-1] ^ masks[..., :, 1:]
    edges[..., :-1, :] |= masks[..., :-1, :] ^ masks[..., 1:, :]
    edges[..., :-1, :-1] |= masks[..., :-1, :-1] ^ masks[..., 1:, 1:]
    return edges


def share_within(points: np.ndarray, others: np.ndarray, radius: int) -> np.ndarray:
    """Share of the pixels of `points` that have one of `others` (both (..., H, W)) in a disk of `radius` around them;
    1 where there are no points. -> float64 (...)

    The same as counting on `others` dilated by dx^2 + dy^2 <= radius^2, but only looked up at the points: a row of the
    disk is a window of a running sum.
    """
    height, width = points.shape[-2:]
    margin = ((0, 0), (radius, radius), (radius + 1, radius))
    sums = np.cumsum(np.pad(others.reshape(-1, height, width), margin), axis=-1, dtype=np.int32)
    mask, y, x = np.nonzero(points.reshape(-1, height, width))
    near = np.zeros(len(mask), dtype=bool)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - dy * dy)
        row = y + radius + dy
        near |= sums[mask, row, x + radius + 1 + half] > sums[mask, row, x + radius - half]
    total = points.sum((-2, -1))
    return _ratio(np.bincount(mask, near, minlength=total.size).reshape(total.shape), total)


# ---------------------------------------------------------------- shared


def _masks(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions are {predictions.shape}, targets {targets.shape}: expected the same shape")
    for name, masks in (("predictions", predictions), ("targets", targets)):
        if masks.dtype != np.bool_:
            raise ValueError(
                f"{name}: expected bool masks, got {masks.dtype}; compare with a threshold or an id first"
            )
    return predictions, targets


def _ratio(parts: np.ndarray, wholes: np.ndarray, eps: float = 0.0) -> np.ndarray:
    """parts / (wholes + eps), 1 where the whole is empty."""
    return np.where(wholes == 0, 1.0, parts / (np.maximum(wholes, 1) + eps))
