"""The frozen language model in 4 or 8 bits, with LoRA on it (QLoRA, arXiv 2305.14314); nothing else is quantised."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from ...arguments import ModelArguments, Sa2VATrainingArguments


def quantization_options(arguments: ModelArguments, training: Sa2VATrainingArguments) -> dict[str, Any]:
    """Arguments of `from_pretrained` for `quantization`; none where it is not given.

    Raises:
        ValueError: an engine that shards the weights, which come in packed bits, or a package that is missing.
    """
    if arguments.quantization is None:
        return {}
    fsdp = bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if is_deepspeed_zero3_enabled() or fsdp:
        raise ValueError(f"`quantization`: {arguments.quantization} weights cannot be sharded; use DDP or ZeRO-2")
    device = training.device if training.device.type != "cuda" else torch.device("cuda", training.local_process_index)
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    return {"quantization_config": quantization_config(arguments.quantization, dtype), "device_map": {"": device}}


def quantization_config(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' config of a value of `quantization`. dtype: in which the products are computed.

    Raises:
        ValueError: its package is not installed.
    """
    try:
        return _torchao() if name == "torchao_int8" else _bitsandbytes(name == "bnb_4bit", dtype)
    except ImportError as error:
        package = "torchao" if name == "torchao_int8" else "bitsandbytes"
        raise ValueError(f"`quantization`: {name} needs the package {package}: pip install {package}") from error


def _bitsandbytes(four: bool, dtype: torch.dtype) -> Any:
    import bitsandbytes  # noqa: F401 (transformers would only notice while it loads the weights)
    from transformers import BitsAndBytesConfig

    if not four:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())
