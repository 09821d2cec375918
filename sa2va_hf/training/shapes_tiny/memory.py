"""Lesson for SAM 2's memory: to follow shapes that move, cross, leave and come back.

The image encoder stays as it is, and the decoder that follows is a copy (`tracking_decoder`), so this lesson changes
nothing about how pictures are segmented and may run before, after or beside the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.shapes.scene import Options
from ...model.grounding_protocol import ImageFeatures, MaskPrediction
from ...model.losses import dice, soft_iou
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from ...model.tracking import ClipMemory
from .lesson import Lesson
from .scenes import Drawn, draw_scenes
from .seen import CLIP_FRAMES, SHOWN

TRACKER = (
    "memory_attention",
    "memory_encoder",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
    "mask_downsample",
)  # modules of SAM2Base
TRACKER_PROMPTS = ("mask_downscaling",)  # modules of its prompt encoder
TRACKER_TENSORS = ("no_obj_ptr", "maskmem_tpos_enc", "no_obj_embed_spatial")  # bare parameters of SAM2Base


class Following(Lesson):
    """See the module. clips: per step; prompted: chance that the frames before the first followed one are the key
    frames of `consistent`, otherwise the first one to three."""

    name = "following"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        clips: int = 8,
        spread: float = 0.6,
        objects: int = 3,
        blur: float = 0.15,
    ) -> None:
        super().__init__(model, processor)
        if not model.config.grounding_config.tracking_decoder:
            raise ValueError("grounding_config.tracking_decoder: expected true, the lesson trains that decoder")
        self.clips, self.spread, self.blur = clips, spread, blur
        self.options = Options(min_objects=2, max_objects=objects, num_frames=CLIP_FRAMES)
        self.encoder = model.grounding_encoder
        model.eval().requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def trained(self) -> Iterable[nn.Module]:
        sam = self.encoder.sam2_model
        yield self.encoder.tracking_decoder
        for name in TRACKER:
            if isinstance(getattr(sam, name, None), nn.Module):
                yield getattr(sam, name)
        for name in TRACKER_PROMPTS:
            yield getattr(sam.sam_prompt_encoder, name)

    def parameters(self) -> list[nn.Parameter]:
        sam = self.encoder.sam2_model
        bare = [getattr(sam, name, None) for name in TRACKER_TENSORS]
        return super().parameters() + [p for p in bare if isinstance(p, nn.Parameter)]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        drawn = draw_scenes(rng, self.options, self.clips)
        spread = rng.random() < self.spread
        first = rng.randint(1, 3)
        prompted = list(SHOWN) if spread else list(range(first))
        losses, ious = [], []
        for prediction, target in self.walk(drawn, prompted, rng):
            loss, iou = step_loss(prediction, target)
            losses.append(loss)
            ious.append(iou)
        return torch.stack(losses).mean(), {"IoU": float(np.mean(ious)), "spread": float(spread)}

    def walk(
        self, drawn: list[Drawn], prompted: list[int], rng: random.Random
    ) -> Iterator[tuple[MaskPrediction, Tensor]]:
        """Follow every object of all clips at once; yields the answer on a frame, and the masks it should have."""
        with torch.no_grad():
            frames = torch.from_numpy(np.concatenate([one.frames for one in drawn])).permute(0, 3, 1, 2)
            features = self.encoder.encode(self.encoder.normalize(frames))
        clip = torch.tensor([number for number, one in enumerate(drawn) for _ in one.masks])
        masks = torch.from_numpy(np.concatenate([one.masks for one in drawn]))  # (objects, frames, S, S)
        small = F.interpolate(masks.float(), size=(self.encoder.mask_size,) * 2, mode="area")
        memory = ClipMemory(self.encoder, len(clip), CLIP_FRAMES, blank_absent=True)
        for number in prompted:
            logits = imperfect(small[:, number], rng, self.blur)
            memory.prompt_with_masks(number, self._on(features, clip, number), logits)
        for number in (n for n in range(CLIP_FRAMES) if n not in prompted):
            seen = self._on(features, clip, number)
            prediction = memory.predict(number, seen)
            yield prediction, small[:, number]
            memory.keep(number, seen, replace(prediction, masks=prediction.masks.detach()))

    @staticmethod
    def _on(features: ImageFeatures, clip: Tensor, frame: int) -> ImageFeatures:
        """Features of one frame of every object's clip."""
        at = clip * CLIP_FRAMES + frame
        raw = features.unprojected
        return ImageFeatures([x[at] for x in features.levels], None if raw is None else [x[at] for x in raw])


def imperfect(masks: Tensor, rng: random.Random, amount: float) -> Tensor:
    """Logits of masks (N, h, w) that are a little too large or too small, and here and there missing."""
    shift = torch.tensor([rng.gauss(0, amount) for _ in range(len(masks))]).view(-1, 1, 1)
    soft = F.avg_pool2d(masks.unsqueeze(1), 3, 1, 1)[:, 0]
    gone = torch.tensor([rng.random() < amount / 5 for _ in range(len(masks))]).view(-1, 1, 1)
    return (10 * (soft - 0.5 + shift)).masked_fill(gone, -10.0)


def step_loss(prediction: MaskPrediction, target: Tensor) -> tuple[Tensor, float]:
    """Loss of all candidates, of their expected IoU and of the object score; and the IoU of the best candidates of the
    objects that are there. target: (N, h, w) share of each cell."""
    count = prediction.candidates.shape[1]
    logits, wanted = prediction.candidates.flatten(0, 1).flatten(1), target.flatten(1).repeat_interleave(count, 0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted)
    overlap = dice(logits, wanted).mean()
    actual = soft_iou(prediction.candidates.detach(), target.unsqueeze(1).expand_as(prediction.candidates))
    expected = (prediction.ious - actual).abs().mean()
    there = (target.flatten(1).amax(1, keepdim=True) > 0.5).float()
    score = F.binary_cross_entropy_with_logits(prediction.object_scores.float(), there)
    best = soft_iou(prediction.masks.detach(), target)[there[:, 0] > 0]
    return 4 * cross_entropy + overlap + 0.1 * expected + 0.3 * score, best.mean().item()
