"""Lesson on outlines of what the LLM says: SAM 2's mask decoder on recorded [SEG] states.

Outlines take many more steps than the choice of a shape. As the LLM stays as it is here, its states are recorded once,
and a step costs only the projection to a prompt and the decoder.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .choosing import Choosing, outline
from .seen import Seen


class Spoken(Choosing):
    """See the module. masks_per_step: targets of a step; clip_share: of those, the share that is taken from clips;
    visits: how often every scene is asked about. Further options as in `Choosing`."""

    name = "spoken"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        masks_per_step: int = 48,
        clip_share: float = 0.15,
        visits: int = 1,
        **options: object,
    ) -> None:
        super().__init__(model, processor, train=["prompts", "decoder"], masks=1.0, **options)
        self.count, self.clip_share, self.visits = masks_per_step, clip_share, visits
        self.said: dict[bool, list[tuple[Seen, list[int], Tensor]]] = {}

    def trained(self) -> Iterable[nn.Module]:
        return [self.model.text_hidden_fcs, self.model.grounding_encoder.sam2_model.sam_mask_decoder]

    @torch.no_grad()
    def prepare(self, folder: Path | None) -> None:
        """Records what the LLM says of every scene."""
        super().prepare(folder)
        rng = random.Random("spoken")
        for clip, seen in self.seen.items():
            self.said[clip], step = [], self.clip_batch if clip else self.batch
            for start in list(range(0, len(seen), step)) * self.visits:
                scenes = seen[start : start + step]
                chats = [self._chats(one, rng) for one in scenes]
                rows = self.rows(scenes, chats)
                states = self.read(scenes, rows)[rows.segs[:, 0], rows.segs[:, 1]]
                asked = [(one, chat) for one, of_scene in zip(scenes, chats, strict=True) for chat in of_scene]
                pairs = [(one, target) for one, chat in asked for target in chat.targets]
                self.said[clip] += [(*pair, state) for pair, state in zip(pairs, states, strict=True)]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        chosen = [rng.choice(self.said[self._clip(rng)]) for _ in range(self.count)]
        scenes, targets, states = zip(*chosen, strict=True)
        frames = [rng.randrange(one.cover.shape[1]) for one in scenes]
        loss, iou = outline(self.model, self.model.project(torch.stack(states)), scenes, targets, frames)
        return loss, {"IoU": iou}

    def _clip(self, rng: random.Random) -> bool:
        return bool(self.said.get(True)) and rng.random() < self.clip_share
