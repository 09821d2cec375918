"""Scenes that the frozen encoders have looked at once, so that what stands on them is trained in quick steps."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.shapes.scene import Options, Scene
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .scenes import Drawn, cell_cover, draw_scenes, pixel_values

logger = logging.getLogger(__name__)

CLIP_FRAMES = 8
SHOWN = (0, 1, 3, 5, 7)  # what `uniform_frames` shows the LLM of a clip of eight
AT_ONCE = 50  # images


@dataclass
class Seen:
    """One scene as the encoders see it, on the frames that are shown; tensors are float16.

    tokens: (F, cells, D), the LLM's visual tokens. levels: features of SAM 2, (F, C, h, w) each, if it looked too.
    cover: (shapes, F, cells), the share of every cell that a shape covers. masks: (shapes, F, h, w), likewise at the
    masks' resolution.
    """

    scene: Scene
    tokens: Tensor
    levels: list[Tensor]
    cover: Tensor
    masks: Tensor


def seen_scenes(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    seed: str,
    count: int,
    objects: Sequence[int],
    clip: bool = False,
    grounding: bool = True,
    file: Path | None = None,
    shades: float = 0.0,
) -> list[Seen]:
    """`count` scenes of default looks, of `objects` shapes each. grounding: whether SAM 2 looks as well. file: keeps
    the tensors for a run that is resumed; scenes are drawn again, which is quick. shades: share of the scenes whose
    background may have any shade."""
    rng, drawn = random.Random(seed), []
    frames = list(SHOWN) if clip else [0]
    for _ in range(count):
        number = rng.choice(objects)
        options = Options(min_objects=number, max_objects=number, num_frames=CLIP_FRAMES if clip else 1)
        drawn += draw_scenes(rng, options, 1, shades)
    if file is not None and file.exists():
        parts = torch.load(file, weights_only=True)
    else:
        parts = _look(model, processor, drawn, frames, grounding)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(parts, file)
    grid, size = processor.pictures.region_grid, model.grounding_encoder.mask_size
    found = []
    for number, one in enumerate(drawn):
        masks = one.masks[:, frames]
        small = F.interpolate(torch.from_numpy(masks).float(), size=(size, size), mode="area")
        at = slice(number * len(frames), (number + 1) * len(frames))
        levels = [level[at] for level in parts["levels"]]
        found.append(Seen(one.scene, parts["tokens"][at], levels, cell_cover(masks, grid).half(), small.half()))
    return found


@torch.no_grad()
def _look(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    drawn: list[Drawn],
    frames: list[int],
    grounding: bool,
) -> dict[str, Tensor | list[Tensor]]:
    """Visual tokens and SAM 2's features of all shown frames, one scene after another."""
    model.mllm.model.vision_tower.to(memory_format=torch.channels_last)
    cells, encoder = processor.pictures.region_grid**2, model.grounding_encoder
    tokens, levels = [], []
    step = AT_ONCE // len(frames)
    for start in range(0, len(drawn), step):
        shown = [one.frames[frames] for one in drawn[start : start + step]]
        features = model.backbone.features(model.mllm, pixel_values(shown, processor))
        tokens.append(features.view(-1, cells, features.shape[-1]).half())
        if grounding:
            pixels = torch.from_numpy(np.concatenate(shown)).permute(0, 3, 1, 2)
            levels.append([level.half() for level in encoder.encode(encoder.normalize(pixels)).levels])
        if start % (20 * step) == 0:
            logger.info("looked at %d of %d scenes", start + len(shown), len(drawn))
    return {"tokens": torch.cat(tokens), "levels": [torch.cat(level) for level in zip(*levels, strict=True)]}


def seen_file(folder: Path, model: Sa2VAForConditionalGeneration, name: str) -> Path:
    """Where scenes are kept that the model's encoders, as they are now, have looked at."""
    parts = [*model.backbone.vision(model.mllm), *model.backbone.projector(model.mllm)]
    parts.append(model.grounding_encoder.sam2_model.image_encoder)
    total = sum(float(p.detach().double().abs().sum()) for part in parts for p in part.parameters())
    return folder / f"seen-{name}-{total:.4f}.pt"
