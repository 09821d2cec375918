"""Where the parts of a model compute, and in what: offloading, several GPUs, quantisation, a cast after loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

HALF = (torch.bfloat16, torch.float16)
# SAM 2, the projection, the vision part and the head: errors of quantisation there are errors of masks.
NOT_QUANTISED = (
    "grounding_encoder",
    "text_hidden_fcs",
    "mllm.lm_head",
    "mllm.model.vision_tower",
    "mllm.model.multi_modal_projector",
    "mllm.model.visual",
)
SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert")  # of transformers' quantisation configs


class Float32(nn.Module):
    """A module that stays float32 when the model around it is cast to half precision (`model.half()`): SAM 2 mixes
    float32 coordinates in, and its masks need the precision. DeepSpeed casts it: its engine wants one type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            return super()._apply(fn, recurse)

        def uncast(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            halved = applied.dtype in HALF and tensor.dtype == torch.float32
            return tensor.to(applied.device) if halved else applied

        return super()._apply(uncast, recurse)


class Projection(Float32, nn.Sequential):
    """From hidden states at [SEG] to prompts of SAM 2."""


def share_dtype(config: PretrainedConfig) -> None:
    """Give a config's dtype to the configs inside it, at every depth. Each part of a model is built in the dtype of
    its own config, and transformers 5.3 sets the one that is asked for one level down only."""
    parts = [getattr(config, name, None) for name in config.sub_configs if config.dtype is not None]
    for part in filter(None, parts):
        part.dtype = config.dtype
        share_dtype(part)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. Under accelerate hooks its weights may be stored elsewhere, on the disk for example."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def llm_only(quantization: Any) -> Any:
    """A quantisation config (or its dict) that leaves everything but the LLM's layers as it is."""
    fields = quantization if isinstance(quantization, dict) else vars(quantization)
    names = [name for name in SKIP_FIELDS if name in fields] or [SKIP_FIELDS[1]] * isinstance(quantization, dict)
    for name in names:
        fields[name] = sorted({*(fields.get(name) or ()), *NOT_QUANTISED})
    return quantization


def keep_together(module: nn.Module) -> None:
    """Have an offloaded module load as a whole, where accelerate loads each weight with the call of its own submodule:
    parts of SAM 2 read parameters of others."""
    loader = _weights_of(module)
    if loader is None:
        return
    try:  # inside `try`, so that remote code does not ask for it: without it nothing is offloaded
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
    except ImportError:
        return

    device, weights, offload_buffers = loader
    remove_hook_from_module(module, recurse=True)
    hook = AlignDevicesHook(
        execution_device=device,
        offload=True,
        weights_map=weights,
        offload_buffers=offload_buffers,
        place_submodules=True,
    )
    add_hook_to_module(module, hook)


def _weights_of(module: nn.Module) -> tuple[Any, Any, bool] | None:
    """(execution device, {name: weight}, whether buffers are offloaded) of a module whose weights are offloaded."""
    for name, child in module.named_modules():
        hook = getattr(child, "_hf_hook", None)
        if hook is not None and getattr(hook, "offload", False):
            weights = hook.weights_map  # {name: weight} below a prefix, that of the child
            prefix = weights.prefix.removesuffix(f"{name}." if name else "")
            return hook.execution_device, type(weights)(weights.dataset, prefix), hook.offload_buffers
    return None


@contextmanager
def resident(module: nn.Module) -> Iterator[None]:
    """Hold the weights of an offloaded module where it computes, for the length of the block. Blocks may nest."""
    hook = getattr(module, "_hf_hook", None)
    depth = getattr(module, "_resident", 0)
    if hook is None or not getattr(hook, "offload", False):
        yield
        return
    if not depth:
        hook.pre_forward(module)
    module._resident = depth + 1
    try:
        yield
    finally:
        module._resident = depth
        if not depth:
            hook.post_forward(module, None)


def remove_capturing_hooks(model: nn.Module) -> nn.Module:
    """Remove the hooks by which transformers records hidden states, in place: they are local functions, which cannot
    be pickled. They come back with the next call."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                del module._forward_hooks[key]
        if getattr(module, "_output_capturing_hooks_installed", False):
            module._output_capturing_hooks_installed = False
    return model
