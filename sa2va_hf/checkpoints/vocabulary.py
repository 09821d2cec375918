"""A model's token embedding and output head, extended by rows for tokens that were added to its tokenizer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..model.modeling_sa2va import Sa2VAForConditionalGeneration


@torch.no_grad()
def extend_vocabulary(model: Sa2VAForConditionalGeneration, tokens: int) -> bool:
    """Give the model rows for `tokens` tokens, if it has fewer; whether it had. Its config then says so too.

    New rows are the mean of the others, so a base model that is extended again, before an adapter is merged into it,
    has the same weights.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [_shape(layer)[0] for layer in layers]
    if tokens <= min(before):
        return False
    model.resize_token_embeddings(max(tokens, *before), mean_resizing=False)
    for count, layer in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        with _gathered(layer.weight):
            weight = layer.weight.data
            weight[count:] = weight[:count].float().mean(0).to(weight.dtype)
    return True


def _shape(layer: nn.Module) -> torch.Size:
    return getattr(layer.weight, "ds_shape", layer.weight.shape)  # of a weight that ZeRO-3 has partitioned


def _gathered(weight: nn.Parameter) -> Any:
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weight, modifier_rank=0)
