"""Scenes as tensors: pictures as the model takes them, and what each visual token could say about the scene."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.shapes.scene import Options, Scene, draw
from ...data.shapes.text import ATTRIBUTES, FAMILIES
from ...model.processing_sa2va import Sa2VAProcessor

COVERED = 0.25  # share of a token's cell that a shape must cover to be what the token is about


@dataclass
class Drawn:
    """One drawn scene: `frames` uint8 (F, S, S, 3) and `masks` bool (shapes, F, S, S)."""

    scene: Scene
    frames: np.ndarray
    masks: np.ndarray


def draw_scenes(rng: random.Random, options: Options, count: int) -> list[Drawn]:
    """`count` scenes, each with its pixels."""
    drawn = (draw(rng, options) for _ in range(count))
    return [Drawn(scene, np.stack(frames), np.array(masks)) for scene, frames, masks in drawn]


def pixel_values(drawn: list[Drawn], processor: Sa2VAProcessor) -> Tensor:
    """What the vision tower takes: (frames of all scenes, 3, S, S), channels last in memory (faster on a CPU)."""
    frames = torch.from_numpy(np.concatenate([one.frames for one in drawn])).permute(0, 3, 1, 2)
    pictures = processor.pictures
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (pictures.pixel_mean, pictures.pixel_std))
    return ((frames.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def cell_cover(masks: np.ndarray, grid: int) -> Tensor:
    """Share of each cell of a grid x grid picture that a mask covers: bool (..., S, S) -> float (..., grid * grid)."""
    flat = torch.from_numpy(masks).float().flatten(0, -3).unsqueeze(1)
    pooled = F.avg_pool2d(flat, masks.shape[-1] // grid)
    return pooled.view(*masks.shape[:-2], grid * grid)


@dataclass
class CellLabels:
    """Labels of N = frames x grid^2 cells. `attributes`: name -> (N,) index of the word, -1 where no shape covers
    enough of the cell; `geometry`: (N, 5) middle (x, y), offset of the middle from the cell's (x, y), radius x 4;
    `cover`: (N,) share of the cell that any shape covers."""

    attributes: dict[str, Tensor]
    geometry: Tensor
    cover: Tensor


def label_cells(drawn: list[Drawn], grid: int) -> CellLabels:
    """What each cell of the first frames shows."""
    words = {name: list(drawn[0].scene.options.words(FAMILIES[name])) for name in ATTRIBUTES}
    centres = torch.stack(torch.meshgrid(*[(torch.arange(grid) + 0.5) / grid] * 2, indexing="xy"), -1).view(-1, 2)
    attributes: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
    geometry, covers = [], []
    for one in drawn:
        cover = cell_cover(one.masks[:, 0], grid)
        share, shape = cover.max(0)
        for name, family in words.items():
            index = torch.tensor([family.index(getattr(s, name)) for s in one.scene.shapes])[shape]
            attributes[name].append(torch.where(share > COVERED, index, -1))
        middle = torch.tensor([s.centre for s in one.scene.shapes])[shape]
        radius = torch.tensor([4 * s.radius for s in one.scene.shapes])[shape]
        geometry.append(torch.cat([middle, 2 * (middle - centres), radius.unsqueeze(1)], 1))
        covers.append(cover.sum(0).clamp(max=1))
    return CellLabels({n: torch.cat(v) for n, v in attributes.items()}, torch.cat(geometry), torch.cat(covers))
