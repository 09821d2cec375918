"""What is asked of a model and what it answers: the two records that every benchmark works with."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sa2va_hf.boxes import Box
from sa2va_hf.data.schema import Sample
from sa2va_hf.masks import RLE, decode, encode, rle_to_box

MODES = ("generate", "teacher")
POSITIONS = ("position", "position_of_phrase")  # baselines that see nothing: boxes of other data
BASELINES = ("box", *POSITIONS)
ANSWERS_WITH = ("boxes", "boxes_of_masks")


@dataclass(frozen=True)
class Settings:
    """How a model is asked. mode: "teacher" gives it the answer, so that only its masks are scored.
    baseline: "box" replaces the model's masks with SAM 2's masks of the boxes that the LLM writes; "position" and
    "position_of_phrase" answer every question with the most frequent box of `positions_of`, a prepared dataset, or
    with that of the same phrase (`evaluation.position_baseline`).
    box_style: how it is asked for a box, a name of `box_baseline.BOX_STYLES`.
    text_encoder: a folder of a BERT that compares phrases (grounded captions).
    search: targets of a question are searched first (V*Bench).
    answer_with: "boxes", which the model writes, or "boxes_of_masks", those around its masks, are scored instead of
    masks; None: as the benchmark does."""

    mode: str = "generate"
    baseline: str | None = None
    box_style: str | None = None
    max_new_tokens: int = 2048  # as released
    num_frames: int = 5
    video_mode: str | None = None
    text_encoder: str | None = None
    search: bool = False
    answer_with: str | None = None
    positions_of: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("baseline", (None, *BASELINES)), ("answer_with", (None, *ANSWERS_WITH))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")
        if self.baseline is not None and self.mode != "generate":
            raise ValueError(f"baseline {self.baseline!r} needs mode 'generate', got {self.mode!r}")
        if (self.baseline in POSITIONS) != (self.positions_of is not None):
            raise ValueError(f"positions_of, a prepared dataset, goes with a baseline of {', '.join(POSITIONS)}")


@dataclass(frozen=True)
class Item:
    """One question about a sample.

    key: unique within the benchmark. targets: indices of the objects that the question refers to. more: further data
    that a protocol needs. right: the reference text, for reports. draws: whether the answer has masks.
    """

    key: str
    sample: Sample
    question: str
    kind: str = ""
    targets: tuple[int, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    right: str = ""
    draws: bool = True

    @property
    def media(self) -> Hashable:
        """The key of its image or clip: items of a batch with the same key share one encoding."""
        return self.sample.video or tuple(self.sample.frames)

    def truth(self, frame: int) -> np.ndarray:
        """bool (targets, H, W) on an annotated frame, given by its index in `sample.annotated`."""
        shape = (self.sample.height, self.sample.width)
        found = [self.sample.objects[target].masks[frame] for target in self.targets]
        return np.array([np.zeros(shape, bool) if rle is None else decode(rle) for rle in found]).reshape(-1, *shape)


@dataclass
class Answer:
    """What the model answered.

    text: the generated text. masks: an RLE per object and frame that is scored or submitted. more: further results, as
    JSON. figures: what `score` returns; "score" orders the samples of a report.
    """

    text: str
    masks: list[list[RLE]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def mask(self, item: Item, frame: int) -> np.ndarray:
        """bool (H, W) of the first object on a frame; empty when there is none. ValueError for another size."""
        sample = item.sample
        if not self.masks:
            return np.zeros((sample.height, sample.width), dtype=bool)
        return checked_mask(self.masks[0], item, frame)


def checked_mask(track: list[RLE], item: Item, frame: int) -> np.ndarray:
    """The predicted mask of a frame, bool (H, W).

    Raises:
        ValueError: a missing frame, or another size than the frame's.
    """
    sample = item.sample
    if frame >= len(track):
        raise ValueError(f"expected a prediction of frame {frame}, got {len(track)} frames")
    size, wanted = list(track[frame]["size"]), [sample.height, sample.width]
    if size != wanted:
        raise ValueError(f"expected a mask of {wanted} (height, width), got {size}")
    return decode(track[frame])


def true_boxes(item: Item, index: int) -> list[Box] | None:
    """The boxes of what is meant on a frame; None where they are not known."""
    if not item.targets:
        return []
    if index not in item.sample.annotated:
        return None
    at, found = item.sample.annotated.index(index), []
    for target in item.targets:
        one = item.sample.objects[target]
        box = one.boxes[at]
        if box is None and one.masks[at] is None:
            return None
        box = rle_to_box(one.masks[at]) if box is None else box
        if box is not None and box[2] > box[0] and box[3] > box[1]:
            found.append(tuple(box))
    return found


def encode_tracks(masks: np.ndarray) -> list[list[RLE]]:
    """bool (objects, frames, H, W) -> RLEs."""
    return [[encode(mask) for mask in track] for track in masks]


def cost(items: Sequence[Item]) -> int:
    """A relative estimate of a batch's time, by which the processes share the batches: frames count more than text."""
    frames = {item.media: item.sample.num_frames for item in items}
    return 100 * sum(frames.values()) + sum(len(item.question) for item in items)


def percent(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures in 0..1 in percent, as they are published."""
    return {name: 100 * value for name, value in figures.items()}


def to_row(item: Item, answer: Answer) -> dict[str, Any]:
    """A row of the predictions; floats are written so that they are read back the same."""
    more = {
        name: json.dumps(value, sort_keys=True) for name, value in (("more", answer.more), ("figures", answer.figures))
    }
    row = {"key": item.key, "sample": item.sample.id, "kind": item.kind, "question": item.question}
    return row | {"answer": answer.text, "masks": answer.masks} | more


def from_row(row: dict[str, Any]) -> Answer:
    masks = [[{"size": list(rle["size"]), "counts": rle["counts"]} for rle in track] for track in row["masks"]]
    more, figures = (json.loads(row.get(name) or "{}") for name in ("more", "figures"))
    return Answer(row["answer"], masks, more, figures)
