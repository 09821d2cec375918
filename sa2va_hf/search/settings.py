"""What a search needs: its settings, and the protocol of the model that looks at crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np

from sa2va_hf.search.patches import Crop

QUESTION = (  # of the contextual cue, as V*'s model has been trained on it
    "According to the common sense knowledge and possible visual cues, what is the most likely location of the {} "
    "in the image?"
)


@dataclass(frozen=True)
class Located:
    """What a model finds of a text in a crop.

    Args:
        scores: (n,) in 0..1, one per candidate box, in the model's order.
        boxes: (n, 4) xyxy in shares of the crop.
        heat: (h, w) of any size over the whole crop, not negative: how much speaks for the text there.
    """

    scores: np.ndarray
    boxes: np.ndarray
    heat: np.ndarray


class SearchModel(Protocol):
    """What the search asks of a model, several crops at once."""

    def locate(self, crops: Sequence[Crop], texts: Sequence[str]) -> list[Located]:
        """Where in each crop its text ("red mug") is."""

    def ask(self, crops: Sequence[Crop], questions: Sequence[str]) -> list[str]:
        """The answer to a question about each crop."""


@dataclass(frozen=True)
class SearchSettings:
    """The names and values of V*'s program where it has them."""

    confidence_high: float = field(default=0.5, metadata={"help": "score above which the target is found"})
    confidence_low: float = field(
        default=0.3, metadata={"help": "score from which the best candidate of the whole search counts as found"}
    )
    target_cue_threshold: float = field(
        default=6.0, metadata={"help": "largest heat of a crop above which the target's own heat guides the search"}
    )
    target_cue_threshold_decay: float = field(default=0.7, metadata={"help": "factor of that threshold per level"})
    target_cue_threshold_minimum: float = field(default=3.0, metadata={"help": "lowest value of that threshold"})
    minimum_size_scale: float = field(default=4.0, metadata={"help": "share of the short side that is not split"})
    minimum_size: int = field(default=224, metadata={"help": "pixels of a crop's short side that are not split"})
    contextual_cue: bool = field(
        default=True, metadata={"help": "ask the model where the target may be when its own heat is too weak"}
    )
    instances: str = field(default="first", metadata={"help": "first: end with the crop of the first hit; all: go on"})
    crops_at_once: int = field(default=1, metadata={"help": "crops per forward pass"})
    max_crops: int | None = field(default=None, metadata={"help": "end after this many crops"})
    max_seconds: float | None = field(default=None, metadata={"help": "start no crop after this many seconds"})
    overlap: float = field(default=0.1, metadata={"help": "share of its size by which a crop reaches into the next"})
    list_threshold: float | None = field(
        default=None, metadata={"help": "score above which a box of the crop of the hit is listed; confidence_high"}
    )
    empty_heat: str = field(
        default="area", metadata={"help": "how a crop without heat ranks its parts: area (by size) or zero (V*)"}
    )

    def __post_init__(self) -> None:
        for name, values in (("instances", ("first", "all")), ("empty_heat", ("area", "zero"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected {' or '.join(values)}, got {getattr(self, name)!r}")
        for name in ("confidence_high", "confidence_low", "list_threshold"):
            self._check(name, 0.0, 1.0)
        for name in ("target_cue_threshold", "target_cue_threshold_minimum", "max_seconds"):
            self._check(name, 0.0, math.inf)
        for name in ("minimum_size", "crops_at_once", "max_crops", "minimum_size_scale"):
            self._check(name, 1, math.inf)
        self._check("target_cue_threshold_decay", 0.0, 1.0)
        self._check("overlap", 0.0, 0.5)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")

    @classmethod
    def reference(cls, **changes: object) -> SearchSettings:
        """The settings under which V*'s program and this one visit the same crops."""
        return cls(**{"overlap": 0.0, "list_threshold": 0.5, "empty_heat": "zero"} | changes)

    def cue_threshold(self, level: int) -> float:
        """The heat that a crop of a level (1: the whole picture) must pass to be guided by the target itself."""
        decayed = self.target_cue_threshold * self.target_cue_threshold_decay ** (level - 1)
        return max(self.target_cue_threshold_minimum, decayed)

    def smallest_side(self, width: int, height: int) -> int:
        """The short side in pixels up to which a crop of a picture is not split."""
        return max(math.ceil(min(width, height) / self.minimum_size_scale), self.minimum_size)


SETTINGS = {one.name: one for one in fields(SearchSettings)}
