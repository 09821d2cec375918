"""Questions about the images of a prepared folder, the masks that answer them, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from PIL import Image

from ..data.media import load_frames
from ..data.schema import Sample, from_row
from ..evaluation.metrics import CumulativeIoU
from ..inference import Sa2VAPredictor
from ..masks import decode

PER_IMAGE = 3  # expressions asked about each image
BATCH = 16
ARTICLES = ("the", "all", "a", "an", "every")


@dataclass
class Question:
    """One phrase to segment in one image; target: bool (H, W)."""

    image: Image.Image
    phrase: str
    target: np.ndarray


def union(sample: Sample, targets: Sequence[int], frame: int = 0) -> np.ndarray:
    """The mask that covers all of `targets` on an annotated frame: bool (H, W)."""
    masks = [sample.objects[target].masks[frame] for target in targets]
    found = [decode(mask) for mask in masks if mask is not None]
    return np.any(found, axis=0) if found else np.zeros((sample.height, sample.width), bool)


def questions(folder: Path | str, images: int | None = None) -> list[Question]:
    """Up to `PER_IMAGE` questions about every image of a prepared folder, or about the first `images` of them."""
    folder = Path(folder)
    rows, found = load_from_disk(str(folder)), []
    for row in rows if images is None else rows.select(range(min(images, len(rows)))):
        sample = from_row(row)
        image = load_frames(sample, [0])[0]
        for expression in [e for e in sample.expressions if e.targets][:PER_IMAGE]:
            found.append(Question(image, expression.text, union(sample, expression.targets)))
    return found


def ask(
    predictor: Sa2VAPredictor, asked: Sequence[Question], progress: Callable[[int], object] | None = None
) -> list[np.ndarray]:
    """One mask (H, W) per question; an answer without [SEG] is an empty mask. progress: called with the number of
    questions answered since the last call."""
    answers = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        texts = [f"Please segment {with_article(question.phrase)} in this image." for question in batch]
        predictions = predictor(image=[question.image for question in batch], text=texts, max_new_tokens=16)
        for question, prediction in zip(batch, predictions, strict=True):
            empty = np.zeros_like(question.target)
            answers.append(prediction.masks.any(0)[0] if len(prediction.masks) else empty)
        if progress is not None:
            progress(len(batch))
    return answers


def with_article(phrase: str) -> str:
    """The phrase with "the" before it, unless it has an article."""
    return phrase if phrase.split()[0].lower() in ARTICLES else f"the {phrase}"


def iou(answer: np.ndarray, target: np.ndarray) -> float:
    """IoU of two masks; 1 where both are empty."""
    either = np.count_nonzero(answer | target)
    return np.count_nonzero(answer & target) / either if either else 1.0


def score(answers: Sequence[np.ndarray], asked: Sequence[Question]) -> dict[str, float]:
    """cIoU (intersection over union of all pixels) and gIoU (mean IoU of the questions)."""
    total = CumulativeIoU()
    for answer, question in zip(answers, asked, strict=True):
        total.add(answer, question.target)
    return {"cIoU": total.ciou(), "gIoU": total.giou()}


def constant_mask(train: Sequence[Question], asked: Sequence[Question]) -> list[np.ndarray]:
    """What can be had without looking: the mean training mask, cut where that is best on the training images."""
    mean = np.mean([_resize(question.target, (64, 64)) for question in train], axis=0)
    cuts = np.quantile(mean, np.linspace(0, 0.98, 50))
    best = max(cuts, key=lambda cut: score([_resize(mean, q.target.shape) >= cut for q in train], train)["cIoU"])
    return [_resize(mean, question.target.shape) >= best for question in asked]


def _resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(shape[::-1]))
