"""Tiny SAM 3 trackers, and a whole Sa2VA on one: transformers' real classes, narrow, with weights from a seed."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_config
from torch import nn

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_hf.model.configuration_sam3 import Sa2VASam3Config
from sa2va_hf.model.sam3 import Sa2VASam3Encoder
from sa2va_hf.training.sam2.clip_model import Sam2ClipModel
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.prompting import PromptSettings

SIDE, LOW = 112, 32  # of the input, and of the masks
FIELDS = {
    "image_size": SIDE,
    "patch_size": 14,
    "hidden_dim": 128,  # pointers of two tokens
    "embed_dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 96,
    "window_size": 4,
    "global_att_blocks": [1],
    "pretrain_image_size": 56,
    "memory_layers": 1,
    "memory_feedforward": 64,
}
# With a stride of 16 the memory's masks are as large as the input, and transformers' tracker does as SAM 3's own.
EVEN = FIELDS | {"image_size": 128, "patch_size": 16, "pretrain_image_size": 64}


def needs_sam3() -> None:
    """Skips a module of tests where transformers has no SAM 3."""
    pytest.importorskip("transformers.models.sam3_tracker_video", reason="this transformers has no SAM 3")


def vary(module: nn.Module, seed: int = 0) -> nn.Module:
    """Other weights, in place, of a size that lets every one of them show in the masks: many start as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            fan = math.prod(weight.shape[1:]) if weight.dim() > 1 and "embed" not in name else 1
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            else:
                weight.copy_(noise * (0.2 if fan == 1 else 1.2 / math.sqrt(fan)))
        for name, buffer in module.named_buffers():
            if name.endswith("positional_embedding"):  # twice in the model, of the same content
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return module


def tiny_sam3(seed: int = 0, **fields: object) -> Sa2VASam3Encoder:
    """A SAM 3 grounding encoder of `FIELDS`, in eval mode."""
    return vary(Sa2VASam3Encoder(Sa2VASam3Config(**(FIELDS | fields))), seed).eval()


def tiny_sam3_config(backbone: str = "internvl", **overrides: object) -> Sa2VAConfig:
    """As `tiny_config`, with SAM 3."""
    grounding = {"model_type": Sa2VASam3Config.model_type, **FIELDS}
    return Sa2VAConfig(**(tiny_config(backbone).to_dict() | {"grounding_config": grounding} | overrides))


def tiny_sam3_model(backbone: str = "internvl", **overrides: object) -> Sa2VAForConditionalGeneration:
    """As `tiny_model`, with SAM 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sa2VAForConditionalGeneration(tiny_sam3_config(backbone, **overrides)).eval()
    vary(model.grounding_encoder)
    return model


def tiny_sam3_clip_model(**settings: object) -> Sam2ClipModel:
    """As `tiny_clip_model`, with SAM 3."""
    encoder = tiny_sam3()
    set_dropout(encoder.network, 0.0, 0.0)
    return Sam2ClipModel(encoder, encoder.config, PromptSettings(**settings)).train()
