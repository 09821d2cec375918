"""A teacher whose weights follow the student's slowly: the exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")  # of DDP, torch.compile and FSDP


def unwrapped_name(name: str) -> str:
    """The name of a parameter without what engines put into it."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return name


class Ema:
    """average = decay * average + (1 - decay) * weight, for every trained weight, in float32.

    Frozen weights are the same in teacher and student and are not held twice; buffers are never averaged. Of sharded
    weights every rank averages its own shard. A bfloat16 average of decay 0.999 would practically never move.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`ema_decay`: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self.averages = {name: weight.detach().float().clone() for name, weight in self._trained(model).items()}
        if not self.averages:
            raise ValueError("the model has no trained weights to average: call make_trainable first")

    @staticmethod
    def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
        return {unwrapped_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After a step of the optimizer.

        Raises:
            ValueError: the model's trained weights have other names than when the average was begun.
        """
        weights = self._trained(model)
        self._check(weights)
        for name, average in self.averages.items():
            average.lerp_(weights[name].detach().float(), 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """While this lasts, `model` is the teacher. Weights are written in place, which every engine sees."""
        weights = self._trained(model)
        self._check(weights)
        own = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            _write(weights, self.averages)
            yield
        finally:
            _write(weights, own)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises:
        ValueError: the state is of other weights.
        """
        self._check(state)
        for name, average in self.averages.items():
            average.copy_(state[name])

    def _check(self, names: Mapping[str, object]) -> None:
        if different := sorted(self.averages.keys() ^ names.keys()):
            raise ValueError(
                f"the average and the model differ in {len(different)} trained weights ({', '.join(different[:3])}, "
                "...): build both from the same train_... arguments"
            )


@torch.no_grad()
def _write(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
