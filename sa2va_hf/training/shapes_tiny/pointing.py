"""Where [SEG] looks: one attention head of the upper layers is asked to attend to the visual tokens of the target.

A small LLM learns to match a phrase with visual tokens late: as long as attention is even over the image, nothing says
which token would have helped. The head's own logits, compared with the cells that the target covers, say it directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from ...model.modeling_sa2va import Sa2VAForConditionalGeneration

NAMED, ALL = (1, 2), (3,)  # layers of the LLM that look for what is named, and for what is meant by any expression
HEAD = 0


class Pointing:
    """Records what enters the layers while the model runs inside `with pointing:`, then computes the loss."""

    def __init__(self, model: Sa2VAForConditionalGeneration) -> None:
        self.language, self.config = model.mllm.model.language_model, model.config
        count = len(self.language.layers)
        self.layers = [index for index in NAMED + ALL if index < count] or [count - 1]
        self.states: dict[int, Tensor] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        for index in self.layers:
            layer = self.language.layers[index]
            keep = lambda module, args, kwargs, index=index: self._keep(index, args, kwargs)  # noqa: E731
            self.hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _keep(self, index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        self.states[index] = args[0] if args else kwargs["hidden_states"]

    def loss(self, input_ids: Tensor, targets: list[Tensor], named: list[bool]) -> Tensor:
        """Mean cross-entropy between where the head looks from each [SEG], over all tokens before it, and the cells of
        its targets. targets: per [SEG] the cover of its conversation's visual tokens; one without cover has no say.
        named: per [SEG] whether its expression names the target, by attributes alone; upper layers learn from all."""
        rows, places = (input_ids == self.config.seg_token_id).nonzero(as_tuple=True)
        chosen = [number for number, cover in enumerate(targets) if cover.sum() > 0]
        if not chosen:
            return next(iter(self.states.values())).sum() * 0.0
        wanted = torch.zeros(len(chosen), input_ids.shape[1])
        visual = input_ids == self.config.mllm_config.image_token_id
        for row, number in enumerate(chosen):
            cells = visual[rows[number]].nonzero()[:, 0][: len(targets[number])]
            wanted[row, cells] = targets[number] / targets[number].sum()
        rows, places = rows[chosen], places[chosen]
        weights = {True: torch.tensor([float(named[number]) for number in chosen]), False: torch.ones(len(chosen))}
        losses = []
        for index in self.layers:
            missed = -(wanted * self._attention(index, rows, places)).sum(1)
            weight = weights[index in NAMED]
            losses.append((missed * weight).sum() / weight.sum().clamp(min=1))
        return torch.stack(losses).mean()

    def _attention(self, index: int, rows: Tensor, places: Tensor) -> Tensor:
        """Log-probabilities (N, L) of the head at N positions."""
        layer, states = self.language.layers[index], self.states[index]
        states = layer.input_layernorm(states)
        size = layer.self_attn.head_dim
        part = slice(HEAD * size, (HEAD + 1) * size)
        query = layer.self_attn.q_proj(states)[..., part].unsqueeze(1)
        key = layer.self_attn.k_proj(states)[..., part].unsqueeze(1)
        positions = torch.arange(states.shape[1]).unsqueeze(0)
        query, key = apply_rotary_pos_emb(query, key, *self.language.rotary_emb(states, positions))
        logits = (query[rows, 0, places].unsqueeze(1) * key[rows, 0]).sum(-1) / size**0.5
        later = torch.arange(states.shape[1]) > places.unsqueeze(1)
        return logits.masked_fill(later, -1e4).log_softmax(1)
