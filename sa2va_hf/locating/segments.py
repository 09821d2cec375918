"""Which frames of a clip get their masks from which boxes.

A frame belongs to the last frame with boxes up to it, and those before the first one to the first. So an object that
has no box on a later frame with boxes has no mask from there on, until it has one again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sa2va_hf.boxes import Box

Boxes = Mapping[int, Sequence[Box | None]]  # frame index -> a box per object, None where it is absent


@dataclass(frozen=True)
class Segment:
    """Frames (a range of indices) that the boxes of frame `prompt` stand for. objects: indices of those with a box."""

    prompt: int
    frames: range
    objects: tuple[int, ...]


def plan_segments(num_frames: int, boxes: Boxes) -> list[Segment]:
    """The segments of a clip, in order.

    Raises:
        ValueError: no frame has boxes, one is beyond the clip, or a box has no area or is not finite.
    """
    if not boxes:
        raise ValueError("boxes: expected boxes on at least one frame, got none")
    prompts = sorted(boxes)
    if prompts[0] < 0 or prompts[-1] >= num_frames:
        raise ValueError(f"boxes: the clip has frames 0 to {num_frames - 1}, got boxes on frames {_listed(prompts)}")
    starts = [0, *prompts[1:]]
    ends = [*prompts[1:], num_frames]
    return [
        Segment(prompt, range(start, end), _objects(prompt, boxes[prompt]))
        for prompt, start, end in zip(prompts, starts, ends, strict=True)
    ]


def _objects(frame: int, boxes: Sequence[Box | None]) -> tuple[int, ...]:
    for number, box in enumerate(boxes):
        if box is None:
            continue
        fine = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
        if not fine:
            raise ValueError(
                f"boxes: frame {frame}, object {number}: expected [x0, y0, x1, y1] with an area, got {list(box)}"
            )
    return tuple(number for number, box in enumerate(boxes) if box is not None)


def _listed(values: Sequence[int], limit: int = 20) -> str:
    shown = ", ".join(map(str, values[:limit]))
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
