"""A Sa2VA as the model of a search: heat from its mask logits, scores from those and from what SAM 2 says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sa2va_hf.components import components, masks_to_boxes
from sa2va_hf.data.prompts.templates import clean_phrase
from sa2va_hf.inference import Prediction, Sa2VAPredictor
from sa2va_hf.search.patches import Crop
from sa2va_hf.search.phrases import question_about
from sa2va_hf.search.settings import Located

QUESTION, ANSWER = "Please segment the {} in this image.", "Sure, [SEG]."
SIDE = 1024  # pixels of a crop's longer side as the model gets it: SAM 2's input
MIN_AREA = 4  # pixels of the mask logits; what is smaller is noise
ANSWER_TOKENS = 100
# The score of a part: the mean probability of its pixels, alone or times the expected IoU, or the object score.
MASK, IOU, OBJECT_SCORE = "mask", "iou", "object_score"
CONFIDENCES = (MASK, IOU, OBJECT_SCORE)


class Sa2VALocator:
    """Asks a predictor about crops.

    Args:
        side: pixels of a crop's longer side as the model gets it.
        generate: let the model answer in its own words; an answer without [SEG] says that the target is not there. By
            default the answer is given, and only the mask is asked for.
        confidence: what scores are, see `located`.

    Raises:
        ValueError: another `confidence`.
    """

    def __init__(
        self, predictor: Sa2VAPredictor, side: int = SIDE, generate: bool = False, confidence: str = IOU
    ) -> None:
        if confidence not in CONFIDENCES:
            raise ValueError(f"confidence: expected one of {', '.join(CONFIDENCES)}, got {confidence!r}")
        self.predictor, self.side, self.generate = predictor, side, generate
        self.confidence = confidence

    def locate(self, crops: Sequence[Crop], texts: Sequence[str]) -> list[Located]:
        """One candidate per connected part of the mask. See `located`."""
        images = self._images(crops)
        questions = [question_about(QUESTION, clean_phrase(text)) for text in texts]
        if self.generate:
            predictions = self.predictor(image=images, text=questions, max_new_tokens=ANSWER_TOKENS)
        else:
            predictions = self.predictor.segment(image=images, text=questions, answer=[ANSWER] * len(images))
        return [located(prediction, self.confidence) for prediction in predictions]

    def ask(self, crops: Sequence[Crop], questions: Sequence[str]) -> list[str]:
        answers = self.predictor(image=self._images(crops), text=list(questions), max_new_tokens=ANSWER_TOKENS)
        return [answer.text for answer in answers]

    def _images(self, crops: Sequence[Crop]) -> list:
        return [crop.source.read(crop, self.side) for crop in crops]


def located(prediction: Prediction, confidence: str = IOU) -> Located:
    """The candidates of all masks of a picture.

    The heat is the largest mask logit, at least 0. The score of a part is, by `confidence`:
        mask: the mean probability of the part's pixels.
        iou: that, times the IoU that SAM 2 expects of the mask.
        object_score: the probability that the object is there, for the part of the mask whose pixels are the most
            certain; of the other parts less, as their pixels are less certain.
    """
    logits = prediction.mask_logits[:, 0]
    if not len(logits):
        return Located(np.zeros(0), np.zeros((0, 4)), np.zeros((1, 1)))
    scores, boxes = [], []
    for row, mask_logits in enumerate(logits):
        mask = mask_logits > 0
        labels, sides = components(mask), (*mask.shape[::-1], *mask.shape[::-1])
        parts = masks_to_boxes(mask, MIN_AREA)
        sure = np.array([_sigmoid(mask_logits[labels == part.number]).mean() for part in parts])
        scores.append(sure * _factor(prediction, row, sure, confidence))
        boxes += [[value / side for value, side in zip(part.box, sides, strict=True)] for part in parts]
    heat = np.maximum(logits.max(0), 0)
    return Located(np.concatenate(scores), np.array(boxes).reshape(-1, 4), heat)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _factor(prediction: Prediction, row: int, sure: np.ndarray, confidence: str) -> float:
    """What the mean probabilities `sure` of a mask's parts are multiplied by."""
    if confidence == IOU:
        return float(np.clip(prediction.scores[row], 0, 1))
    return float(prediction.object_scores[row]) / sure.max(initial=1e-9) if confidence == OBJECT_SCORE else 1.0
