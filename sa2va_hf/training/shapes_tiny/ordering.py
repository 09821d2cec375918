"""Lesson on order and relations: where the heads of the last layer look, on states that are recorded once.

After `choosing` the last layer looks at all shapes that the attributes fit, but evenly: "leftmost" does not yet turn
into a preference for what is on the left, though its input holds both the words and the places. What is missing is a
bilinear form of two inputs that are there already, and it is learned in a minute when nothing else is computed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .choosing import Choosing

HEADS = 2  # as many as `Choosing` asks for the target
KINDS = {"attribute": 2, "several": 1, "ordinal": 6, "relation": 6, "no_target": 2}


class Ordering(Choosing):
    """See the module. looks_per_step: questions of a step, each from two tokens. Further options as in `Choosing`."""

    name = "ordering"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        pictures: int = 400,
        looks_per_step: int = 192,
        **options: object,
    ) -> None:
        options = {"objects": (2, 3, 3, 4), "kinds": KINDS, "scenes": "ordering"} | options
        super().__init__(model, processor, ["llm"], pictures, clips=0, clip_every=0, dialogues=0.0, **options)
        self.count, self.layer = looks_per_step, self.language.layers[-1].self_attn
        model.requires_grad_(False)
        for module in (self.layer.q_proj, self.layer.k_proj):
            module.requires_grad_(True)

    def trained(self) -> Iterable[nn.Module]:
        return [self.language.layers[-1].self_attn.q_proj, self.language.layers[-1].self_attn.k_proj]

    def matrices(self) -> list[nn.Parameter]:
        """None: the heads are a part of the rows, and an update of Muon would reach the others."""
        return []

    @torch.no_grad()
    def prepare(self, folder: Path | None) -> None:
        """Records what enters the last layer: the visual tokens of every scene, and the tokens that look."""
        super().prepare(folder)
        rng, last = random.Random(self.scenes), len(self.language.layers) - 1
        tokens, looking, wanted, scene, places = [], [], [], [], []
        for start in range(0, len(self.seen[False]), self.batch):
            scenes = self.seen[False][start : start + self.batch]
            chats = [self._chats(one, rng) for one in scenes]
            rows = self.rows(scenes, chats)
            with self.pointing:
                self.read(scenes, rows)
            states = self.language.layers[last].input_layernorm(self.pointing.states[last])
            flat = [chat for of_scene in chats for chat in of_scene]
            owners = [one for one, of_scene in zip(scenes, chats, strict=True) for _ in of_scene]
            look = self._looks(rows, flat, owners)[f"target {last}"]
            row, index = look.at.unbind(1)
            seen = torch.cat([torch.tensor([rows.sink]), rows.visual])
            scene.append(row + start)
            looking.append(states[row, index])
            places.append(rows.positions[row, index])
            wanted.append(look.wanted[:, seen])
            tokens.append(states[:, seen])
            self.positions = rows.positions[0, seen]
        self.tokens, self.looking, self.wanted = torch.cat(tokens), torch.cat(looking), torch.cat(wanted)
        self.scene, self.places = torch.cat(scene), torch.cat(places)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.tensor(rng.sample(range(len(self.scene)), min(self.count, len(self.scene))))
        size = self.layer.head_dim
        query = self._turned(self.layer.q_proj, self.looking[chosen].unsqueeze(1), self.places[chosen].unsqueeze(1))
        used, back = self.scene[chosen].unique(return_inverse=True)
        key = self._turned(self.layer.k_proj, self.tokens[used], self.positions.expand(len(used), -1))
        scores = ((query * key[back]).sum(-1) / size**0.5).log_softmax(-1)  # (N, heads, tokens)
        wanted = self.wanted[chosen].unsqueeze(1)
        found = (scores.detach().exp() * (wanted > 0)).sum(-1).mean()
        return -(wanted * scores).sum(-1).mean(), {"target": found.item()}

    def _turned(self, projection: nn.Linear, states: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys of the heads (N, heads, L, size) at positions (N, L)."""
        part = slice(0, HEADS * self.layer.head_dim)
        values = nn.functional.linear(states, projection.weight[part], projection.bias[part])
        values = values.unflatten(-1, (HEADS, self.layer.head_dim)).transpose(1, 2)
        turned, _ = apply_rotary_pos_emb(values, values, *self.language.rotary_emb(states, positions))
        return turned
