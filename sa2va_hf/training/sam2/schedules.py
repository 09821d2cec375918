"""Options of the optimiser (learning rate, weight decay, ...) per group of parameters, over the course of a run.

    lr:
    - {schedule: {type: cosine, start: 5e-6, end: 5e-7}}                  # the one without conditions: all others
    - {match: [image_encoder.*], schedule: {type: composite, parts: [
         {share: 0.05, schedule: {type: linear, start: 0, end: 3e-6}},
         {share: 0.95, schedule: {type: cosine, start: 3e-6, end: 3e-7}}]}}
    weight_decay:
    - {schedule: 0.1}
    - {match: ['*bias*'], modules: [LayerNorm], schedule: 0.0}

A schedule is a value, or one of `SCHEDULES` with its numbers; it is asked with the share of the run that is done, from
0 up to, not including, 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[float], Any]


# ---------------------------------------------------------------- schedules


def constant(value: Any) -> Schedule:
    """Always `value`; the only one that may be other than a number (betas)."""
    return lambda where: value


def linear(start: float, end: float) -> Schedule:
    return lambda where: start + (end - start) * where


def cosine(start: float, end: float) -> Schedule:
    """Half a wave from `start` to `end`."""
    return lambda where: end + 0.5 * (start - end) * (1 + math.cos(math.pi * where))


def polynomial(start: float, power: float, end: float = 0.0) -> Schedule:
    return lambda where: end + (start - end) * (1 - where) ** power


def steps(values: list[float], at: list[float]) -> Schedule:
    """values[0] up to the share at[0] of the run, then values[1], and so on."""
    if len(values) != len(at) + 1 or at != sorted(at):
        raise ValueError(f"expected one more value than rising shares `at`, got values {values} and at {at}")
    return lambda where: values[bisect_right(at, where)]


def composite(parts: list[dict]) -> Schedule:
    """One schedule after the other, each for its `share` of the run; each runs from its own 0 to 1 then, unless it is
    `rescaled: false` (then it is asked with the share of the whole run)."""
    shares = [part.get("share") for part in parts]
    if not all(isinstance(share, int | float) for share in shares) or not math.isclose(sum(shares), 1):
        raise ValueError(f"expected parts whose shares add up to 1, got {shares}")
    inner = [read_schedule(part.get("schedule"), f"part {number}") for number, part in enumerate(parts, start=1)]
    ends = [sum(shares[: number + 1]) for number in range(len(shares))]

    def at(where: float) -> Any:
        place = min(bisect_right(ends, where), len(ends) - 1)
        if not parts[place].get("rescaled", True):
            return inner[place](where)
        return inner[place]((where - (ends[place] - shares[place])) / shares[place])

    return at


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "polynomial": polynomial,
    "steps": steps,
    "composite": composite,
}


def read_schedule(given: Any, name: str) -> Schedule:
    """A value, or {type: ..., its numbers}. Raises ValueError with `name` and what was expected."""
    if isinstance(given, int | float | list):
        return constant(given)
    if not isinstance(given, dict) or given.get("type") not in SCHEDULES:
        raise ValueError(f"{name}: expected a number or {{type: one of {', '.join(SCHEDULES)}, ...}}, got {given!r}")
    numbers = {key: _number(value) for key, value in given.items() if key != "type"}
    make = SCHEDULES[given["type"]]
    try:
        signature(make).bind(**numbers)
    except TypeError as error:
        raise ValueError(f"{name}: {given['type']} takes {', '.join(signature(make).parameters)}: {error}") from error
    try:
        return make(**numbers)
    except ValueError as error:
        raise ValueError(f"{name}: {given['type']}: {error}") from error


def _number(value: Any) -> Any:
    # YAML 1.1 reads 5e-6 as text
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# ---------------------------------------------------------------- groups of parameters


@dataclass
class LayerDecay:
    """Learning rates that fall by the factor `decay` with every block of `trunk` from the last one down, the `stem`
    (embeddings) being the lowest; `overrides`: {pattern of names: factor on the learning rate instead}. The defaults
    are SAM 2's names."""

    decay: float
    trunk: str = "image_encoder.trunk"
    blocks: str = "blocks"
    stem: tuple[str, ...] = ("patch_embed", "pos_embed")
    overrides: dict[str, float] = field(default_factory=lambda: {"*pos_embed*": 1.0})

    def layers(self, module: nn.Module) -> nn.ModuleList:
        """The trunk's blocks in the network `module`."""
        return module.get_submodule(f"{self.trunk}.{self.blocks}")

    def scale(self, name: str, blocks: int) -> float:
        """The factor on the learning rate of the parameter `name`; 1 outside of the trunk."""
        if not name.startswith(self.trunk + "."):
            return 1.0
        for pattern, factor in self.overrides.items():
            if fnmatchcase(name, pattern):
                return factor
        first, *rest = name.removeprefix(self.trunk + ".").split(".")
        if first == self.blocks:
            return self.decay ** (blocks - int(rest[0]))
        return self.decay ** (blocks + 1) if first.startswith(self.stem) else 1.0


@dataclass
class Group:
    """Parameters with the same options: their names, the schedule of every option, and a factor on the first of them,
    the learning rate."""

    names: list[str]
    schedules: dict[str, Schedule]
    scale: float

    def options(self, where: float) -> dict[str, Any]:
        values = {name: schedule(where) for name, schedule in self.schedules.items()}
        return values | {"lr": values["lr"] * self.scale}


def parameter_groups(
    module: nn.Module, options: dict[str, list[dict]], layer_decay: LayerDecay | None = None
) -> list[Group]:
    """The trained parameters of `module`, grouped by which entry of each option applies to them and by their scale.

    Raises:
        ValueError: an option has not exactly one entry without conditions, an entry matches no parameter of the
            module, or two entries match the same one.
    """
    if "lr" not in options:
        raise ValueError(f"`lr` has no schedule; there are some for {', '.join(options) or 'nothing'}")
    read = {option: [_entry(entry, option, n) for n, entry in enumerate(e, 1)] for option, e in options.items()}
    chosen = {option: _assign(module, entries, option) for option, entries in read.items()}
    blocks = 0 if layer_decay is None else len(layer_decay.layers(module))
    groups: dict[tuple, Group] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0 if layer_decay is None else layer_decay.scale(name, blocks)
        places = {option: chosen[option][name] for option in options}
        schedules = {option: read[option][place].schedule for option, place in places.items()}
        groups.setdefault((*places.values(), scale), Group([], schedules, scale)).names.append(name)
    return list(groups.values())


@dataclass
class _Entry:
    schedule: Schedule
    match: list[str]
    modules: list[str]


def _entry(given: Any, option: str, number: int) -> _Entry:
    name = f"`{option}` entry {number}"
    if not isinstance(given, dict) or "schedule" not in given or set(given) - {"schedule", "match", "modules"}:
        raise ValueError(f"{name}: expected {{schedule: ..., match: [names], modules: [classes]}}, got {given!r}")
    lists = {key: given.get(key, []) for key in ("match", "modules")}
    if not all(isinstance(values, list) for values in lists.values()):
        raise ValueError(f"{name}: `match` and `modules` must be lists, got {given!r}")
    return _Entry(read_schedule(given["schedule"], name), **lists)


def _assign(module: nn.Module, entries: list[_Entry], option: str) -> dict[str, int]:
    """Which entry applies to each parameter, by its index."""
    defaults = [place for place, entry in enumerate(entries) if not entry.match and not entry.modules]
    if len(defaults) != 1:
        raise ValueError(
            f"`{option}`: expected one entry without `match` and `modules`, for all others; got {entries}"
        )
    names = dict.fromkeys((name for name, _ in module.named_parameters()), defaults[0])
    kinds = {
        f"{prefix}.{name}" if prefix else name: type(owner).__name__
        for prefix, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }
    for place, entry in enumerate(entries):
        if place == defaults[0]:
            continue
        found = [n for n in names if any(fnmatchcase(n, p) for p in entry.match) or kinds[n] in entry.modules]
        if not found:
            raise ValueError(f"`{option}` entry {place + 1}: no parameter fits {entry.match + entry.modules}")
        for name in found:
            if names[name] != defaults[0]:
                raise ValueError(f"`{option}`: entries {names[name] + 1} and {place + 1} both fit {name}")
            names[name] = place
    return names


class OptionScheduler(LRScheduler):
    """Sets every option of every group before step s as of the share s / total_steps of the run."""

    def __init__(self, optimizer: torch.optim.Optimizer, groups: list[Group], total_steps: int) -> None:
        self.groups, self.total_steps = groups, total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [options["lr"] for options in self._options()]

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self.apply()

    def apply(self) -> None:
        """Set the options of the present step."""
        for group, options in zip(self.optimizer.param_groups, self._options(), strict=True):
            group.update(options)

    def _options(self) -> list[dict[str, Any]]:
        where = min(self.last_epoch, self.total_steps - 1) / self.total_steps  # the last step has been made at the end
        return [group.options(where) for group in self.groups]

    def state_dict(self) -> dict[str, Any]:
        """Only where it is: what it does follows from the settings."""
        return {"last_epoch": self.last_epoch, "_last_lr": self._last_lr}
