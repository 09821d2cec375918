"""Speed for the same numbers: compiled layers, Liger's Triton kernels, fewer activations computed again."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from ...arguments import Sa2VATrainingArguments


def use_faster_kernels(model: nn.Module, training: Sa2VATrainingArguments) -> None:
    """Apply what `use_liger_kernel` and `compile_layers` ask for, in place.

    Raises:
        ValueError: they cannot work here.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if training.use_liger_kernel:
        use_liger(base.mllm.model.language_model, training.liger_kernel_config)
    if training.compile_layers:
        compile_layers(base)


def use_liger(language_model: nn.Module, options: dict[str, bool] | None = None) -> None:
    """Liger's norms, MLPs and rotary embedding in the language model (https://github.com/linkedin/Liger-Kernel).

    Trainer does this for models that Liger lists by name, which Sa2VA is not. Its cross entropies are not used: the
    loss here is computed at the answers alone, in chunks (`model.losses.answer_cross_entropy`).
    """
    if find_spec("liger_kernel") is None:
        raise ValueError(
            "`use_liger_kernel`: Liger is not installed; pip install liger-kernel, or remove the argument"
        )
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    chosen = (options or {}) | {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=language_model, **chosen)


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile the language model's layers, the vision encoder's, and SAM 2's image encoder.

    Layers one by one: they share one program, which is ready in a fraction of the time that the whole model takes, and
    weights keep their names. The first two work for any number of tokens and tiles; SAM 2's encoder is compiled anew
    for every number of frames, since with windows of an unknown number the compiler did not end within a quarter of an
    hour. options: those of `torch.compile`.
    """
    vision, *_ = model.backbone.vision(model.mllm)
    for part in (model.mllm.model.language_model, vision):
        for layer in _layers(part):
            layer.compile(dynamic=True, **options)
    if model.has_grounding:
        model.grounding_encoder.image_encoder.compile(dynamic=False, **options)


class RecomputeEvery(TrainerCallback):
    """Of each stack of layers whose activations are computed again in the backward pass, leaves that to every n-th;
    the others' are kept."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        # Trainer has just switched it on for all layers.
        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                for index, layer in enumerate(module):
                    if getattr(layer, "gradient_checkpointing", False) and index % self.number:
                        layer.gradient_checkpointing = False


def _layers(part: nn.Module) -> nn.ModuleList:
    """The longest list of modules in it."""
    return max((module for module in part.modules() if isinstance(module, nn.ModuleList)), key=len)
