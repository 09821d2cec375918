"""From [SEG] embeddings to the masks of a whole clip: one function per way of doing it.

A mode streams: it asks for frames by number, encodes each once for all objects and hands out masks as it goes, so that
the length of the clip does not matter to the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .grounding import ImageFeatures, MaskPrediction, Sa2VAGroundingEncoder
from .memory import ClipMemory

if TYPE_CHECKING:
    from .modeling_sa2va import Sa2VAForConditionalGeneration

LoadFrames = Callable[[list[int]], Tensor]  # frame numbers -> uint8 (n, 3, S, S)
ClipMasks = Iterator[tuple[Tensor, Tensor]]  # of n more frames: logits (objects, n, h, w), predicted IoU (objects, n)


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """`count` frame numbers from the first to the last, evenly; all of them in a shorter clip."""
    return np.linspace(0, num_frames - 1, min(count, num_frames), dtype=int).tolist()


def first_frames(num_frames: int, count: int) -> list[int]:
    return list(range(min(count, num_frames)))


class FrameReader:
    """Features of single frames in the order asked for; `at_once` of them are read and encoded together.

    constants: the precision of the pixels' mean and standard deviation.
    """

    def __init__(
        self, encoder: Sa2VAGroundingEncoder, load: LoadFrames, at_once: int, constants: torch.dtype = torch.float32
    ) -> None:
        self.encoder, self.load, self.at_once, self.constants = encoder, load, at_once, constants

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, ImageFeatures]]:
        device = self.encoder.sam2_model.device
        for start in range(0, len(numbers), self.at_once):
            together = list(numbers[start : start + self.at_once])
            pixels = self.encoder.normalize(self.load(together).to(device), self.constants)
            features = self.encoder.encode(pixels)
            for place, number in enumerate(together):
                yield number, features[place : place + 1]


def ask(encoder: Sa2VAGroundingEncoder, features: ImageFeatures, embeddings: Tensor) -> MaskPrediction:
    """Every object on the one frame of `features`, without memory."""
    return encoder.decode(
        features, torch.zeros(len(embeddings), dtype=torch.long, device=embeddings.device), embeddings
    )


def per_frame(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """Every frame by itself, without memory, as in training."""
    for _, features in frames.read(range(num_frames)):
        prediction = ask(frames.encoder, features, embeddings)
        yield prediction.masks.unsqueeze(1), prediction.ious.amax(1, keepdim=True)


def memory(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """The released inference, step by step: the first frames are asked, the others followed by memory.

    Its roundings are kept, since its numbers depend on them: pixel constants and memories are bfloat16.
    """
    remembered = ClipMemory(frames.encoder, len(embeddings), num_frames, torch.bfloat16)
    for number, features in frames.read(range(num_frames)):
        if number in key_frames:
            prediction = ask(frames.encoder, features, embeddings)
            masks, ious = prediction.masks, prediction.ious.amax(1)
            if num_frames > len(key_frames):
                remembered.prompt_with_embeddings(number, features, prediction)
        else:
            masks, ious = remembered.follow(number, features)
        yield masks.unsqueeze(1), ious.unsqueeze(1)


def consistent(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """Key frames all over the clip are drawn as in training, then their masks are followed through the others.

    After Sa2VA-i (arXiv 2509.19082, repository kumuji/sa2va-i): the memory was made for masks that are given, not for
    those that a fine-tuned decoder finds from an embedding. A frame between two key frames looks at both.
    """
    remembered, drawn = ClipMemory(frames.encoder, len(embeddings), num_frames), {}
    for number, features in frames.read(key_frames):
        prediction = ask(frames.encoder, features, embeddings)
        drawn[number] = prediction.masks, prediction.ious.amax(1)
        if num_frames > len(key_frames):
            remembered.prompt_with_masks(number, features, prediction.masks)
    others = frames.read([number for number in range(num_frames) if number not in drawn])
    for number in range(num_frames):
        masks, ious = drawn.pop(number) if number in drawn else remembered.follow(*next(others))
        yield masks.unsqueeze(1), ious.unsqueeze(1)


@dataclass(frozen=True)
class VideoMode:
    """`key_frames(clip length, how many)` are the frames the LLM reads; `masks` draws on all of them."""

    key_frames: Callable[[int, int], list[int]]
    masks: Callable[[FrameReader, int, list[int], Tensor], ClipMasks]
    constants: torch.dtype = torch.float32  # precision of the pixels' mean and standard deviation


VIDEO_MODES = {
    "consistent": VideoMode(uniform_frames, consistent),
    "memory": VideoMode(first_frames, memory, torch.bfloat16),
    "per_frame": VideoMode(uniform_frames, per_frame),
}


def get_video_mode(name: str) -> VideoMode:
    """Errors: ValueError listing the modes there are."""
    if name not in VIDEO_MODES:
        raise ValueError(f"video_mode: expected one of {sorted(VIDEO_MODES)}, got {name!r}")
    return VIDEO_MODES[name]


def clip_masks(
    model: Sa2VAForConditionalGeneration,
    load: LoadFrames,
    num_frames: int,
    key_frames: list[int],
    embeddings: Tensor,
    mode: str | None = None,
    at_once: int | None = None,
) -> ClipMasks:
    """Masks of every object on every frame of a clip, in frame order; a picture is a clip of one frame.

    embeddings: (objects, C) after `text_hidden_fcs`; mode: default the model's own; at_once: frames that are encoded
    together, default 4 on a GPU, else 1. Yields float32 logits (objects, n, h, w) and the IoU that the model
    expects of them (objects, n).
    """
    at_once = at_once or (4 if embeddings.device.type == "cuda" else 1)
    how = get_video_mode(mode or model.config.video_mode)
    frames = FrameReader(model.grounding_encoder, load, at_once, how.constants)
    steps = how.masks(frames, num_frames, key_frames, embeddings)
    while True:
        with torch.no_grad(), model.grounding_precision():  # entered per step: the caller runs in between
            step = next(steps, None)
        if step is None:
            return
        yield step


@torch.no_grad()
def picture_masks(
    model: Sa2VAForConditionalGeneration, pixels: Tensor, embeddings: list[Tensor], mode: str | None = None
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Several pictures at once, as clips of one frame: pixels uint8 (B, 3, S, S), embeddings per picture (objects, C).

    Returns per picture float32 logits (objects, h, w) and the IoU that the model expects of them (objects,).
    """
    encoder, constants = model.grounding_encoder, get_video_mode(mode or model.config.video_mode).constants
    counts = [len(prompts) for prompts in embeddings]
    prompts = torch.cat(embeddings)
    picture = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(prompts.device)
    with model.grounding_precision():
        features = encoder.encode(encoder.normalize(pixels.to(prompts.device), constants))
        prediction = encoder.decode(features, picture, prompts)
    return prediction.masks.split(counts), prediction.ious.amax(1).split(counts)
