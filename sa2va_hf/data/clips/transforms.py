"""How clips are varied before SAM 2 sees them: the steps of its fine-tuning on MOSE, in their order.

Flip, turn and shear, resize to a square, colours of the whole clip, grey, and colours of each frame. Everything is
sampled with the generator that is passed in (sam2: `training/dataset/transforms.py`, whose generators differ).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

FILL = (123, 116, 103)  # the mean colour, where a turned picture does not reach
COLOURS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


@dataclass(frozen=True)
class Augmentation:
    """flip, grayscale: probabilities. degrees, shear: at most, either way; a clip is not turned where an object of its
    first frame would leave the picture. brightness, contrast, saturation: relative, alike in all frames; frame_...:
    in each frame anew."""

    flip: float = 0.5
    degrees: float = 25.0
    shear: float = 20.0
    grayscale: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.03
    saturation: float = 0.03
    frame_brightness: float = 0.1
    frame_contrast: float = 0.05
    frame_saturation: float = 0.05

    def __post_init__(self) -> None:
        for item in fields(self):
            value, most = getattr(self, item.name), 180 if item.name in ("degrees", "shear") else 1
            if not 0 <= value <= most:
                raise ValueError(f"`{item.name}`: expected a number from 0 to {most}, got {value}")


def transform(
    frames: Sequence[Image.Image],
    masks: torch.Tensor,
    ignore: torch.Tensor,
    size: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clip as the network reads it; without `augmentation` it is only resized.

    Args:
        frames: T pictures of W x H. masks: bool (O, T, H, W). ignore: bool (T, H, W), pixels that do not count.
        size: side of the square.

    Returns:
        uint8 (T, 3, size, size), bool (O, T, size, size), bool (T, size, size).
    """
    stack = torch.cat([masks, ignore.unsqueeze(0)]).to(torch.uint8)  # (O + 1, T, H, W)
    if augmentation is not None and rng.random() < augmentation.flip:
        frames, stack = [F.hflip(frame) for frame in frames], stack.flip(-1)
    if augmentation is not None:
        frames, stack = _turn(frames, stack, rng, augmentation)
    frames = [frame.resize((size, size), Image.Resampling.BILINEAR) for frame in frames]
    stack = F.resize(stack, [size, size], InterpolationMode.BILINEAR, antialias=True) > 0
    if augmentation is not None:
        frames = _recolour(frames, rng, augmentation)
    pictures = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2).contiguous()
    return pictures, stack[:-1], stack[-1]


def _turn(
    frames: Sequence[Image.Image], stack: torch.Tensor, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[Sequence[Image.Image], torch.Tensor]:
    if not augmentation.degrees and not augmentation.shear:
        return frames, stack
    angle = rng.uniform(-augmentation.degrees, augmentation.degrees)
    shear = rng.uniform(-augmentation.shear, augmentation.shear)
    motion = {"angle": angle, "translate": [0, 0], "scale": 1.0, "shear": [shear, 0.0]}
    turned = F.affine(stack, **motion, interpolation=InterpolationMode.NEAREST, fill=[0])
    there, left = (maps[:-1, 0].flatten(1).any(1) for maps in (stack, turned))
    if (there & ~left).any():
        return frames, stack
    return [F.affine(f, **motion, interpolation=InterpolationMode.BILINEAR, fill=FILL) for f in frames], turned


def _recolour(frames: list[Image.Image], rng: np.random.Generator, augmentation: Augmentation) -> list[Image.Image]:
    a = augmentation
    clip = _jitter((a.brightness, a.contrast, a.saturation), rng)
    grey = rng.random() < a.grayscale
    out = []
    for frame in frames:
        single = _jitter((a.frame_brightness, a.frame_contrast, a.frame_saturation), rng)
        for adjust, factor in clip:
            frame = adjust(frame, factor)
        frame = F.to_grayscale(frame, num_output_channels=3) if grey else frame
        for adjust, factor in single:
            frame = adjust(frame, factor)
        out.append(frame)
    return out


def _jitter(widths: tuple[float, float, float], rng: np.random.Generator) -> list[tuple]:
    """(function, factor) of brightness, contrast and saturation, in a random order; none where the width is 0."""
    return [
        (COLOURS[place], rng.uniform(1 - widths[place], 1 + widths[place]))
        for place in rng.permutation(3)
        if widths[place]
    ]
