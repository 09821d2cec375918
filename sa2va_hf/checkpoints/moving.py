"""Applying the rules of `rules.py` to stored tensors, unread: ours -> a release's, and back."""

from __future__ import annotations

import torch

from .rules import Move
from .weights import Stored


def moved_shapes(plan: list[Move], expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the moves make of tensors of ours, `expected`."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    return {move.released: tuple(move.join([empty[name] for name in move.ours]).shape) for move in plan}


def cut(move: Move, tensor: Stored) -> dict[str, Stored]:
    """Our tensors that a released one holds."""

    def part(index: int) -> Stored:
        shape = tuple(move.split(tensor.empty())[index].shape)
        # a copy of its own: the cut piece of a tensor cannot be saved
        return Stored(shape, tensor.dtype, lambda: move.split(tensor.read())[index].contiguous().clone())

    return {name: part(index) if move.fusion else tensor for index, name in enumerate(move.ours)}


def join(move: Move, stored: dict[str, Stored]) -> Stored:
    """The released tensor that ours become.

    Raises:
        ValueError: they are stored in several types.
    """
    parts = [stored[name] for name in move.ours]
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1:
        raise ValueError(f"{', '.join(move.ours)} become one tensor, but are stored as {sorted(map(str, dtypes))}")
    shape = tuple(move.join([part.empty() for part in parts]).shape)
    return Stored(shape, parts[0].dtype, lambda: move.join([part.read() for part in parts]).contiguous())
