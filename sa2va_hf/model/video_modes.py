"""From [SEG] embeddings to the masks of a whole clip: one function per video mode.

A mode streams: it loads frames by index, encodes each once for all objects and yields masks frame by frame, so the
memory needed does not depend on the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .frames import first_frames, uniform_frames
from .grounding_protocol import GroundingEncoder, ImageFeatures, MaskPrediction, precision
from .tracking import ClipMemory

LoadFrames = Callable[[list[int]], Tensor]  # frame indices -> uint8 (n, 3, S, S)
# Of n more frames: logits (objects, n, h, w) and `MaskPrediction.scores` (objects, n, 2).
ClipMasks = Iterator[tuple[Tensor, Tensor]]


class FrameReader:
    """Features of single frames in the order asked for; `at_once` of them are read and encoded together.

    constants: the precision of the pixels' mean and standard deviation.
    """

    def __init__(
        self, encoder: GroundingEncoder, load: LoadFrames, at_once: int, constants: torch.dtype = torch.float32
    ) -> None:
        self.encoder, self.load, self.at_once, self.constants = encoder, load, at_once, constants

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, ImageFeatures]]:
        """(index, features of that frame), for each of `indices`."""
        for start in range(0, len(indices), self.at_once):
            together = list(indices[start : start + self.at_once])
            pixels = self.encoder.normalize(self.load(together).to(self.encoder.device), self.constants)
            features = self.encoder.encode(pixels)
            for row, index in enumerate(together):
                yield index, features[row : row + 1]


def predict(encoder: GroundingEncoder, features: ImageFeatures, embeddings: Tensor) -> MaskPrediction:
    """Every object on the one frame of `features`, without memory."""
    frame_index = torch.zeros(len(embeddings), dtype=torch.long, device=embeddings.device)
    return encoder.decode(features, frame_index, embeddings)


def per_frame(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """Every frame by itself, without memory, as in training."""
    for _, features in frames.read(range(num_frames)):
        prediction = predict(frames.encoder, features, embeddings)
        yield prediction.masks.unsqueeze(1), prediction.scores.unsqueeze(1)


def memory(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """The released inference, step by step: the first frames are prompted, the others followed by memory.

    Its roundings are kept, since its numbers depend on them: pixel constants and memories are bfloat16.
    """
    remembered = ClipMemory(frames.encoder, len(embeddings), num_frames, torch.bfloat16)
    for index, features in frames.read(range(num_frames)):
        if index in key_frames:
            prediction = predict(frames.encoder, features, embeddings)
            masks, scores = prediction.masks, prediction.scores
            if num_frames > len(key_frames):
                remembered.prompt_with_embeddings(index, features, prediction)
        else:
            masks, scores = remembered.follow(index, features)
        yield masks.unsqueeze(1), scores.unsqueeze(1)


def consistent(frames: FrameReader, num_frames: int, key_frames: list[int], embeddings: Tensor) -> ClipMasks:
    """Masks of key frames from the whole clip are predicted as in training, then followed through the other frames.

    After Sa2VA-i (arXiv 2509.19082, repository kumuji/sa2va-i): SAM 2's memory was trained on masks that are given,
    not on those that a fine-tuned decoder predicts from an embedding. A frame between two key frames attends to both.
    """
    remembered, predicted = ClipMemory(frames.encoder, len(embeddings), num_frames), {}
    for index, features in frames.read(key_frames):
        prediction = predict(frames.encoder, features, embeddings)
        predicted[index] = prediction.masks, prediction.scores
        if num_frames > len(key_frames):
            remembered.prompt_with_masks(index, features, prediction.masks)
    others = frames.read([index for index in range(num_frames) if index not in predicted])
    for index in range(num_frames):
        masks, scores = predicted.pop(index) if index in predicted else remembered.follow(*next(others))
        yield masks.unsqueeze(1), scores.unsqueeze(1)


@dataclass(frozen=True)
class VideoMode:
    """`key_frames(clip length, count)` are the frames that the LLM reads; `masks` predicts on all frames."""

    key_frames: Callable[[int, int], list[int]]
    masks: Callable[[FrameReader, int, list[int], Tensor], ClipMasks]
    constants: torch.dtype = torch.float32  # precision of the pixels' mean and standard deviation


VIDEO_MODES = {
    "consistent": VideoMode(uniform_frames, consistent),
    "memory": VideoMode(first_frames, memory, torch.bfloat16),
    "per_frame": VideoMode(uniform_frames, per_frame),
}


def get_video_mode(name: str) -> VideoMode:
    """Raises: ValueError listing the modes there are."""
    if name not in VIDEO_MODES:
        raise ValueError(f"video_mode: expected one of {sorted(VIDEO_MODES)}, got {name!r}")
    return VIDEO_MODES[name]


def clip_masks(
    encoder: GroundingEncoder,
    load: LoadFrames,
    num_frames: int,
    key_frames: list[int],
    embeddings: Tensor,
    mode: str,
    dtype: torch.dtype = torch.float32,
    at_once: int | None = None,
) -> ClipMasks:
    """Masks of every object on every frame of a clip, in frame order; a picture is a clip of one frame.

    Args:
        embeddings: (objects, C) after `text_hidden_fcs`.
        mode: a name of `VIDEO_MODES`.
        dtype: what the LLM computes in; SAM 2 follows it.
        at_once: frames that are encoded together, default 4 on a GPU, else 1.

    Yields float32 logits (objects, n, h, w) of the next n frames, and their `MaskPrediction.scores` (objects, n, 2).
    """
    at_once = at_once or (4 if embeddings.device.type == "cuda" else 1)
    how = get_video_mode(mode)
    frames = FrameReader(encoder, load, at_once, how.constants)
    steps = how.masks(frames, num_frames, key_frames, embeddings)
    while True:
        with torch.no_grad(), precision(dtype, embeddings.device):  # entered per step: the caller runs in between
            step = next(steps, None)
        if step is None:
            return
        yield step


@torch.no_grad()
def picture_masks(
    encoder: GroundingEncoder,
    pixels: Tensor,
    embeddings: list[Tensor],
    mode: str,
    dtype: torch.dtype = torch.float32,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Several pictures at once, as clips of one frame: pixels uint8 (B, 3, S, S), per picture embeddings (objects, C).

    mode, dtype: see `clip_masks`. Returns per picture float32 logits (objects, h, w) and their
    `MaskPrediction.scores` (objects, 2).
    """
    constants = get_video_mode(mode).constants
    counts = [len(prompts) for prompts in embeddings]
    prompts = torch.cat(embeddings)
    picture = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(prompts.device)
    with precision(dtype, prompts.device):
        features = encoder.encode(encoder.normalize(pixels.to(prompts.device), constants))
        prediction = encoder.decode(features, picture, prompts)
    return prediction.masks.split(counts), prediction.scores.split(counts)
