"""Which grounding encoder belongs to which `grounding_config.model_type`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .configuration_sa2va import Sa2VAGroundingConfig
from .configuration_sam3 import Sa2VASam3Config
from .grounding import Sa2VAGroundingEncoder
from .grounding_protocol import GROUNDING_PARTS, GroundingEncoder
from .sam3 import Sa2VASam3Encoder

ENCODERS = {Sa2VAGroundingConfig.model_type: Sa2VAGroundingEncoder, Sa2VASam3Config.model_type: Sa2VASam3Encoder}


def grounding_encoder_of(config: PretrainedConfig) -> GroundingEncoder:
    """The encoder that a config describes, with random weights.

    Raises:
        ImportError: SAM 3, which the installed transformers does not have.
    """
    kind = ENCODERS[config.model_type]
    with nullcontext() if kind.builds_on_meta else torch.device("cpu"):
        return kind(config)


class AbsentGroundingEncoder(nn.Module):
    """Stands where SAM would be, in runs and uses without masks: no weights."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.image_size, self.mask_size = config.image_size, config.mask_size
        self.register_buffer("_anchor", torch.zeros(0, device="cpu"), persistent=False)  # where inputs go

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    def forward(
        self, frames: Tensor | None, frame_index: Tensor | None = None, embeddings: Tensor | None = None
    ) -> tuple[None, Tensor]:
        """As `GroundingEncoder` for a batch without masks. Raises: ValueError for one with [SEG]."""
        if embeddings is not None and len(embeddings):
            raise ValueError(f"{len(embeddings)} masks are asked for, but SAM 2 was not loaded (grounding=False)")
        return None, self._anchor.sum() if embeddings is None else embeddings.sum() * 0.0

    def self_initialized(self) -> Iterable[nn.Module]:
        return self.modules()

    def select_trained(self, grounding: str, iou_head: bool, object_score_head: bool = False) -> None:
        """Nothing is trained. Raises: ValueError for anything but "none"."""
        if grounding != "none":
            raise ValueError(f"grounding: expected 'none' without SAM 2, got {grounding!r} of {GROUNDING_PARTS}")
