"""What a search has found and how: candidates, visits, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sa2va_hf.boxes import Box, box_iou
from sa2va_hf.search.patches import Crop

SAME = 0.5  # IoU from which on two boxes of different crops are of one object
WITHIN = 0.8  # or the share of the smaller box that lies in the other: an object cut at a crop's edge
NEAR_MISSES = 3


@dataclass(frozen=True)
class Found:
    """A candidate. box: xyxy in pixels of the picture. visit: index of the crop that it was seen in."""

    box: Box
    score: float
    visit: int


@dataclass(eq=False)
class Visit:
    """One crop that was looked at, and why it led on to which others.

    Args:
        crop: what was looked at. level: 1 is the whole picture. parent: index of the visit that it is a part of.
        priority: by which it came to its turn, None for the whole picture. index: its own, in the order of visits.
        candidates: how many boxes there were. score: the highest of their scores.
        heat: largest heat of the target. leaf: it is not split further.
        threshold: what `heat` is compared with. cue: "target", "context" or "none", None where nothing is split.
        answer, phrase: of the contextual cue. cue_heat: largest heat of the phrase.
    """

    crop: Crop
    level: int
    parent: int
    priority: float | None
    index: int = -1
    candidates: int = 0
    score: float | None = None
    best: int | None = None
    hit: bool = False
    heat: float = 0.0
    leaf: bool = False
    threshold: float | None = None
    cue: str | None = None
    answer: str | None = None
    phrase: str | None = None
    cue_heat: float | None = None

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"crop": self.crop.xywh}


@dataclass
class SearchResult:
    """The outcome of a search.

    Args:
        target: what was searched. size: (width, height) of the picture.
        found: whether it is there. box, score: of the best candidate if it is, else None.
        instances: what was found, the best first if `instances` is "all", else in the model's order.
        near_misses: the best candidates when nothing was found: what there is of evidence.
        ended: "found", "exhausted" (every crop was looked at), "crops" or "seconds" (the budget).
        path_length: crops up to the one that the best candidate is of (V*'s search length); all if there is none.
        covered: share of the picture that was looked at in crops of the smallest size.
        calls: how many crops the model was given, by what it was asked.
    """

    target: str
    size: tuple[int, int]
    found: bool = False
    box: Box | None = None
    score: float | None = None
    instances: list[Found] = field(default_factory=list)
    near_misses: list[Found] = field(default_factory=list)
    ended: str = "exhausted"
    path_length: int = 0
    covered: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    visits: list[Visit] = field(default_factory=list)
    queue: list[tuple[str, Crop, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The whole trace. Boxes are xyxy, crops xywh, in pixels of the picture."""
        content = {key: value for key, value in vars(self).items() if key not in ("visits", "queue")}
        content |= {key: [asdict(one) for one in content[key]] for key in ("instances", "near_misses")}
        content["visits"] = [visit.to_json() for visit in self.visits]
        content["queue"] = [[what, crop.xywh, priority] for what, crop, priority in self.queue]
        return content

    def describe(self) -> str:
        """One line for a person."""
        if self.found:
            x0, y0, x1, y1 = map(round, self.box)
            many = f", {len(self.instances)} in all" if len(self.instances) > 1 else ""
            return f"found at [{x0}, {y0}, {x1}, {y1}] with score {self.score:.2f}{many}, crop {self.path_length}"
        why = {"exhausted": "every crop was looked at", "crops": "the budget of crops is spent"}
        best = f"; best score {self.near_misses[0].score:.2f}" if self.near_misses else "; no candidate"
        reason = why.get(self.ended, "the time is over")
        return f"not found in {len(self.visits)} crops ({reason}, {self.covered:.0%} seen at the smallest size){best}"


def distinct(candidates: Sequence[Found]) -> list[Found]:
    """The candidates without those that show an object that a better one shows, best first."""
    kept: list[Found] = []
    for one in sorted(candidates, key=lambda found: (-found.score, found.visit)):
        if not any(_same(one.box, other.box) for other in kept):
            kept.append(one)
    return kept


def _same(a: Box, b: Box) -> bool:
    if box_iou(a, b) >= SAME:
        return True
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return across > 0 and down > 0 and across * down >= WITHIN * smaller


def covered(crops: Sequence[Crop], size: tuple[int, int], grid: int = 256) -> float:
    """Share of the picture that crops cover, on a grid."""
    seen = np.zeros((grid, grid), dtype=bool)
    for crop in crops:
        x0, x1 = (round(grid * x / size[0]) for x in (crop.x, crop.x + crop.width))
        y0, y1 = (round(grid * y / size[1]) for y in (crop.y, crop.y + crop.height))
        seen[y0:y1, x0:x1] = True
    return float(seen.mean())
