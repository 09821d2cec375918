"""Which grounding encoder belongs to which `grounding_config.model_type`."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from transformers import PretrainedConfig

from .configuration_sa2va import Sa2VAGroundingConfig
from .configuration_sam3 import Sa2VASam3Config
from .grounding import Sa2VAGroundingEncoder
from .grounding_protocol import GroundingEncoder
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
