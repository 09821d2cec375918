"""What loading under DeepSpeed's ZeRO-3 needs beyond what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file


class outside_zero_init:
    """Leave DeepSpeed's `zero.Init`, if it is active, for the length of the block."""

    def __enter__(self) -> None:
        self.active = is_deepspeed_zero3_enabled()
        if self.active:
            try:  # only where DeepSpeed runs already: inside `try`, so that remote code does not ask for it
                from deepspeed.runtime.zero import partition_parameters
            except ImportError as error:
                raise RuntimeError("ZeRO-3 is configured, but deepspeed is not installed") from error

            self.contexts = partition_parameters
            self.contexts.shutdown_init_context()

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.contexts.restore_init_context()


def load_buffers(model: nn.Module, path: Any, missing: set[str], **where: Any) -> set[str]:
    """Fill in the buffers among the `missing` names from the checkpoint's files; returns what is still missing.

    where: of a Hub repository, which files: `revision`, `cache_dir`, `token`, `subfolder`, `local_files_only`, as
    `from_pretrained` was given them.

    transformers 5.0 loads parameters alone under ZeRO-3, and SAM 2's random Fourier matrix is a buffer: without it
    every position would mean something else.
    """
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in missing}
    if not buffers or not is_deepspeed_zero3_enabled():
        return missing
    try:  # transformers has it; inside `try`, so that remote code does not ask for it
        from safetensors import safe_open
    except ImportError as error:
        raise RuntimeError("reading a checkpoint needs safetensors") from error
    found = set()
    for shard in checkpoint_folder(path, **where).glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            for name in buffers.keys() & set(file.keys()):
                buffers[name].copy_(file.get_tensor(name))
                found.add(name)
    return missing - found


def checkpoint_folder(path: Any, subfolder: str = "", **where: Any) -> Path:
    """The folder with the files of a checkpoint: `path` itself, or where those of a Hub repository are cached."""
    if Path(path).is_dir():
        return Path(path) / subfolder
    return Path(cached_file(path, "config.json", subfolder=subfolder, **where)).parent
