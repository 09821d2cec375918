"""Metrics of boxes (x0, y0, x1, y1 in pixels, x1 and y1 exclusive): accuracy at an IoU, tracks, GREC, V*Bench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sa2va_hf.boxes import box_giou, box_iou
from sa2va_hf.evaluation.assignment import assign, greedy
from sa2va_hf.evaluation.metrics import mean

GREC_SCORE, GREC_GIOU = 0.7, 0.5  # a box counts from this score on; boxes match from this generalized IoU on


class BoxAccuracy:
    """Boxes of a data set, one prediction for one target: Acc@0.5 and the mean IoU. `merge` joins several processes'.

    strict: an IoU of exactly the threshold is a miss, as in V*'s evaluation; elsewhere it is a hit.
    """

    def __init__(self, threshold: float = 0.5, strict: bool = False) -> None:
        self.threshold, self.strict = threshold, strict
        self._ious: list[float] = []

    def add(self, prediction: Sequence[float] | None, target: Sequence[float]) -> None:
        """One pair; None (or NaN) for a prediction that was not made is a miss.

        ValueError for what are not four numbers, and a target that is not there: see `track_iou` for those.
        """
        (true,) = _boxes("target", [target])
        if not np.isfinite(true).all():
            raise ValueError(f"target: expected [x0, y0, x1, y1] of an object that is there, got {target!r:.80}")
        (drawn,) = _boxes("prediction", [[np.nan] * 4 if prediction is None else prediction])
        self._ious.append(float(box_iou(drawn, true)) if np.isfinite(drawn).all() else 0.0)

    def merge(self, other: BoxAccuracy) -> None:
        self._ious += other._ious

    def __len__(self) -> int:
        return len(self._ious)

    def result(self) -> dict[str, float]:
        """{"Acc@0.5", "mIoU"} in 0..1."""
        hits = [one > self.threshold if self.strict else one >= self.threshold for one in self._ious]
        return {f"Acc@{self.threshold:g}": mean(hits), "mIoU": mean(self._ious)}


def track_iou(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean IoU per frame of one object's boxes (frames, 4), NaN where it is absent: rightly absent is 1, wrongly 0."""
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions are {predictions.shape}, targets {targets.shape}: expected the same shape")
    drawn, true = np.isfinite(predictions).all(-1), np.isfinite(targets).all(-1)
    ious = np.where(drawn == true, 1.0, 0.0)
    both = drawn & true
    ious[both] = box_iou(predictions[both], targets[both])
    return mean(ious)


def frame_iou(predictions: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """The IoU of the boxes of one frame: the sum over the best one-to-one matching by the larger of the two counts.
    Two frames without boxes agree (1). ValueError for what are not boxes."""
    drawn, true = _boxes("predictions", predictions), _boxes("targets", targets)
    if not len(drawn) and not len(true):
        return 1.0
    if not len(drawn) or not len(true):
        return 0.0
    few, many = sorted((drawn, true), key=len)
    ious = box_iou(few[:, None], many[None])
    return float(ious[np.arange(len(few)), assign(ious)].sum()) / len(many)


class BoxTubes:
    """Boxes per frame of clips, as spatio-temporal grounding scores them (VidSTG, arXiv 2001.06891). An image is a
    clip of one frame.

    A frame may have several boxes, see `frame_iou`. Frames count once each in Acc@0.5 and mIoU, clips once each in
    m_vIoU: the sum of the IoUs over the frames that have boxes in both, by the number of frames that have any.
    """

    THRESHOLDS = (0.3, 0.5)

    def __init__(self) -> None:
        self._frames: list[float] = []  # IoU of frames with a true box
        self._absent: list[bool] = []  # of frames without one, whether no box was predicted
        self._tubes: list[float] = []

    def add(self, predictions: Sequence[Sequence], targets: Sequence[Sequence]) -> float:
        """Adds one clip, a list of boxes per frame, and returns its vIoU. None: a prediction that could not be parsed.

        Raises:
            ValueError: another number of frames.
        """
        if len(predictions) != len(targets) or not targets:
            raise ValueError(f"expected boxes of {len(targets)} frames, at least one, got {len(predictions)}")
        said = [frame or [] for frame in predictions]
        ious = [frame_iou(frame, true) for frame, true in zip(said, targets, strict=True)]
        there = [len(true) > 0 for true in targets]
        self._frames += [iou for iou, is_there in zip(ious, there, strict=True) if is_there]
        self._absent += [not frame for frame, is_there in zip(said, there, strict=True) if not is_there]
        any_box = [iou for iou, frame, true in zip(ious, said, targets, strict=True) if len(frame) or len(true)]
        self._tubes.append(mean(any_box) if any_box else 1.0)
        return self._tubes[-1]

    def merge(self, other: BoxTubes) -> None:
        self._frames += other._frames
        self._absent += other._absent
        self._tubes += other._tubes

    def __len__(self) -> int:
        return len(self._tubes)

    def result(self) -> dict[str, float]:
        """{"Acc@0.5", "mIoU" of frames with a true box, "absent": share of the others without a box, "m_vIoU",
        "vIoU@0.3", "vIoU@0.5"} in 0..1; a figure without any frame is absent."""
        found = {}
        if self._frames:
            found = {"Acc@0.5": mean(iou >= 0.5 for iou in self._frames), "mIoU": mean(self._frames)}
        if self._absent:
            found["absent"] = mean(self._absent)
        found["m_vIoU"] = mean(self._tubes)
        return found | {f"vIoU@{least:g}": mean(iou > least for iou in self._tubes) for least in self.THRESHOLDS}


class GeneralizedBoxes:
    """GREC (gRefCOCO with boxes): an expression is right when its boxes and the true ones match one to one.

    As published, boxes match by *generalized* IoU (the threshold is on it, not on IoU), greedily from the best on.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[bool, bool, float]] = []  # no target, no prediction, F1

    def add(self, boxes: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> None:
        """Add predicted boxes (n, 4) with their scores (n,), and the true ones (m, 4); m = 0: there is no target.

        ValueError for other shapes.
        """
        boxes, scores, targets = _boxes("boxes", boxes), np.asarray(scores, float), _boxes("targets", targets)
        if scores.shape != (len(boxes),):
            raise ValueError(f"scores: expected one for each of {len(boxes)} boxes, got the shape {scores.shape}")
        boxes = boxes[scores >= GREC_SCORE]
        hits = len(greedy(box_giou(boxes[:, None], targets[None]), GREC_GIOU)) if len(boxes) and len(targets) else 0
        wrong = len(boxes) - hits + len(targets) - hits
        f1 = 2 * hits / (2 * hits + wrong) if hits + wrong else 1.0
        self._rows.append((not len(targets), not len(boxes), f1))

    def merge(self, other: GeneralizedBoxes) -> None:
        self._rows += other._rows

    def __len__(self) -> int:
        return len(self._rows)

    def result(self) -> dict[str, float]:
        """{"F1": share of expressions whose F1 is 1, "N_acc", "T_acc"} in 0..1."""
        found = {"F1": mean(f1 >= 1 for *_, f1 in self._rows)}
        for name, kind in (("N_acc", True), ("T_acc", False)):
            said = [nothing == kind for none_true, nothing, _ in self._rows if none_true == kind]
            if said:
                found[name] = mean(said)
        return found


def choice_accuracy(answers: Iterable[tuple[str, bool]], overall: str = "overall") -> Mapping[str, float]:
    """Share of right answers per kind of question and over all of them (V*Bench: direct_attributes, ...)."""
    kinds: dict[str, list[bool]] = {}
    for kind, right in answers:
        kinds.setdefault(kind, []).append(right)
    found = {kind: mean(values) for kind, values in sorted(kinds.items())}
    return found | {overall: mean(right for values in kinds.values() for right in values)}


def _boxes(name: str, values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """float64 (n, 4); ValueError for what are not boxes of four numbers."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = None
    if found is not None and found.ndim and not len(found):
        return np.zeros((0, 4))
    if found is None or found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"{name}: expected boxes [x0, y0, x1, y1], got {values!r:.80}")
    return found
