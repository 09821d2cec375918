"""A model whose world is written down: where instances are, and the heat at every pixel. It sees no pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sa2va_hf.search import Located
from sa2va_hf.search.patches import Crop


@dataclass
class Blank:
    """A picture of which only the size is known."""

    size: tuple[int, int]


@dataclass
class FakeModel:
    """The fake model of the recorded traces; `world` is its description there."""

    world: dict[str, Any]
    image: tuple[int, int]
    target: str
    batches: list[int] = field(default_factory=list)

    def locate(self, crops: list[Crop], texts: list[str]) -> list[Located]:
        self.batches.append(len(crops))
        return [self._locate(crop, text) for crop, text in zip(crops, texts, strict=True)]

    def ask(self, crops: list[Crop], questions: list[str]) -> list[str]:
        assert all(self.target in question for question in questions)
        return [self._field("answer", crop, "") for crop in crops]

    def _field(self, name: str, crop: Crop, otherwise: Any) -> Any:
        found = self.world.get("overrides", {}).get(",".join(map(str, crop.xywh)), {})
        return found.get(name, self.world.get(name, otherwise))

    def _locate(self, crop: Crop, text: str) -> Located:
        if text != self.target:
            parts = self.world.get("cue_heat", {}).get(text, [])
            return Located(np.zeros(0), np.zeros((0, 4)), self._heat(parts, crop))
        rows = self._rows(crop)
        centres = np.array([box for _, box in rows], dtype=np.float32).reshape(-1, 4)
        low, high = centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2
        heat = self._heat(self._field("target_heat", crop, []), crop)
        return Located(np.array([score for score, _ in rows], np.float32), np.hstack([low, high]), heat)

    def _rows(self, crop: Crop) -> list[tuple[float, list[float]]]:
        given = self._field("detections", crop, None)
        if given is not None:
            return given
        rows = []
        for one in self.world.get("instances", []):
            x, y, width, height = one["box"]
            if not (crop.x <= x + width / 2 < crop.x + crop.width and crop.y <= y + height / 2 < crop.y + crop.height):
                continue
            x0, y0 = max(x, crop.x), max(y, crop.y)
            x1, y1 = min(x + width, crop.x + crop.width), min(y + height, crop.y + crop.height)
            score = one["score"]
            if isinstance(score, dict):
                score = min(score["cap"], score["gain"] * math.sqrt(width * height / (crop.width * crop.height)))
            centre = [(x0 + x1) / 2 - crop.x, (y0 + y1) / 2 - crop.y, x1 - x0, y1 - y0]
            rows.append(
                (score, [value / side for value, side in zip(centre, (crop.width, crop.height) * 2, strict=True)])
            )
        return rows + [tuple(row) for row in self.world.get("background", [])]

    def _heat(self, parts: list[dict[str, Any]], crop: Crop) -> np.ndarray:
        width, height = self.image
        x, y = np.arange(crop.x, crop.x + crop.width), np.arange(crop.y, crop.y + crop.height)[:, None]
        total = np.zeros((crop.height, crop.width))
        for part in parts:
            if "const" in part:
                values = np.full_like(total, part["const"])
            elif "rect" in part:
                x0, y0, w, h = part["rect"]
                values = part["value"] * ((x >= x0) & (x < x0 + w) & (y >= y0) & (y < y0 + h))
            elif "grid" in part:
                grid = np.array(part["grid"])
                values = grid[y[:, 0] * grid.shape[0] // height][:, x * grid.shape[1] // width]
            else:
                cx, cy, sigma = part["gauss"]
                across, down = (np.exp(-((at + 0.5 - c) ** 2) / (2 * sigma**2)) for at, c in ((x, cx), (y, cy)))
                values = part["amp"] * down * across
            total += values * (math.sqrt(width * height / (crop.width * crop.height)) if part.get("zoom") else 1)
        return total.astype(np.float32)
