"""Scenes as tensors: pictures as the model takes them, and what each visual token could say about the scene."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.shapes.scene import Options, Scene, draw, render
from ...data.shapes.text import ATTRIBUTES, FAMILIES
from ...data.shapes.world import RGB
from ...model.processing_sa2va import Sa2VAProcessor

COVERED = 0.25  # share of a token's cell that a shape must cover to be what the token is about
CONTRAST = 48  # of 255: a background differs from every shape's colour by this much in some channel
TINT, SLOPE = 25, 25  # of 255: how far a background's channels, and its corners, may be from its shade
SAME = {"tiny": "small", "huge": "large"}  # sizes of the shifted world that are the same lengths


@dataclass
class Drawn:
    """One drawn scene: `frames` uint8 (F, S, S, 3) and `masks` bool (shapes, F, S, S)."""

    scene: Scene
    frames: np.ndarray
    masks: np.ndarray


def draw_scenes(rng: random.Random, options: Options, count: int, shades: float = 0.0) -> list[Drawn]:
    """`count` scenes, each with its pixels. shades: share of them whose background may have any shade."""
    found = []
    for _ in range(count):
        scene, frames, masks = draw(rng, options)
        if shades and rng.random() < shades:
            scene = replace(scene, background=any_background(rng, scene))
            frames = [render(scene, frame)[0] for frame in range(scene.num_frames)]
        found.append(Drawn(scene, np.stack(frames), np.array(masks)))
    return found


def any_background(rng: random.Random, scene: Scene) -> tuple[RGB, RGB, RGB, RGB]:
    """Corner colours of some shade, from black to white, on which every shape of the scene can be seen.

    The scene's own where no such shade is found, which shapes of many colours may rule out.
    """
    colours = [scene.world.palette[shape.colour] for shape in scene.shapes]
    for _ in range(30):
        shade, tint = rng.uniform(0, 255), [rng.uniform(-TINT, TINT) for _ in range(3)]
        slopes = [rng.uniform(-SLOPE, SLOPE) for _ in range(4)]
        corners = [tuple(min(255, max(0, round(shade + t + slope))) for t in tint) for slope in slopes]
        if all(_differ(corner, colour) for corner in corners for colour in colours):
            return tuple(corners)
    return scene.background


def _differ(first: RGB, second: RGB) -> bool:
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) >= CONTRAST


def pixel_values(scenes: Sequence[np.ndarray], processor: Sa2VAProcessor) -> Tensor:
    """What the vision tower takes: (frames of all scenes, 3, S, S), channels last in memory (faster on a CPU).

    scenes: frames uint8 (F, S, S, 3) of each.
    """
    frames = torch.from_numpy(np.concatenate(scenes)).permute(0, 3, 1, 2)
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


def words_of(worlds: Sequence[str]) -> dict[str, list[str]]:
    """Attribute -> its words in some worlds, each once; sizes of the same lengths are one word."""
    words: dict[str, dict[str, None]] = {name: {} for name in ATTRIBUTES}
    for world in worlds:
        for name, family in FAMILIES.items():
            words[name] |= dict.fromkeys(SAME.get(word, word) for word in Options(world=world).words(family))
    return {name: list(found) for name, found in words.items()}


def label_cells(drawn: list[Drawn], grid: int, worlds: Sequence[str] = ("default",)) -> CellLabels:
    """What each cell of the first frames shows, in the words of `worlds`."""
    words = words_of(worlds)
    centres = torch.stack(torch.meshgrid(*[(torch.arange(grid) + 0.5) / grid] * 2, indexing="xy"), -1).view(-1, 2)
    attributes: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
    geometry, covers = [], []
    for one in drawn:
        cover = cell_cover(one.masks[:, 0], grid)
        share, shape = cover.max(0)
        for name, family in words.items():
            said = [getattr(s, name) for s in one.scene.shapes]
            index = torch.tensor([family.index(SAME.get(word, word)) for word in said])[shape]
            attributes[name].append(torch.where(share > COVERED, index, -1))
        middle = torch.tensor([s.centre for s in one.scene.shapes])[shape]
        radius = torch.tensor([4 * s.radius for s in one.scene.shapes])[shape]
        geometry.append(torch.cat([middle, 2 * (middle - centres), radius.unsqueeze(1)], 1))
        covers.append(cover.sum(0).clamp(max=1))
    return CellLabels({n: torch.cat(v) for n, v in attributes.items()}, torch.cat(geometry), torch.cat(covers))
