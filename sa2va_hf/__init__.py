"""Sa2VA on plain Hugging Face classes: chat models that segment what they talk about, in images and videos.

Public names are imported when they are first used, so `import sa2va_hf` costs next to nothing. It registers the model,
its config and its processor with the Auto classes of transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import auto_classes

if TYPE_CHECKING:
    from .arguments import Sa2VATrainingArguments
    from .data.collator import Sa2VACollator
    from .data.dataset.dataset import Sa2VADataset
    from .data.prepare.run import prepare
    from .inference import Sa2VAPredictor
    from .model.configuration_sa2va import Sa2VAConfig, Sa2VAGroundingConfig
    from .model.modeling_sa2va import Sa2VAForConditionalGeneration
    from .model.processing_sa2va import Sa2VAProcessor
    from .training.sa2va.trainer import Sa2VATrainer

_MODULES = {  # public name: the module that defines it
    "Sa2VACollator": ".data.collator",
    "Sa2VAConfig": ".model.configuration_sa2va",
    "Sa2VADataset": ".data.dataset.dataset",
    "Sa2VAForConditionalGeneration": ".model.modeling_sa2va",
    "Sa2VAGroundingConfig": ".model.configuration_sa2va",
    "Sa2VAPredictor": ".inference",
    "Sa2VAProcessor": ".model.processing_sa2va",
    "Sa2VATrainer": ".training.sa2va.trainer",
    "Sa2VATrainingArguments": ".arguments",
    "prepare": ".data.prepare.run",
}

__version__ = "0.1.0"
__all__ = [
    "Sa2VACollator",
    "Sa2VAConfig",
    "Sa2VADataset",
    "Sa2VAForConditionalGeneration",
    "Sa2VAGroundingConfig",
    "Sa2VAPredictor",
    "Sa2VAProcessor",
    "Sa2VATrainer",
    "Sa2VATrainingArguments",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


auto_classes.register()
