"""Is the target here? How well the score by which a search decides tells crops with a target from those without.

The question, the answer that is given ("Sure, [SEG].") and the score are those of `search.locator`, with each of its
confidences: "iou", the default of a search, in the plain figures, and the others beside them. An empty mask has the
score 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sa2va_hf.data.media import load_frames
from sa2va_hf.data.prompts.templates import clean_phrase
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation.items import Answer, Item, Settings, encode_tracks, percent, true_boxes
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.search.locator import ANSWER, IOU, MASK, OBJECT_SCORE, QUESTION, located
from sa2va_hf.search.phrases import question_about

FALSE_ALARMS = 0.05  # share of crops without the target that may exceed the threshold
BINS = 10  # of scores, for the calibration error
RESULTS = {"confidence": IOU, MASK: MASK, OBJECT_SCORE: OBJECT_SCORE}  # keys of an answer's results


class Presence:
    """One question per expression of a picture."""

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        for number, one in enumerate(sample.expressions):
            text = question_about(QUESTION, clean_phrase(one.text))
            yield Item(f"{sample.id}/{number}", sample, text, one.kind, tuple(one.targets))

    def record(self, settings: Settings) -> dict[str, Any]:
        """How it is asked. ValueError for a setting that does not apply."""
        if settings.mode != "generate" or settings.baseline is not None:
            raise ValueError("scores of a search are those of a given answer: --mode and --baseline do not apply")
        return {"prompts": [QUESTION], "answer": ANSWER}

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        pictures = [load_frames(item.sample, [0])[0] for item in items]
        texts = [item.question for item in items]
        found = predictor.segment(image=pictures, text=texts, answer=[ANSWER] * len(items))
        confidences = [
            {key: float(located(one, name).scores.max(initial=0)) for key, name in RESULTS.items()} for one in found
        ]
        return [
            Answer(one.text, encode_tracks(one.masks), values) for one, values in zip(found, confidences, strict=True)
        ]

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        value = answer.more["confidence"]
        return {"score": value if _is_there(item) else 1 - value}

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        there = np.array([_is_there(item) for item in items])
        figures: dict[str, Any] = {"crops": len(items), "with_target": int(there.sum())}
        for key, name in RESULTS.items():
            if all(key in answer.more for answer in answers):
                found = percent(presence_figures(np.array([answer.more[key] for answer in answers]), there))
                figures |= found if name == IOU else {name: found}
        return figures


def presence_figures(scores: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """Figures of scores (n,) in 0..1 and whether the target is there, bool (n,).

    Returns "AUC": how often a crop with the target has the higher score of two (ties count half); "Acc@0.5": the share
    of crops of which the threshold 0.5 says rightly whether it is there; "threshold": the lowest one that at most 5 %
    of the crops without it exceed, for `--confidence_high`; "found": the share of crops with it that exceed that;
    "calibration_error": mean difference between score and share of crops with it, over bins of scores, by their size.
    Figures that need crops of both sorts are absent where one is missing.
    """
    found = {"Acc@0.5": float(((scores > 0.5) == there).mean()), "calibration_error": _calibration(scores, there)}
    present, absent = scores[there], np.sort(scores[~there])
    if not len(present) or not len(absent):
        return found
    above = (present[:, None] > absent[None]).mean() + (present[:, None] == absent[None]).mean() / 2
    threshold = absent[len(absent) - 1 - int(FALSE_ALARMS * len(absent))]
    return found | {
        "AUC": float(above),
        "threshold": float(threshold),
        "found": float((present > threshold).mean()),
    }


def _calibration(scores: np.ndarray, there: np.ndarray) -> float:
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [abs(float((scores[bins == one] - there[bins == one]).sum())) for one in range(BINS)]
    return sum(gaps) / max(len(scores), 1)


def _is_there(item: Item) -> bool:
    return bool(true_boxes(item, 0))
