"""Baselines that see nothing: every question is answered with the box that is most frequent in other data.

A model that locates what is asked for must be better than the most frequent box of the training data, and one that
reads the picture better than the most frequent box of the same phrase ("the first object from the left" is on the
left whatever the picture shows).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sa2va_hf.boxes import Box, box_iou, normalized, to_pixels
from sa2va_hf.data.schema import Sample
from sa2va_hf.data.sources.prepared import prepared
from sa2va_hf.evaluation.items import Item, Settings, true_boxes

LEAST = 5  # boxes of a phrase from which on they count; of rarer ones the box of all phrases is taken
MOST = 1000  # boxes that are compared pairwise, evenly spaced ones
_REFERENCE = re.compile(r"\[[^\]]*\]")


class FrequentBoxes:
    """The most frequent box of a dataset, and of each of its phrases, in shares of the picture.

    The most frequent of some boxes is the one with the largest mean IoU with all of them. A box within a phrase
    ("to the left of the one at [67, 314, 177, 658]") is no part of it.

    Raises:
        ValueError: no box in the data.
    """

    def __init__(self, samples: Iterable[Sample], by_phrase: bool = False) -> None:
        everything: list[Box] = []
        of_phrase: dict[str, list[Box]] = defaultdict(list)
        for sample in samples:
            for text, boxes in _boxes(sample):
                everything += boxes
                of_phrase[_key(text)] += boxes
        if not everything:
            raise ValueError("positions_of: expected expressions with boxes, got none")
        self.box = most_frequent(everything)
        known = {phrase: boxes for phrase, boxes in of_phrase.items() if len(boxes) >= LEAST} if by_phrase else {}
        self.by_phrase = {phrase: most_frequent(boxes) for phrase, boxes in known.items()}

    @classmethod
    def of(cls, settings: Settings) -> FrequentBoxes:
        """Those of the training split of `settings.positions_of`. ValueError for what is no prepared dataset."""
        records = prepared(Path(settings.positions_of))
        samples = (record for record in records if isinstance(record, Sample))
        return cls(samples, settings.baseline == "position_of_phrase")

    def of_item(self, item: Item) -> Box:
        """The box of a question, in pixels of its picture."""
        box = self.by_phrase.get(_key(item.question), self.box)
        return to_pixels(box, item.sample.width, item.sample.height)


def most_frequent(boxes: list[Box]) -> Box:
    """The one with the largest mean IoU with all (the first of several)."""
    found = np.array(boxes)[np.linspace(0, len(boxes) - 1, min(len(boxes), MOST), dtype=int)]
    return tuple(found[box_iou(found[:, None], found[None]).mean(1).argmax()].tolist())


def _boxes(sample: Sample) -> Iterable[tuple[str, list[Box]]]:
    """The text of each expression and its boxes on all frames on which they are known."""
    size = (sample.width, sample.height)
    for one in sample.expressions:
        item = Item(sample.id, sample, one.text, targets=tuple(one.targets))
        known = (true_boxes(item, index) for index in sample.annotated)
        yield one.text, [normalized(box, *size) for boxes in known for box in boxes or ()]


def _key(text: str) -> str:
    return " ".join(_REFERENCE.sub("", text).casefold().split())
