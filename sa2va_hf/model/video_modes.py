"""From [SEG] embeddings to the masks of a whole clip: one function per way of doing it.

A mode streams: it asks for frames by number, encodes each once for all objects and hands out masks as it goes, so that
the length of the clip does not matter to the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .grounding import Sa2VAGroundingEncoder

if TYPE_CHECKING:
    from .modeling_sa2va import Sa2VAForConditionalGeneration

LoadFrames = Callable[[list[int]], Tensor]  # frame numbers -> uint8 (n, 3, S, S)
ClipMasks = Iterator[tuple[Tensor, Tensor]]  # of n more frames: logits (objects, n, h, w), predicted IoU (objects, n)


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """`count` frame numbers from the first to the last, evenly; all of them in a shorter clip."""
    return np.linspace(0, num_frames - 1, min(count, num_frames), dtype=int).tolist()


def per_frame(
    encoder: Sa2VAGroundingEncoder, load: LoadFrames, num_frames: int, key_frames: list[int], embeddings: Tensor
) -> ClipMasks:
    """Every frame by itself, without memory, as in training."""
    objects = len(embeddings)
    for number in range(num_frames):
        frame = load([number]).to(embeddings.device)
        index = torch.zeros(objects, dtype=torch.long, device=embeddings.device)
        prediction = encoder.decode(encoder.encode(encoder.normalize(frame)), index, embeddings)
        yield prediction.masks.unsqueeze(1), prediction.ious.amax(1, keepdim=True)


@dataclass(frozen=True)
class VideoMode:
    """`key_frames(clip length, how many)` are the frames the LLM reads; `masks` draws on all of them."""

    key_frames: Callable[[int, int], list[int]]
    masks: Callable[[Sa2VAGroundingEncoder, LoadFrames, int, list[int], Tensor], ClipMasks]


VIDEO_MODES = {"per_frame": VideoMode(uniform_frames, per_frame)}
DEFAULT_VIDEO_MODE = "per_frame"


def get_video_mode(name: str) -> VideoMode:
    if name not in VIDEO_MODES:
        raise ValueError(f"video_mode: expected one of {sorted(VIDEO_MODES)}, got {name!r}")
    return VIDEO_MODES[name]


def clip_masks(
    model: Sa2VAForConditionalGeneration,
    load: LoadFrames,
    num_frames: int,
    key_frames: list[int],
    embeddings: Tensor,
    mode: str = DEFAULT_VIDEO_MODE,
) -> ClipMasks:
    """Masks of every object on every frame of a clip, in frame order; a picture is a clip of one frame.

    embeddings: (objects, C) after `text_hidden_fcs`. Yields (objects, n, h, w) float32 logits and the IoU the model
    expects of them (objects, n).
    """
    steps = get_video_mode(mode).masks(model.grounding_encoder, load, num_frames, key_frames, embeddings)
    while True:
        with torch.no_grad(), model.grounding_precision():  # entered per step: the caller runs in between
            step = next(steps, None)
        if step is None:
            return
        yield step
