"""Sa2VA on plain Hugging Face classes: chat models that segment what they talk about, in images and videos."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .inference import Sa2VAPredictor
from .model.configuration_sa2va import Sa2VAConfig, Sa2VAGroundingConfig
from .model.modeling_sa2va import Sa2VAForConditionalGeneration
from .model.processing_sa2va import Sa2VAProcessor

AutoConfig.register(Sa2VAConfig.model_type, Sa2VAConfig)
AutoModel.register(Sa2VAConfig, Sa2VAForConditionalGeneration)
AutoModelForImageTextToText.register(Sa2VAConfig, Sa2VAForConditionalGeneration)
AutoProcessor.register(Sa2VAConfig, Sa2VAProcessor)

__version__ = "0.1.0"
__all__ = ["Sa2VAConfig", "Sa2VAForConditionalGeneration", "Sa2VAGroundingConfig", "Sa2VAPredictor", "Sa2VAProcessor"]
