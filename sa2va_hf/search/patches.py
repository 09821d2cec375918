"""Crops of a picture, how they are split, and how much of a crop's heat is in a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in its pixels. `source` is what `LargePicture.read` reads it from; tests need none."""

    x: int
    y: int
    width: int
    height: int
    source: Any = None

    @property
    def xywh(self) -> list[int]:
        return [self.x, self.y, self.width, self.height]

    def parts(self, overlap: float = 0.0) -> list[Crop]:
        """The crops that this one is split into, row by row: 4 in a row where one side is at least twice the other,
        else 2 x 2. The last of a row or column takes what is left.

        overlap: share of its size by which a part reaches over each of its inner edges.
        """
        columns, rows = 2, 2
        if self.height / self.width >= 2:
            columns, rows = 1, 4
        elif self.height / self.width <= 0.5:
            columns, rows = 4, 1
        across, down = _pieces(self.x, self.width, columns, overlap), _pieces(self.y, self.height, rows, overlap)
        return [Crop(x, y, width, height, self.source) for y, height in down for x, width in across]


def _pieces(start: int, length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    step = length // count
    reach = round(overlap * step)
    edges = [start + step * number for number in range(count)] + [start + length]
    pieces = []
    for number in range(count):
        first = edges[number] - (reach if number else 0)
        last = edges[number + 1] + (reach if number < count - 1 else 0)
        pieces.append((first, last - first))
    return pieces


class Heat:
    """The heat of a crop, scaled to 0..1, as sums over its parts.

    values: (h, w) of any size over the whole crop. if_empty: "zero" or "area", the share of a part where there is no
    heat, or the same everywhere.
    """

    def __init__(self, values: np.ndarray, crop: Crop, if_empty: str = "zero") -> None:
        values = np.asarray(values, dtype=np.float64)
        low, high = values.min(), values.max()
        scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
        self.crop, self.if_empty = crop, if_empty
        self.sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
        self.sums[1:, 1:] = scaled.cumsum(0).cumsum(1)

    @property
    def total(self) -> float:
        return float(self.sums[-1, -1])

    def share(self, part: Crop) -> float:
        """How much of the heat is within a part, 0..1."""
        if self.total == 0:
            inside = part.width * part.height / (self.crop.width * self.crop.height)
            return inside if self.if_empty == "area" else 0.0
        x0, y0 = part.x - self.crop.x, part.y - self.crop.y
        x1, y1 = x0 + part.width, y0 + part.height
        found = self._below(x1, y1) - self._below(x0, y1) - self._below(x1, y0) + self._below(x0, y0)
        return found / self.total

    def _below(self, x: float, y: float) -> float:
        """The heat left of x and above y. Pixels of the heat that an edge cuts count in proportion."""
        rows, columns = self.sums.shape[0] - 1, self.sums.shape[1] - 1
        u = min(max(x * columns / self.crop.width, 0.0), float(columns))
        v = min(max(y * rows / self.crop.height, 0.0), float(rows))
        column, row = min(int(u), columns - 1), min(int(v), rows - 1)
        u, v = u - column, v - row
        (a, b), (c, d) = self.sums[row : row + 2, column : column + 2].tolist()
        return (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
