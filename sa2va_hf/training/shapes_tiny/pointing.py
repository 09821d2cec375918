"""Where an answer looks: attention heads of the upper layers are asked to attend to the visual tokens of the target.

A small LLM learns to match a phrase with visual tokens late: as long as attention is even over the image, nothing says
which token would have helped. The heads' own logits, compared with the cells that the target covers, say it directly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from .threads import Rows


@dataclass
class Look:
    """What the first `heads` heads of a layer should attend to from N tokens: `at` (N, 2) row and index, `wanted`
    (N, L) a distribution over the row, `kinds` (N) of the expressions that are looked for, where they are reported."""

    layer: int
    heads: int
    at: Tensor
    wanted: Tensor
    kinds: list[str] = field(default_factory=list)


class Pointing:
    """Records what enters the layers while the LLM runs inside `with pointing:`, then computes the loss."""

    def __init__(self, language: Any) -> None:
        self.language = language
        self.states: dict[int, Tensor] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        for index, layer in enumerate(self.language.layers):
            keep = lambda module, args, kwargs, index=index: self._keep(index, args, kwargs)  # noqa: E731
            self.hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _keep(self, index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        self.states[index] = args[0] if args else kwargs["hidden_states"]

    def loss(self, look: Look, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy between the heads' attention and what is wanted, and the share of it there (N,)."""
        scores = self._attention(look, rows)
        missed = -(look.wanted.unsqueeze(1) * scores).sum(-1).mean()
        found = (scores.detach().exp() * (look.wanted > 0).unsqueeze(1)).sum(-1).mean(1)
        return missed, found

    def _attention(self, look: Look, rows: Rows) -> Tensor:
        """Log-probabilities (N, heads, L)."""
        layer = self.language.layers[look.layer]
        states = layer.input_layernorm(self.states[look.layer])
        size, part = layer.self_attn.head_dim, slice(0, look.heads * layer.self_attn.head_dim)
        query, key = (
            torch.nn.functional.linear(states, module.weight[part], module.bias[part])
            .unflatten(-1, (look.heads, size))
            .transpose(1, 2)
            for module in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *self.language.rotary_emb(states, rows.positions))
        row, index = look.at.unbind(1)
        logits = (query @ key.transpose(-1, -2))[row, :, index] / size**0.5
        return logits.masked_fill(~rows.allowed[row, :, index], -1e4).log_softmax(-1)
