"""`Meter`: what a trainer counts between two logs, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Meter:
    """Named sums of one rank since step `step`.

    All ranks must add the same names: `totals` sends the values alone, in the order of the names.
    """

    def __init__(self, names: tuple[str, ...] = (), step: int = 0) -> None:
        self.step = step
        self.sums: dict[str, float] = dict.fromkeys(names, 0.0)

    def add(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0.0) + amount

    def totals(self, accelerator: Any) -> dict[str, float]:
        """The sums over all ranks. A collective call: every rank must make it."""
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        own = torch.tensor([self.sums[name] for name in sorted(self.sums)], dtype=dtype, device=accelerator.device)
        return dict(zip(sorted(self.sums), accelerator.reduce(own).tolist(), strict=True))
