"""Tensors in files: safetensors, single or in shards with an index, and `.pt` read as tensors only.

Reading looks at names, shapes and types first, values come one by one when asked; writing asks for the values of one
file at a time.
"""

from __future__ import annotations

import codecs
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..listings import listed
from .files import INDEX, WEIGHTS, damage, read_json

# Numpy scalars, which training scripts store beside the weights (an accuracy, a loss): plain data as well.
NUMPY = [np.dtype, np.float64(0).__reduce__()[0], codecs.encode]
NUMPY += [type(np.dtype(name)) for name in ("bool", "int32", "int64", "uint8", "float16", "float32", "float64")]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Stored(NamedTuple):
    """A tensor in a file: what is known of it without reading it, and how to."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def read_folder(folder: Path | str) -> dict[str, Stored]:
    """The tensors of the folder's safetensors files.

    Raises:
        ValueError: a file is missing, damaged, or not of this form; the message names it.
    """
    folder = Path(folder)
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
    """The files, after a check that they agree with the index, if there is one."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: neither {WEIGHTS} nor {INDEX}; other forms (pickles) are not read")
    where: dict[str, str] = read_json(folder / INDEX).get("weight_map", {})
    if not where:
        raise ValueError(f"{folder / INDEX}: no weight_map, which names the shard of each tensor")
    shards = sorted(set(where.values()))
    if outside := [name for name in shards if Path(name).name != name or "\\" in name]:
        raise ValueError(f"{folder / INDEX}: expected names of files beside it, got {listed(outside)}")
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ValueError(f"{folder}: shards named in {INDEX} are missing: {listed(missing)}")
    problems = []
    for shard in shards:
        held, named = set(_open(folder / shard).keys()), {name for name, file in where.items() if file == shard}
        problems += [f"{name} is not in {shard}, where {INDEX} says it is" for name in sorted(named - held)]
        problems += [f"{name} in {shard} is not named in {INDEX}" for name in sorted(held - named)]
    if problems:
        raise ValueError(f"{folder}: index and shards do not agree: {listed(problems, '; ')}")
    return [folder / name for name in shards]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: {damage(path)} ({error})") from error


def read_pickle(path: Path | str, *, mmap: bool = False, known: Sequence[type] = ()) -> Any:
    """What `torch.save` wrote, as long as it is tensors, numbers and texts in plain containers.

    Args:
        mmap: map the file instead of copying it into memory.
        known: further classes that the file may hold.

    Raises:
        ValueError: anything else is in it, which would have to be run to be read, or the file is damaged.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals([*NUMPY, *known]):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        if damage(path).startswith("a git-lfs"):
            raise ValueError(f"{path}: {damage(path)}") from error
        raise ValueError(
            f"{path}: not read, since it holds objects other than tensors, which would mean running its code, or is "
            f"damaged ({_first_line(error)}); save the tensors alone: torch.save({{'model': state_dict}}, path)"
        ) from error
    except (EOFError, RuntimeError, OSError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: {damage(path)} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def write_folder(tensors: dict[str, Stored], output: Path | str, max_shard_size: str = "5GB") -> None:
    """`model.safetensors`, or several with an index where it is larger than `max_shard_size`."""
    output = Path(output)
    empty = {name: tensor.empty() for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].read() for name in names}, output / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (output / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def audit(
    stored: dict[str, Stored], expected: dict[str, tuple[int, ...]], source: Path | str, by: str = "config.json"
) -> None:
    """Compare what is stored with what is expected.

    Raises:
        ValueError: tensors are missing, left over or of another shape than `by` says; at most 20 are listed.
    """
    problems = [f"unexpected: {name} {list(stored[name].shape)}" for name in stored if name not in expected]
    for name, shape in expected.items():
        if name not in stored:
            problems.append(f"missing: {name} {list(shape)}")
        elif stored[name].shape != shape:
            problems.append(f"wrong shape: {name} is {list(stored[name].shape)}, {by} says {list(shape)}")
    if problems:
        raise ValueError(f"{source}: the weights do not fit {by}: {listed(problems, '; ')}")
