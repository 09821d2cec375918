"""IoU of bool masks and its sums over a data set: cIoU, gIoU, Pr@threshold, and gRefCOCO's with expressions that match
nothing. Plain numpy.

Masks are (..., H, W); every function works on all of the leading dimensions at once. What is collected over a data set
(`CumulativeIoU`, `GeneralizedIoU`) keeps two integers per pair and sums exactly, so that the figures do not depend on
the order of adding and merging, nor on how many processes shared the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

# What LISA's evaluation (and Sa2VA's after it) adds to the union of every mask, and to the sum of all unions.
LISA_IOU_EPS, LISA_SUM_EPS = 1e-5, 1e-10
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of Pr@


# ---------------------------------------------------------------- IoU


def intersection_union(
    predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both and in either: bool (..., H, W) twice -> int64 (...) twice. Pixels of `ignore` do not count."""
    predictions, targets = checked(predictions, targets)
    both, either = predictions & targets, predictions | targets
    if ignore is not None:
        if ignore.dtype != np.bool_ or ignore.shape[-2:] != targets.shape[-2:]:
            wanted = f"bool {targets.shape[-2:]} (H, W)"
            raise ValueError(f"ignore: expected {wanted}, got {ignore.dtype} {ignore.shape[-2:]}")
        both, either = both & ~ignore, either & ~ignore
    return np.count_nonzero(both, axis=(-2, -1)), np.count_nonzero(either, axis=(-2, -1))


def iou(predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of masks (..., H, W) -> float64 (...); two empty masks agree: 1."""
    return ratio(*intersection_union(predictions, targets, ignore))


class CumulativeIoU:
    """Pairs of a data set: add (prediction, target) as they come, then read the figures.

    A target may be empty (nothing matches the expression). Those of several processes are joined by `merge`.
    """

    def __init__(self) -> None:
        self._pairs: list[np.ndarray] = []  # (n, 2) int64 each: intersection, union

    def add(self, predictions: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> None:
        """One pair (H, W), or many (..., H, W)."""
        self.add_counts(*intersection_union(predictions, targets, ignore))

    def add_counts(self, intersections: np.ndarray | int, unions: np.ndarray | int) -> None:
        """Pairs whose pixels were counted elsewhere."""
        self._pairs.append(np.stack([np.ravel(intersections), np.ravel(unions)], axis=-1).astype(np.int64))

    def merge(self, other: CumulativeIoU) -> None:
        self._pairs += other._pairs

    def __len__(self) -> int:
        return sum(map(len, self._pairs))

    def ciou(self, eps: float = 0.0) -> float:
        """All intersections over all unions: large masks weigh more. 1 when all masks are empty.

        `eps=LISA_SUM_EPS` gives the last digits of LISA's and Sa2VA's evaluation.
        """
        intersections, unions = self._counts()
        total = int(unions.sum())
        return float(int(intersections.sum()) / (total + eps)) if total else 1.0

    def giou(self, eps: float = 0.0) -> float:
        """Mean IoU of all pairs; two empty masks count 1. `eps=LISA_IOU_EPS` as LISA and Sa2VA, which lowers it."""
        return mean(ratio(*self._counts(), eps))

    def precision(self, threshold: float) -> float:
        """Pr@threshold: share of pairs whose IoU is at least `threshold`, where a pair of empty masks counts as 0
        (as in LAVT's evaluation, which has no empty targets)."""
        intersections, unions = self._counts()
        return float((np.where(unions > 0, ratio(intersections, unions), 0.0) >= threshold).mean())

    def result(self) -> dict[str, float]:
        """{"cIoU", "gIoU", "Pr@0.5" ... "Pr@0.9"} in 0..1, with LISA's and Sa2VA's epsilons."""
        found = {"cIoU": self.ciou(LISA_SUM_EPS), "gIoU": self.giou(LISA_IOU_EPS)}
        return found | {f"Pr@{threshold}": self.precision(threshold) for threshold in THRESHOLDS}

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        if not len(self):
            raise ValueError("expected at least one pair of masks to average, got none")
        pairs = np.concatenate(self._pairs)
        return pairs[:, 0], pairs[:, 1]


class GeneralizedIoU:
    """gRefCOCO, where an expression may match nothing (ReLA's evaluation; pairs of whole expressions).

    A prediction "nothing" is an empty mask, or what a model says of its own (`says_nothing`). Rightly said, it has
    IoU 1 and adds no pixels to cIoU; where there is a target it has IoU 0, and predicted pixels still count as union.
    """

    def __init__(self) -> None:
        self._rows: list[
            tuple[int, int, bool, bool]
        ] = []  # intersection, union, whether the target and the prediction are empty

    def add(self, prediction: np.ndarray, target: np.ndarray, says_nothing: bool | None = None) -> None:
        """One pair of bool masks (H, W)."""
        said = not prediction.any() if says_nothing is None else says_nothing
        self.add_counts(*intersection_union(prediction, target), not target.any(), said)

    def add_counts(self, intersection: int, union: int, nothing: bool, said: bool) -> None:
        """Add a pair whose pixels were counted elsewhere. nothing: the target is empty. said: the prediction is."""
        self._rows.append((int(intersection), int(union), bool(nothing), bool(said)))

    def merge(self, other: GeneralizedIoU) -> None:
        self._rows += other._rows

    def __len__(self) -> int:
        return len(self._rows)

    def result(self) -> dict[str, float]:
        """{"gIoU", "cIoU", "N_acc", "T_acc", "Pr@0.5" ...} in 0..1. Pr@ is over expressions with a target.

        N_acc: share of the expressions without target of which "nothing" is said; T_acc: of those with one, of which
        it is not said. One of them is missing where there are no such expressions.
        """
        if not self._rows:
            raise ValueError("expected at least one pair of masks to average, got none")
        intersections, unions, nothing, said = (np.array(column) for column in zip(*self._rows, strict=True))
        intersections = np.where(nothing | said, 0, intersections)
        unions = np.where(nothing & said, 0, unions)
        ious = np.where(nothing, said, np.where(unions > 0, ratio(intersections, unions), 0.0))
        total = int(unions.sum())
        found = {"gIoU": mean(ious), "cIoU": int(intersections.sum()) / total if total else 1.0}
        if nothing.any():
            found["N_acc"] = float(said[nothing].mean())
        if not nothing.all():
            found["T_acc"] = float((~said[~nothing]).mean())
            found |= {f"Pr@{threshold}": float((ious[~nothing] >= threshold).mean()) for threshold in THRESHOLDS}
        return found


# ---------------------------------------------------------------- shared


def checked(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, when they are bool and of one shape; else ValueError."""
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions are {predictions.shape}, targets {targets.shape}: expected the same shape")
    for name, masks in (("predictions", predictions), ("targets", targets)):
        if masks.dtype != np.bool_:
            raise ValueError(
                f"{name}: expected bool masks, got {masks.dtype}; compare with a threshold or an id first"
            )
    return predictions, targets


def ratio(parts: np.ndarray | int, wholes: np.ndarray | int, eps: float = 0.0) -> np.ndarray:
    """parts / (wholes + eps), 1 where the whole is empty."""
    return np.where(np.equal(wholes, 0), 1.0, parts / (np.maximum(wholes, 1) + eps))


def mean(values: Iterable[float]) -> float:
    """The mean, summed exactly: the order of the values does not change its last digit."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError("expected at least one value to average, got none")
    return math.fsum(values) / len(values)
