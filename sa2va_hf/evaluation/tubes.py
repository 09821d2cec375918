"""Spatio-temporal grounding (HC-STVG, VidSTG): when something happens in a clip, and where, as one tube of boxes.

The answer's tube goes from the first to the last frame that carries a box. Frames that the model did not read are as
the nearest one that it read, and boxes between two of them are interpolated. All frames of the clip are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sa2va_hf.boxes import box_iou
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation.items import Answer, Item, Settings, percent
from sa2va_hf.evaluation.locating import MASK_PROMPT, Locating
from sa2va_hf.evaluation.metrics import mean
from sa2va_hf.evaluation.referring import QUESTION_PROMPT

THRESHOLDS = (0.3, 0.5)


class TubeScores:
    """Tubes (frames, 4) in pixels, NaN on frames without a box, against true ones.

    With the frames of the prediction S_p and of the truth S_t: tIoU is |S_p and S_t| by |S_p or S_t|, vIoU the sum of
    the boxes' IoU over S_p and S_t by |S_p or S_t|, sIoU the sum over S_t by |S_t| (arXiv 2001.06891). Each is a mean
    over the clips. `merge` joins several processes'.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float]] = []

    def add(self, prediction: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
        """Adds a clip and returns its tIoU, vIoU and sIoU.

        Raises:
            ValueError: other shapes, or a target without a box.
        """
        if prediction.shape != target.shape or target.shape[1:] != (4,):
            raise ValueError(
                f"expected a prediction and a target (frames, 4), got {prediction.shape} and {target.shape}"
            )
        said, true = np.isfinite(prediction).all(-1), np.isfinite(target).all(-1)
        if not true.any():
            raise ValueError(f"expected a target with a box on one of {len(target)} frames, got none")
        either, both = (said | true).sum(), said & true
        overlap = box_iou(prediction[both], target[both]).sum()
        self._rows.append((both.sum() / either, overlap / either, overlap / true.sum()))
        return self._rows[-1]

    def merge(self, other: TubeScores) -> None:
        self._rows += other._rows

    def __len__(self) -> int:
        return len(self._rows)

    def result(self) -> dict[str, float]:
        """{"m_tIoU", "m_vIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5": more than this} in 0..1."""
        time, volume, space = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        found = {"m_tIoU": mean(time), "m_vIoU": mean(volume), "m_sIoU": mean(space)}
        return found | {f"vIoU@{least:g}": mean(one > least for one in volume) for least in THRESHOLDS}


def tube_of(boxes: Mapping[int, Sequence[Sequence[float]]], num_frames: int) -> np.ndarray:
    """One tube (num_frames, 4), NaN outside of it, from the boxes of the frames that were read (empty: none there). Of
    several boxes on a frame the first counts.

    Raises:
        ValueError: a frame beyond the clip.
    """
    tube, read = np.full((num_frames, 4), np.nan), np.array(sorted(boxes), dtype=int)
    if len(read) and (read[0] < 0 or read[-1] >= num_frames):
        raise ValueError(f"expected boxes on frames 0 to {num_frames - 1}, got some on {read[0]} and {read[-1]}")
    with_box = np.array([index for index in read if len(boxes[index])], dtype=int)
    if not len(with_box):
        return tube
    frames = np.arange(num_frames)
    nearest = read[np.abs(frames[:, None] - read[None]).argmin(1)]  # the earlier one of two
    inside = (nearest >= with_box[0]) & (nearest <= with_box[-1])
    corners = np.array([boxes[index][0] for index in with_box], dtype=np.float64)
    for side in range(4):
        tube[inside, side] = np.interp(frames[inside], with_box, corners[:, side])
    return tube


class SpatioTemporal(Locating):
    """One question per sentence, each about one object; figures by kind of sentence, which VidSTG publishes apart."""

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        for item in super().items(sample, settings):
            if len(item.targets) != 1:
                raise ValueError(f"{item.key}: expected a sentence about one object, got {len(item.targets)}")
            yield item

    def kept_frames(self, item: Item, settings: Settings) -> Sequence[int]:
        """Masks are on every frame, boxes that are written on those that are read."""
        every = range(item.sample.num_frames)
        return every if settings.answer_with == "boxes_of_masks" else super().kept_frames(item, settings)

    def mask_prompt(self, text: str) -> str:
        return (QUESTION_PROMPT if "?" in text else MASK_PROMPT).format(text)

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        time, volume, space = TubeScores().add(*_pair(item, answer))
        return {"score": volume, "tIoU": time, "sIoU": space, "problems": len(answer.more["problems"])}

    def _figures(self, group: Sequence[tuple[Item, Answer]]) -> dict[str, Any]:
        scores = TubeScores()
        for item, answer in group:
            scores.add(*_pair(item, answer))
        read = {"read": mean(not answer.more["problems"] for _, answer in group)}
        return {"expressions": len(group)} | percent(read | scores.result())


def _pair(item: Item, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true tube, on the frames where the truth is known."""
    sample = item.sample
    boxes = {int(index): rows for index, rows in answer.more["boxes"].items()}
    true = sample.objects[item.targets[0]].boxes
    known = [place for place, box in enumerate(true) if box is not None]
    target = np.array([true[place] for place in known], dtype=np.float64).reshape(-1, 4)
    target[(target[:, 2] <= target[:, 0]) | (target[:, 3] <= target[:, 1])] = np.nan
    return tube_of(boxes, sample.num_frames)[[sample.annotated[place] for place in known]], target
