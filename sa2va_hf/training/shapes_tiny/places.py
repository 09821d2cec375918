"""Expressions of drawn scenes with their boxes, on visual tokens that are computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...boxes import Box, normalized
from ...data.media import load_frames
from ...data.relations import relate
from ...data.schema import Expression, Sample
from ...data.shapes.source import shapes
from ...masks import decode, mask_to_box
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .scenes import cell_cover, pixel_values
from .seen import AT_ONCE, CLIP_FRAMES, SHOWN

logger = logging.getLogger(__name__)


@dataclass
class Place:
    """An expression and where it is. targets: the objects that it means. frames: per frame that is shown the (target,
    box in shares of the picture) pairs, from left to right; None where that is not known. cover: (targets, frames,
    cells), the share of every cell that a target covers."""

    text: str
    kind: str
    targets: list[int]
    frames: list[list[tuple[int, Box]] | None]
    cover: Tensor

    def fallback(self) -> list[tuple[int, Box]]:
        """What is written for a frame that is not known: the boxes of the first one that is."""
        return next((frame for frame in self.frames if frame), [])


@dataclass
class Asked:
    """A scene: the LLM's visual tokens (frames, cells, D), float16, and its places."""

    tokens: Tensor
    places: list[Place]


def placed_scenes(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    count: int,
    objects: Sequence[int],
    clip: bool = False,
    file: Path | None = None,
) -> list[Asked]:
    """`count` scenes of `objects` shapes, least and most, from the training split of the source `shapes`: what its
    expressions mean and what the spatial relations between its shapes do. file: keeps them for a run that is
    resumed."""
    if file is not None and file.exists():
        return [
            Asked(one["tokens"], [Place(**place) for place in one["places"]])
            for one in torch.load(file, weights_only=True)
        ]
    shown = list(SHOWN) if clip else [0]
    options = {"min_objects": objects[0], "max_objects": objects[1], "num_frames": CLIP_FRAMES}
    drawn = shapes(None, "train", count=count, clip_fraction=float(clip), **options)
    found, waiting = [], []
    for sample in drawn:
        waiting.append(sample)
        if len(waiting) * len(shown) >= AT_ONCE or len(found) + len(waiting) == count:
            found += _look(model, processor, waiting, shown)
            waiting = []
            logger.info("looked at %d of %d scenes", len(found), count)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([asdict(one) for one in found], file)
    return found


@torch.no_grad()
def _look(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, samples: list[Sample], shown: list[int]
) -> list[Asked]:
    model.mllm.model.vision_tower.to(memory_format=torch.channels_last)
    grid = processor.pictures.region_grid
    frames = [np.stack([np.asarray(frame) for frame in load_frames(sample, shown)]) for sample in samples]
    features = model.backbone.features(model.mllm, pixel_values(frames, processor))
    tokens = features.view(len(samples), len(shown), grid**2, -1).half()
    return [Asked(own.clone(), places_of(sample, shown, grid)) for own, sample in zip(tokens, samples, strict=True)]


def places_of(sample: Sample, shown: Sequence[int], grid: int) -> list[Place]:
    """The places of a sample's expressions and relations on these frames."""
    related = relate(sample)
    found = [_place(sample, one, shown, grid) for one in sample.expressions]
    return found + [_place(related, one, shown, grid) for one in (related.expressions if related else [])]


def _place(sample: Sample, expression: Expression, shown: Sequence[int], grid: int) -> Place:
    frames: list[list[tuple[int, Box]] | None] = []
    cover = torch.zeros(len(expression.targets), len(shown), grid**2, dtype=torch.half)
    position_of = {index: position for position, index in enumerate(sample.annotated)}
    for number, index in enumerate(shown):
        if not expression.targets:
            frames.append([])
            continue
        at = position_of.get(index)
        rles = [None if at is None else sample.objects[target].masks[at] for target in expression.targets]
        if any(rle is None for rle in rles):
            frames.append(None)
            continue
        masks = [decode(rle) for rle in rles]
        cover[:, number] = cell_cover(np.stack(masks)[:, None], grid)[:, 0].half()
        boxes = [(target, mask_to_box(mask)) for target, mask in zip(expression.targets, masks, strict=True)]
        size = (sample.width, sample.height)
        known = [(target, normalized(box, *size)) for target, box in boxes if box is not None]
        frames.append(sorted(known, key=lambda pair: pair[1]))
    return Place(expression.text, expression.kind, list(expression.targets), frames, cover)
