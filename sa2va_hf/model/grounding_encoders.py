"""Which grounding encoder belongs to which `grounding_config.model_type`."""

from __future__ import annotations

from transformers import PretrainedConfig

from .configuration_sa2va import Sa2VAGroundingConfig
from .grounding import Sa2VAGroundingEncoder
from .grounding_protocol import GroundingEncoder

ENCODERS = {Sa2VAGroundingConfig.model_type: Sa2VAGroundingEncoder}


def grounding_encoder_of(config: PretrainedConfig) -> GroundingEncoder:
    """The encoder that a config describes, with random weights."""
    return ENCODERS[config.model_type](config)
