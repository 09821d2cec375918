"""What a run has to know of a SAM beside the protocol: how its parts are called, and how they drop at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sam2.modeling.sam2_utils import DropPath
from torch import Tensor, nn

from ...model.grounding import Sa2VAGroundingEncoder
from ...model.grounding_protocol import GroundingEncoder
from ...model.sam3 import Sa2VASam3Encoder
from .schedules import LayerDecay


@dataclass(frozen=True)
class Network:
    """Names in the network of a grounding encoder.

    image_encoder, memory_attention, mask_decoder: the parts that have an argument each. trunk: the vision transformer
    in the first of them, by module names (`LayerDecay`). unread: parts whose output nothing reads.
    """

    image_encoder: str
    memory_attention: str
    mask_decoder: str
    trunk: dict[str, Any]
    unread: tuple[str, ...] = ()

    def layer_decay(self, decay: float) -> LayerDecay:
        return LayerDecay(decay, **self.trunk)


NETWORKS = {
    Sa2VAGroundingEncoder: Network("image_encoder", "memory_attention", "sam_mask_decoder", {}),
    Sa2VASam3Encoder: Network(
        "vision_encoder",
        "memory_attention",
        "mask_decoder",
        {
            "trunk": "vision_encoder.backbone",
            "blocks": "layers",
            "stem": ("embeddings",),
            "overrides": {"*position_embeddings*": 1.0},
        },
        unread=("vision_encoder.neck.fpn_layers.3",),
    ),
}


def network_of(encoder: GroundingEncoder) -> Network:
    return NETWORKS[type(encoder)]


def set_dropout(network: nn.Module, drop_path: float, dropout: float) -> None:
    """How much is dropped in training: branches of the image encoder's blocks (more, the deeper they are), and entries
    in the memory attention. network: SAM 2, or SAM 3's tracker."""
    if hasattr(network, "image_encoder"):
        blocks, drop_branches = network.image_encoder.trunk.blocks, _drop_branches_of_sam2
    else:
        tower = network.vision_encoder.backbone
        blocks, side = tower.layers, tower.config.image_size // tower.config.patch_size
        drop_branches = partial(_drop_branches_of_sam3, side)
    for block, rate in zip(blocks, np.linspace(0, drop_path, len(blocks)), strict=True):
        drop_branches(block, float(rate))
    for module in network.memory_attention.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "dropout_p", None), float):
            module.dropout_p = dropout


def _drop_branches_of_sam2(block: nn.Module, rate: float) -> None:
    block.drop_path = DropPath(rate) if rate > 0 else nn.Identity()


def _drop_branches_of_sam3(side: int, layer: nn.Module, rate: float) -> None:
    """transformers' layer has no place for it on the branch of attention, whose output is dropped instead.

    side: patches along the image.
    """
    layer.dropout = DropPath(rate) if rate > 0 else nn.Identity()
    if (earlier := getattr(layer, "_attention_drop", None)) is not None:
        earlier.remove()
    hook = layer.attention.register_forward_hook(_dropped_windows(side, layer, rate)) if rate > 0 else None
    layer._attention_drop = hook


def _dropped_windows(side: int, layer: nn.Module, rate: float) -> Callable[..., Any]:
    """A forward hook of attention. An image's windows, (images * windows, h, w, C), are dropped together."""
    windows = 1
    if layer.window_size:
        windows = (-(-side // layer.window_size)) ** 2

    def drop(module: nn.Module, arguments: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        if not module.training:
            return output
        found, *others = output
        kept = found.new_empty(len(found) // windows).bernoulli_(1 - rate).div_(1 - rate)
        return found * kept.repeat_interleave(windows).view(-1, 1, 1, 1), *others

    return drop
