"""What loading under DeepSpeed's ZeRO-3 needs beyond what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file


class outside_zero_init:
    """Leave DeepSpeed's `zero.Init`, if it is active, for the length of the block."""

    def __enter__(self) -> None:
        self.active = is_deepspeed_zero3_enabled()
        if self.active:
            from deepspeed.runtime.zero import partition_parameters

            self.contexts = partition_parameters
            self.contexts.shutdown_init_context()

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.contexts.restore_init_context()


def load_buffers(model: nn.Module, path: Any, missing: set[str]) -> set[str]:
    """Fill in the buffers among the `missing` names from the checkpoint's files; returns what is still missing.

    transformers 5.0 loads parameters alone under ZeRO-3, and SAM 2's random Fourier matrix is a buffer: without it
    every position would mean something else.
    """
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in missing}
    if not buffers or not is_deepspeed_zero3_enabled():
        return missing
    folder = Path(path) if Path(path).is_dir() else Path(cached_file(path, "config.json")).parent
    found = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            for name in buffers.keys() & set(file.keys()):
                buffers[name].copy_(file.get_tensor(name))
                found.add(name)
    return missing - found
