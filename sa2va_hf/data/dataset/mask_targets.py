"""The masks of an item: at the size of the image, or as the loss reads them, on the grid of the mask decoder."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sa2va_hf import masks
from sa2va_hf.boxes import normalized
from sa2va_hf.data.dataset.box_turns import known_boxes
from sa2va_hf.data.dataset.planning import Plan
from sa2va_hf.masks import RLE

FEW_RUNS = 8  # in a column on average: with more of them, painting is cheaper


@dataclass(frozen=True)
class MaskGrid:
    """The grid on which the loss of a model compares masks.

    size: cells per side. how: "nearest", the pixel that torch's interpolation picks of each cell, or "area", the share
    of each cell that is covered (`Sa2VAConfig.mask_targets`). Both are, bit for bit, the whole mask shrunk.
    """

    size: int
    how: str = "nearest"

    @classmethod
    def of(cls, model: Any) -> "MaskGrid":
        """The grid of a `Sa2VAForConditionalGeneration`."""
        return cls(model.grounding_encoder.mask_size, model.config.mask_targets)


def mask_labels(plan: Plan, grid: MaskGrid | None = None) -> dict[str, torch.Tensor]:
    """`mask_labels` and, where there is something to ignore, that is not known, or to be learned from boxes,
    `ignore_labels`, `mask_known` and `box_labels`; see `Sa2VADataset.__getitem__`."""
    width, height = plan.size
    size = (height, width) if grid is None else (grid.size, grid.size)
    shares = grid is not None and grid.how == "area"
    shape, kind = (len(plan.targets), len(plan.frames), *size), torch.float if shares else torch.bool
    positions = {number: position for position, number in enumerate(plan.row["annotated"])}
    meant = sorted({instance for instances in plan.targets for instance in instances})
    targets, ignored = None, None  # memory that nothing is written to is not asked for
    unknown: list[tuple[int, int]] = []
    boxes = []
    for frame, number in enumerate(plan.frames):
        position = positions.get(number)
        if position is None:  # of a clip without masks
            continue
        found = {instance: plan.row.mask(instance, position) for instance in meant}
        known = {instance: rle for instance, rle in found.items() if rle is not None}
        if not shares:
            known = {instance: _read(rle, grid) for instance, rle in known.items()}
        for seg, instances in enumerate(plan.targets):
            parts = [known[instance] for instance in instances if instance in known]
            if parts:
                mask = _shares(parts, plan.size, grid.size) if shares else _union(parts)
                targets = _placed(targets, mask, shape, kind, (seg, frame))
            if len(parts) < len(instances):
                there = known_boxes(plan.row, position, instances)
                if there is None or any(there):  # all of them absent: that is known
                    unknown.append((seg, frame))
                boxes += [(seg, frame, *normalized(box, width, height)) for box in there or () if box]
        rle = plan.row.ignore(position)
        if rle is not None and masks.area(rle):
            ignored = _placed(ignored, torch.from_numpy(_read(rle, grid)), shape[1:], torch.bool, (frame,))
    labels = {"mask_labels": torch.zeros(shape, dtype=kind) if targets is None else targets}
    labels |= {} if ignored is None else {"ignore_labels": ignored}
    if unknown:
        labels["mask_known"] = torch.ones(shape[:2], dtype=torch.bool)
        labels["mask_known"][tuple(zip(*unknown, strict=True))] = False
    return labels | ({"box_labels": torch.tensor(boxes, dtype=torch.float32)} if boxes else {})


def _placed(
    whole: torch.Tensor | None, mask: torch.Tensor, shape: tuple[int, ...], kind: torch.dtype, index: tuple[int, ...]
) -> torch.Tensor:
    """`whole`, zeros of the shape at first, with the mask at the index; a mask that is all of it is not copied."""
    if math.prod(shape) == mask.numel():
        return mask.reshape(shape)
    whole = torch.zeros(shape, dtype=kind) if whole is None else whole
    whole[index] = mask
    return whole


def _read(rle: RLE, grid: MaskGrid | None) -> np.ndarray:
    """The mask at the size of the image, or its pixels that the grid picks."""
    if grid is None:
        return masks.decode(rle)
    return masks.decode_at(rle, *(_picked(side, grid.size) for side in rle["size"]))


@lru_cache(maxsize=4096)
def _picked(side: int, size: int) -> masks.Picks:
    """Which of `side` pixels nearest interpolation to `size` picks: torch decides, whose arithmetic is float."""
    pixels = torch.arange(side, dtype=torch.float).view(1, 1, side, 1)
    return masks.Picks(F.interpolate(pixels, size=(size, 1), mode="nearest").flatten().long().numpy(), side)


def _union(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.logical_or.reduce(parts))


def _shares(parts: list[RLE], size: tuple[int, int], cells: int) -> torch.Tensor:
    """The share of each cell that a union of masks covers, as torch's "area" has it: cells may overlap. Whole numbers
    until the division, so bit-equal. Nothing is painted where one mask has few runs in a column, as most have."""
    width, height = size
    across, down = _parts(width, cells), _parts(height, cells)
    runs = masks.column_runs(parts[0]) if len(parts) == 1 else None
    if runs is None or len(runs[0]) > FEW_RUNS * width:
        rows = slice(0, cells)
        first, by_column = _painted(parts, height, down)
    else:
        rows = _touched(down, runs[1].min(initial=height), runs[2].max(initial=0))
        first, by_column = _of_runs(*runs, (down[0][rows], down[1][rows]))
    columns = _touched(across, first, first + len(by_column))
    area = _summed(by_column, first, across[0][columns], across[1][columns]).T.astype(np.float32)
    if cells == 1:  # torch takes the mean
        return torch.from_numpy(area).sum().reshape(1, 1) / (height * width)
    area /= down[1][rows, None].astype(np.float32)
    area /= across[1][columns].astype(np.float32)
    shares = np.zeros((cells, cells), np.float32)
    shares[rows, columns] = area
    return torch.from_numpy(shares)


Stretches = tuple[np.ndarray, np.ndarray]  # first pixels and lengths


def _touched(stretches: Stretches, first: int, last: int) -> slice:
    """Those of the stretches that hold pixels from `first` to `last`, which is not among them."""
    starts, lengths = stretches
    return slice(np.searchsorted(starts + lengths, first, "right"), np.searchsorted(starts, last))


def _of_runs(columns: np.ndarray, tops: np.ndarray, bottoms: np.ndarray, down: Stretches) -> tuple[int, np.ndarray]:
    """How many pixels of each cell of a column are in the runs of `masks.column_runs`: the index of the first column,
    and (columns, cells)."""
    starts, lengths = down
    if not len(columns):
        return 0, np.zeros((0, len(starts)), np.int16)
    ends = starts + lengths
    kind = np.int16 if ends[-1] < 2**15 else np.int32
    met = np.minimum.outer(bottoms.astype(kind), ends.astype(kind))
    met -= np.maximum.outer(tops.astype(kind), starts.astype(kind))
    np.maximum(met, 0, out=met)
    new = np.flatnonzero(np.diff(columns, prepend=-1))  # runs that are the first of their column
    first, there = int(columns[0]), columns[new]
    met = met if len(new) == len(met) else np.add.reduceat(met, new)
    if there[-1] - first + 1 == len(there):
        return first, met
    spread = np.zeros((there[-1] - first + 1, met.shape[1]), kind)
    spread[there - first] = met
    return first, spread


def _painted(parts: list[RLE], height: int, down: Stretches) -> tuple[int, np.ndarray]:
    """As `_of_runs`, of the union of masks, whose columns are painted."""
    columns = [masks.decode_columns(rle) for rle in parts]
    first = min(start for start, _ in columns)
    painted = np.zeros((max(start + len(part) for start, part in columns) - first, height), dtype=np.uint8)
    for start, part in columns:
        painted[start - first : start - first + len(part)] |= part.view(np.uint8)
    return first, _summed(painted.T, 0, *down).T


@lru_cache(maxsize=4096)
def _parts(side: int, cells: int) -> Stretches:
    """Of each cell, its first pixel and its number of pixels: those that it touches."""
    starts = np.arange(cells) * side // cells
    ends = -(-np.arange(1, cells + 1) * side // cells)
    return starts, ends - starts


def _summed(values: np.ndarray, first: int, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums over the stretches (starts, lengths) of an axis: (n, m) -> (stretches, m). The values are those from
    `first` on, all others are zero."""
    longest, size = int(lengths.max(initial=0)), len(values)
    kind = np.min_scalar_type(longest * int(values.max(initial=0)))
    padded = np.concatenate([values, np.zeros_like(values[:1], shape=(1, values.shape[1]))]).astype(kind, copy=False)
    sums = np.zeros((len(starts), values.shape[1]), kind)
    for step in range(longest):
        at = starts + step - first
        inside = (step < lengths) & (at >= 0) & (at < size)
        sums += padded[np.where(inside, at, size)]
    return sums
