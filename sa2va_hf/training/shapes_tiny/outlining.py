"""Lesson on outlines: SAM 2's mask decoder learns to read the code of a target (`code.py`), without any LLM.

The codes are true but for some noise, as those of an LLM will be; a part of them says only what the target looks like,
because a prompt serves all frames of a clip, and a place is wrong there as soon as the target has moved.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.shapes.scene import Options
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .choosing import Choosing, outline
from .scenes import cell_cover, draw_scenes
from .seen import Seen


class Outlining(Choosing):
    """See the module. masks_per_step: targets of a step; noise: of every number of a code; unplaced: share of codes
    that say no place; clip_share: of targets that are taken from clips; encoder: SAM 2's image encoder is trained as
    well, on pictures that are drawn in every step. Further options as in `Choosing`."""

    name = "outlining"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        masks_per_step: int = 64,
        noise: float = 0.25,
        unplaced: float = 0.15,
        clip_share: float = 0.2,
        encoder: bool = False,
        **options: object,
    ) -> None:
        self.encoder = encoder
        super().__init__(model, processor, train=["decoder"], masks=1.0, **options)
        if encoder:
            model.grounding_encoder.sam2_model.sam_mask_decoder.requires_grad_(True)
        self.count, self.noise, self.unplaced, self.clip_share = masks_per_step, noise, unplaced, clip_share

    def trained(self) -> Iterable[nn.Module]:
        sam = self.model.grounding_encoder.sam2_model
        return [sam.sam_mask_decoder, *([sam.image_encoder] if self.encoder else [])]

    def prepare(self, folder: Path | None) -> None:
        """Nothing, where pictures are drawn in every step."""
        if not self.encoder:
            super().prepare(folder)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        scenes = self._drawn_now(rng) if self.encoder else self._chosen(rng)
        targets = [self._target(one, rng) for one in scenes]
        frames = [rng.randrange(len(one.cover[0])) for one in scenes]
        codes = self.codes(scenes, targets, rng)
        loss, iou = outline(self.model, codes, scenes, targets, frames)
        return loss, {"IoU": iou}

    def _chosen(self, rng: random.Random) -> list[Seen]:
        scenes = []
        for _ in range(self.count):
            clip = bool(self.clip_every) and rng.random() < self.clip_share
            scenes.append(rng.choice(self.seen[clip]))
        return scenes

    def _drawn_now(self, rng: random.Random) -> list[Seen]:
        drawn = draw_scenes(rng, Options(min_objects=1, max_objects=max(self.objects)), self.count)
        encoder, empty = self.model.grounding_encoder, torch.zeros(0)
        pixels = torch.cat([torch.from_numpy(one.frames) for one in drawn]).permute(0, 3, 1, 2)
        levels = encoder.encode(encoder.normalize(pixels)).levels
        found = []
        for number, one in enumerate(drawn):
            small = F.interpolate(torch.from_numpy(one.masks).float(), size=(encoder.mask_size,) * 2, mode="area")
            cover = cell_cover(one.masks, self.processor.pictures.region_grid)
            found.append(Seen(one.scene, empty, [level[number : number + 1] for level in levels], cover, small))
        return found

    @staticmethod
    def _target(one: Seen, rng: random.Random) -> list[int]:
        """One shape, or now and then two or more."""
        shapes = range(len(one.cover))
        return rng.sample(shapes, rng.randint(2, len(shapes)) if len(shapes) > 1 and rng.random() < 0.2 else 1)

    def codes(self, scenes: list[Seen], targets: list[list[int]], rng: random.Random) -> Tensor:
        """(N, C), with noise."""
        cover = torch.stack([one.cover[t].float().amax(0).sum(0) for one, t in zip(scenes, targets, strict=True)])
        silent = torch.tensor([rng.random() < self.unplaced for _ in scenes]).unsqueeze(1)
        cover = torch.where(silent, 0.0, cover)
        shapes = [[one.scene.shapes[i] for i in t] for one, t in zip(scenes, targets, strict=True)]
        looks = torch.stack([self.code.looks(of_target) for of_target in shapes])
        codes = self.code.encode(cover, looks)
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        return codes + self.noise * torch.randn(codes.shape, generator=generator)
