"""Turns that are answered by boxes: which frames they are about, and what is asked and answered.

Frames are chosen as inference chooses them, evenly spaced; in training, those of a random stretch of the clip. The
text is written afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.boxes import ABSENT_BOX, OWN_FORMS, SINGLE_IMAGE, SPATIAL, Box, mention, switch_frames, write
from sa2va_hf.data.dataset.rows import Row
from sa2va_hf.data.prompts.box_templates import box_answer, box_question
from sa2va_hf.data.schema import Expression
from sa2va_hf.model.frames import uniform_frames

SWITCH_KIND = "switch"  # of an expression: which of its objects is meant changes from frame to frame


def stretch(choices: np.ndarray, count: int, rng: np.random.Generator | None) -> list[int]:
    """`count` evenly spaced ones of the frames that may be taken, or all if there are fewer.

    rng: of a random stretch of at least `count` of them; None: of all.
    """
    count = min(count, len(choices))
    length, start = len(choices), 0
    if rng is not None:
        length = int(rng.integers(count, len(choices) + 1))
        start = int(rng.integers(len(choices) - length + 1))
    return [int(choices[start + index]) for index in uniform_frames(length, count)]


def known_boxes(row: Row, position: int, instances: Sequence[int]) -> list[Box | None] | None:
    """The box of each object on an annotated frame, None for one that is absent; None where one is not known."""
    found: list[Box | None] = []
    for instance in instances:
        box = row.box(instance, position)
        if box is None and (rle := row.mask(instance, position)) is not None:
            box = masks.rle_to_box(rle) or ABSENT_BOX
        if box is None:
            return None
        found.append(box if box[2] > box[0] and box[3] > box[1] else None)
    return found


@dataclass(frozen=True)
class BoxScribe:
    """Writes turns in one form of boxes. both: answers hold a [SEG] beside the boxes. tokens: the form has its own
    tokens, see `boxes.BOX_TOKENS`."""

    form: str
    both: bool = False
    tokens: bool = False

    def turn(
        self, row: Row, expression: Expression, frames: Sequence[int], is_clip: bool, rng: np.random.Generator | None
    ) -> tuple[str, str]:
        """Question and answer about an expression on these frames; rng: of the templates, None: the first ones."""
        found: list[list[Box | None]] = [[] for _ in frames]
        if expression.targets:
            position_of = {number: position for position, number in enumerate(row.annotated().tolist())}
            found = [_expected(row, position_of[frame], expression.targets) for frame in frames]
        boxes = [[box for box in of_frame if box is not None] for of_frame in found]
        present = [[index for index, box in enumerate(of_frame) if box is not None] for of_frame in found]
        marked = switch_frames(present) if expression.kind == SWITCH_KIND else ()
        written = write(boxes, row["width"], row["height"], self.form, marked)
        if self.tokens and not is_clip:
            written += SINGLE_IMAGE
        text = mention(expression.text, self.form)
        both = self.both and bool(expression.targets)
        question = box_question(text, expression.kind, is_clip, self.both, rng)
        return question, box_answer(text, expression.kind, written, is_clip, bool(expression.targets), both, rng)


def _expected(row: Row, position: int, instances: Sequence[int]) -> list[Box | None]:
    """As `known_boxes`. Raises: ValueError where one is not known; `Planner` takes no such frame."""
    found = known_boxes(row, position, instances)
    if found is None:
        raise ValueError(f"{row['id']}: annotated frame {position} has neither mask nor box of objects {instances}")
    return found


def scribe_of(processor: Any, answer: str) -> BoxScribe:
    """What writes the boxes of a processor's model. answer: "boxes" or "both"."""
    form = processor.box_form or OWN_FORMS.get(processor.backbone, SPATIAL)
    tokens = form == SPATIAL and SINGLE_IMAGE in processor.tokenizer.get_vocab()
    return BoxScribe(form, answer == "both", tokens)
