"""Crops of a picture that show what a phrase means, and crops of the same size that do not: what a visual search sees.

A search looks at parts of a picture, most of which do not hold the target, and has to tell from a score whether it is
there. A model that was trained on whole pictures and on what is in them has never seen a part without the target.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.boxes import ABSENT_BOX, Box
from sa2va_hf.data.schema import Expression, Object, Sample

PRESENT, ABSENT = "present", "absent"  # kinds of expressions
ANSWERS = ("mask", "words")  # an absent target has an empty mask, or the answer says in words that it is not there
LEVELS = 2  # how often a picture is halved: crops are a half or a quarter of its sides
TRIES = 20  # places of a crop that is to be without the target
QUALITY = 95  # of the JPEG that a crop is stored as
OF_THE_WHOLE = ("ordinal", "relation", "absolute", "relative", "switch", "no_target")  # kinds that a crop can change


@dataclass(frozen=True)
class Window:
    """A crop: its upper left corner and its size in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> Box:
        return self.x, self.y, self.x + self.width, self.y + self.height

    def cut(self, box: Sequence[float]) -> Box | None:
        """The part of a box of the picture that is within, in pixels of the crop; None where there is none."""
        x0, x1 = (min(max(float(value) - self.x, 0.0), float(self.width)) for value in box[::2])
        y0, y1 = (min(max(float(value) - self.y, 0.0), float(self.height)) for value in box[1::2])
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(frozen=True)
class Pair:
    """An expression (by index), a crop with one of its targets as a whole, and one of the same size without any."""

    expression: int
    present: Window
    absent: Window


def find_pairs(sample: Sample, count: int, minimum_size: int) -> list[Pair]:
    """At most `count` pairs of crops of a picture, of different expressions; sampled by the sample's id.

    Args:
        minimum_size: pixels of a crop's shorter side, at least.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8], "big"))
    found: list[Pair] = []
    for number in rng.permutation(len(sample.expressions)).tolist():
        boxes = _boxes(sample, sample.expressions[number])
        if len(found) < count and boxes and (windows := _windows(sample, boxes, minimum_size, rng)):
            found.append(Pair(number, *windows))
    return found


def crops_of(sample: Sample, pairs: Sequence[Pair], picture: Image.Image, absent: str) -> Iterator[Sample]:
    """Two samples of each pair, each with its expression alone. absent: one of `ANSWERS`."""
    for pair in pairs:
        for kind, window in ((PRESENT, pair.present), (ABSENT, pair.absent)):
            expression = sample.expressions[pair.expression]
            objects = [_cut(sample.objects[target], window) for target in expression.targets]
            if kind == ABSENT and absent == "words":
                objects = []
            yield replace(
                sample,
                id=f"{sample.id}/{pair.expression}-{kind}",
                width=window.width,
                height=window.height,
                frames=[_encoded(picture.crop(window.box))],
                objects=objects,
                expressions=[Expression(expression.text, list(range(len(objects))), kind)],
                ignore=[rle and _cut_mask(rle, window) for rle in sample.ignore],
            )


def _boxes(sample: Sample, expression: Expression) -> list[Box]:
    """The boxes of its targets; none where one is not known, or where the phrase depends on the whole picture."""
    if expression.kind in OF_THE_WHOLE:
        return []
    boxes = []
    for target in expression.targets:
        thing = sample.objects[target]
        box = thing.boxes[0] if thing.masks[0] is None else masks.rle_to_box(thing.masks[0])
        if box is None and thing.masks[0] is None:
            return []
        if box is not None and box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return boxes


def _windows(
    sample: Sample, boxes: list[Box], minimum_size: int, rng: np.random.Generator
) -> tuple[Window, Window] | None:
    """The smaller crops come first in half of the cases; None where no size has both."""
    x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
    for level in rng.permutation(np.arange(1, LEVELS + 1)).tolist():
        width, height = -(-sample.width // 2**level), -(-sample.height // 2**level)
        if min(width, height) < minimum_size or x1 - x0 > width or y1 - y0 > height:
            continue
        left = _place(max(0, int(np.ceil(x1)) - width), min(int(x0), sample.width - width), rng)
        top = _place(max(0, int(np.ceil(y1)) - height), min(int(y0), sample.height - height), rng)
        if left is None or top is None:
            continue
        for _ in range(TRIES):
            place = rng.integers((sample.width - width + 1, sample.height - height + 1)).tolist()
            empty = Window(*place, width, height)
            if not any(empty.cut(box) for box in boxes):
                return Window(left, top, width, height), empty
    return None


def _place(low: int, high: int, rng: np.random.Generator) -> int | None:
    return int(rng.integers(low, high + 1)) if low <= high else None


def _cut(thing: Object, window: Window) -> Object:
    rle, box = thing.masks[0], thing.boxes[0]
    if rle is None:
        return Object([None], [window.cut(box) or ABSENT_BOX], thing.category)
    cut = _cut_mask(rle, window)
    return Object([cut], [masks.rle_to_box(cut)], thing.category)


def _cut_mask(rle: masks.RLE, window: Window) -> masks.RLE:
    x0, y0, x1, y1 = window.box
    return masks.encode(masks.decode(rle)[y0:y1, x0:x1])


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
