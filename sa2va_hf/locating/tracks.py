"""From boxes on some frames of a clip to masks on all of them, by SAM 2: box prompts, then its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa2va_hf.locating.segments import Boxes, Segment, plan_segments
from sa2va_hf.model.grounding_protocol import GroundingEncoder, ImageFeatures
from sa2va_hf.model.tracking import ClipMemory


@dataclass(frozen=True)
class FrameMasks:
    """Masks of one frame: logits (n, h, w) and the IoU expected of them (n,), for the n objects with these indices."""

    index: int
    objects: tuple[int, ...]
    logits: Tensor
    ious: Tensor


@torch.no_grad()
def track_boxes(
    encoder: GroundingEncoder, open_frame: Callable[[int], Tensor], num_frames: int, boxes: Boxes
) -> Iterator[FrameMasks]:
    """The masks of every frame, in order. Which boxes they come from: see `plan_segments`.

    All objects of a frame with boxes are prompted together and followed together. Masks before the first frame with
    boxes are made backward in time, so their logits wait in memory; of all others only one frame does.

    Args:
        open_frame: index -> uint8 (3, S, S).
        boxes: in pixels of that square.

    Raises:
        ValueError: as `plan_segments`.
    """
    for segment in plan_segments(num_frames, boxes):
        yield from _segment(encoder, open_frame, segment, boxes[segment.prompt])


def _segment(
    encoder: GroundingEncoder, open_frame: Callable[[int], Tensor], segment: Segment, boxes: Sequence
) -> Iterator[FrameMasks]:
    if not segment.objects:
        nothing = torch.zeros(0, encoder.mask_size, encoder.mask_size)
        yield from (FrameMasks(index, (), nothing, nothing[:, 0, 0]) for index in segment.frames)
        return
    features = _features(encoder, open_frame(segment.prompt))
    corners = torch.tensor([boxes[number] for number in segment.objects], dtype=torch.float32, device=encoder.device)
    prompted = encoder.prompt(features, boxes=corners)
    given = FrameMasks(segment.prompt, segment.objects, prompted.masks, prompted.ious.amax(1))
    before = range(segment.prompt - 1, segment.frames.start - 1, -1)
    yield from reversed(list(_follow(encoder, open_frame, given, features, before)))
    yield given
    yield from _follow(encoder, open_frame, given, features, range(segment.prompt + 1, segment.frames.stop))


def _follow(
    encoder: GroundingEncoder,
    open_frame: Callable[[int], Tensor],
    given: FrameMasks,
    features: ImageFeatures,
    frames: range,
) -> Iterator[FrameMasks]:
    """The objects of a frame on those that follow it in either direction of time, one after the other."""
    if not frames:
        return
    memory = ClipMemory(encoder, len(given.objects), len(frames) + 1)
    memory.prompt_with_masks(0, features, given.logits)
    for step, index in enumerate(frames, start=1):
        logits, scores = memory.follow(step, _features(encoder, open_frame(index)))
        yield FrameMasks(index, given.objects, logits, scores[:, 0])


def _features(encoder: GroundingEncoder, frame: Tensor) -> ImageFeatures:
    return encoder.encode(encoder.normalize(frame.unsqueeze(0).to(encoder.device)))
