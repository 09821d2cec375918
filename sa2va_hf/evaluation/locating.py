"""Boxes of expressions, in pictures and on the frames of clips, as the model writes them (or those of its masks).

Frames that the LLM reads are scored, where it is known who is there: Acc@0.5 and mean IoU over frames, m_vIoU and
vIoU@0.3, vIoU@0.5 over clips (`boxes.BoxTubes`); per kind of expression, and per ordinal ("second", "21st") of phrases
that count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sa2va_hf.data.media import Frames
from sa2va_hf.data.relations import ordinal
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation.boxes import BoxTubes
from sa2va_hf.evaluation.items import POSITIONS, Answer, Item, Settings, percent, true_boxes
from sa2va_hf.evaluation.metrics import mean
from sa2va_hf.evaluation.position_baseline import FrequentBoxes
from sa2va_hf.inference import Prediction, Sa2VAPredictor
from sa2va_hf.model.frames import uniform_frames

ALL = "all"
MASK_PROMPT = "Please segment {}."  # where the boxes are those of masks
ORDINALS = {ordinal(number): number for number in range(1, 31)}
_COUNTED = re.compile(rf"\b({'|'.join(ORDINALS)})\b")


class Locating:
    """One question per expression. Where one object of a picture is meant, the first box counts, as RefCOCO is scored;
    elsewhere all boxes of a frame do, see `boxes.frame_iou`."""

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        for number, one in enumerate(sample.expressions):
            right = "" if one.targets else "not there"
            yield Item(f"{sample.id}/{number}", sample, one.text, one.kind, tuple(one.targets), right=right)

    def record(self, settings: Settings) -> dict[str, Any]:
        """How it is asked. ValueError for a setting that does not apply."""
        if settings.mode != "generate" or settings.baseline == "box" or settings.search:
            raise ValueError("boxes are not scored with --mode teacher, --baseline box or --search")
        if settings.baseline is not None:
            return {"prompts": []}
        return {"prompts": [MASK_PROMPT]} if settings.answer_with == "boxes_of_masks" else {}

    def ask(
        self, predictor: Sa2VAPredictor | FrequentBoxes, items: Sequence[Item], settings: Settings
    ) -> list[Answer]:
        if settings.baseline in POSITIONS:
            return [_constant(item, predictor.of_item(item), settings) for item in items]
        opened = {item.media: Frames(item.sample) for item in items}
        is_clip = items[0].sample.num_frames > 1  # a batch has clips or pictures
        shown = [opened[item.media] if is_clip else opened[item.media][0] for item in items]
        asked = {"video" if is_clip else "image": shown}
        asked |= {"num_frames": settings.num_frames, "max_new_tokens": settings.max_new_tokens}
        texts = [item.question for item in items]
        if settings.answer_with == "boxes_of_masks":
            texts = [self.mask_prompt(text) for text in texts]
            found = predictor(text=texts, video_mode=settings.video_mode, **asked)
        else:
            found = predictor.locate(text=texts, **asked)
        return [self._answer(item, one, settings) for item, one in zip(items, found, strict=True)]

    def kept_frames(self, item: Item, settings: Settings) -> Sequence[int]:
        """The frames whose boxes are kept of an answer."""
        return frames_read(item.sample, settings)

    def mask_prompt(self, text: str) -> str:
        """How masks are asked for, where the boxes are those of masks."""
        return MASK_PROMPT.format(text)

    def _answer(self, item: Item, found: Prediction, settings: Settings) -> Answer:
        boxes = {str(index): _boxes_on(found, index) for index in self.kept_frames(item, settings)}
        return Answer(found.text, more={"boxes": boxes, "problems": list(found.problems)})

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        tubes = BoxTubes()
        score = self._add(tubes, item, answer)
        return {"score": 0.0 if score is None else score, "problems": len(answer.more["problems"])}

    def _add(self, tubes: BoxTubes, item: Item, answer: Answer) -> float | None:
        """Add an item; None where nothing is known of the frames that were read."""
        most = 1 if item.sample.num_frames == 1 and len(item.targets) == 1 else None
        pairs = [
            (boxes[:most], true)
            for index, boxes in answer.more["boxes"].items()
            if (true := true_boxes(item, int(index))) is not None
        ]
        return tubes.add(*(list(side) for side in zip(*pairs, strict=True))) if pairs else None

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        """Figures in percent, of all and by group."""
        groups: dict[str, list[tuple[Item, Answer]]] = defaultdict(list)
        for item, answer in zip(items, answers, strict=True):
            for name in _groups(item):
                groups[name].append((item, answer))
        found = {name: self._figures(groups[name]) for name in sorted(groups)}
        return found.pop(ALL) | ({"by_kind": found} if found else {})

    def _figures(self, group: Sequence[tuple[Item, Answer]]) -> dict[str, Any]:
        tubes = BoxTubes()
        for item, answer in group:
            self._add(tubes, item, answer)
        read = {"read": mean(not answer.more["problems"] for _, answer in group)}
        return {"expressions": len(group)} | percent(read | (tubes.result() if len(tubes) else {}))


def frames_read(sample: Sample, settings: Settings) -> list[int]:
    """The frames of a sample that the LLM reads."""
    return uniform_frames(sample.num_frames, settings.num_frames)


def _constant(item: Item, box: Sequence[float], settings: Settings) -> Answer:
    """The same box on every frame."""
    row = [round(value, 3) for value in box]
    return Answer("", more={"boxes": {str(i): [row] for i in frames_read(item.sample, settings)}, "problems": []})


def _boxes_on(found: Prediction, index: int) -> list[list[float]]:
    rows = found.boxes[:, index] if len(found.boxes) else np.zeros((0, 4))
    return [[round(value, 3) for value in row] for row in rows[np.isfinite(rows).all(-1)].tolist()]


def _groups(item: Item) -> Iterator[str]:
    yield ALL
    if item.kind:
        yield item.kind
    if item.kind in ("absolute", "relative", "ordinal") and (counted := _COUNTED.search(item.question)):
        yield f"ordinal {ORDINALS[counted[1]]:02d}"
