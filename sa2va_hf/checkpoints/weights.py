"""Tensors in files: safetensors, single or in shards with an index, and `.pt` read as tensors only.

Reading looks at names, shapes and types first, values come one by one when asked; writing asks for the values of one
file at a time.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .zero import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Stored(NamedTuple):
    """A tensor in a file: what is known of it without reading it, and how to."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def read_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of the folder's safetensors files. Errors: ValueError naming a missing, damaged or wrong file."""
    tensors: dict[str, Stored] = {}
    for path in _paths(folder):
        file = _open(path)
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            header = file.get_slice(name)
            if header.get_dtype() not in DTYPES:
                raise ValueError(f"{path}: {name} is {header.get_dtype()}; expected one of {sorted(DTYPES)}")
            read = lambda file=file, name=name: file.get_tensor(name)  # noqa: E731
            tensors[name] = Stored(tuple(header.get_shape()), DTYPES[header.get_dtype()], read)
    return tensors


def _paths(folder: Path) -> list[Path]:
    """The files, after a look at whether the index, if there is one, tells the truth about them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: neither {WEIGHTS} nor {INDEX}; other forms (pickles) are not read")
    where: dict[str, str] = read_json(folder / INDEX).get("weight_map", {})
    if not where:
        raise ValueError(f"{folder / INDEX}: no weight_map, which names the shard of each tensor")
    missing = sorted(name for name in set(where.values()) if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder}: shards named in {INDEX} are missing: {', '.join(missing)}")
    problems = []
    for shard in sorted(set(where.values())):
        held, named = set(_open(folder / shard).keys()), {name for name, file in where.items() if file == shard}
        problems += [f"{name} is not in {shard}, where {INDEX} says it is" for name in sorted(named - held)]
        problems += [f"{name} in {shard} is not named in {INDEX}" for name in sorted(held - named)]
    if problems:
        raise ValueError("\n".join([f"{folder}: index and shards do not agree", *problems]))
    return [folder / name for name in sorted(set(where.values()))]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read, it may be cut short ({error})") from error


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, as long as it is tensors in plain containers. Errors: ValueError for anything else,
    which would have to be run to be read, and for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not read, since it holds other things than tensors, which would mean running its code, or is "
            f"damaged ({_first_line(error)}); save the tensors alone: torch.save({{'model': state_dict}}, path)"
        ) from error
    except (EOFError, RuntimeError, OSError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, it may be cut short ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def write_folder(tensors: dict[str, Stored], output: Path, max_shard_size: str = "5GB") -> None:
    """`model.safetensors`, or several with an index where it is larger than `max_shard_size`."""
    empty = {name: tensor.empty() for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].read() for name in names}, output / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (output / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def audit(
    stored: dict[str, Stored], expected: dict[str, tuple[int, ...]], source: Path, by: str = "config.json"
) -> None:
    """Errors: ValueError listing all tensors that are missing, left over or of another shape than `by` says."""
    problems = [f"unexpected: {name} {list(stored[name].shape)}" for name in stored if name not in expected]
    for name, shape in expected.items():
        if name not in stored:
            problems.append(f"missing: {name} {list(shape)}")
        elif stored[name].shape != shape:
            problems.append(f"wrong shape: {name} is {list(stored[name].shape)}, {by} says {list(shape)}")
    if problems:
        raise ValueError("\n".join([f"{source}: the weights do not fit {by}", *problems]))
