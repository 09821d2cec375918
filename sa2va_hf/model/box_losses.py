"""Masks learned from boxes alone: the projection term of BoxInst (arXiv 2012.02310, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .configuration_sa2va import Sa2VAConfig
from .grounding_protocol import MaskPrediction
from .losses import pair_weights, weighted_mean

EPS = 1e-5  # of the dice term, as in BoxInst


def projection_loss(logits: Tensor, boxes: Tensor) -> Tensor:
    """How far masks differ from boxes along both axes, per mask: (N, h, w), (N, h, w) -> (N,), 0 to 2.

    The largest probability of every column must be that of the boxes, 1 where they are and 0 elsewhere; likewise of
    every row. Where the mask lies within the boxes is left to what else is learned.

    Args:
        logits: of masks.
        boxes: 0..1, the cells that the boxes of an object cover; of several boxes their union.
    """
    probabilities, boxes = logits.float().sigmoid(), boxes.float()
    return sum(_dice(probabilities.amax(axis), boxes.amax(axis)) for axis in (1, 2))


def _dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Dice of BoxInst, with squares in the denominator: (N, n), (N, n) -> (N,)"""
    overlap = (found * wanted).sum(1)
    return 1 - 2 * overlap / (found.square().sum(1) + wanted.square().sum(1) + EPS)


def box_cells(boxes: Tensor, pairs: Tensor, count: int, size: int) -> Tensor:
    """Boxes as cells of masks, the union where a mask has several: -> 0..1 (count, size, size).

    A cell belongs to a box when its middle does; a thinner box gets one row or column.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in shares of the picture.
        pairs: (n,) the index of the mask that each box belongs to.
    """
    cells = torch.zeros(count, size, size, device=boxes.device)
    columns, rows = (_within(boxes[:, axis], boxes[:, axis + 2], size) for axis in (0, 1))
    return cells.index_add_(0, pairs, rows.unsqueeze(2) * columns.unsqueeze(1)).clamp(max=1)


def _within(start: Tensor, end: Tensor, size: int) -> Tensor:
    """Which cells of an axis lie between: (n,), (n,) -> 0 or 1 (n, size)."""
    first = (start * size - 0.5).ceil().clamp(0, size - 1)
    last = torch.maximum((end * size - 0.5).ceil(), first + 1)
    at = torch.arange(size, device=start.device)
    return ((at >= first.unsqueeze(1)) & (at < last.unsqueeze(1))).float()


def known_pairs(mask_known: list[Tensor | None] | None, seg_counts: Tensor, num_frames: Tensor) -> list[Tensor]:
    """Whose mask is known, per sample: bool (objects, frames) on the CPU."""
    shapes = list(zip(seg_counts.tolist(), num_frames.tolist(), strict=True))
    given = mask_known or [None] * len(shapes)
    return [
        torch.ones(shape, dtype=torch.bool) if known is None else known.cpu().bool()
        for known, shape in zip(given, shapes, strict=True)
    ]


def box_pairs(box_labels: list[Tensor | None], known: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What boxes teach: corners (n, 4) of all boxes; the index (n,) of the (object, frame) pair of each, in the order
    of `predict_masks`; and per sample the pairs that have a box and no known mask, bool (objects, frames).

    Args:
        box_labels: as `Sa2VAForConditionalGeneration.forward` takes them.
        known: as `known_pairs` gives them.
    """
    corners, indices, boxed, start = [], [], [], 0
    for boxes, pairs in zip(box_labels, known, strict=True):
        rows = torch.zeros(0, 6) if boxes is None else boxes.cpu().float()
        places = rows[:, 0].long() * pairs.shape[1] + rows[:, 1].long()
        has_box = torch.zeros(pairs.numel(), dtype=torch.bool).index_fill(0, places, True).view_as(pairs)
        corners.append(rows[:, 2:])
        indices.append(start + places)
        boxed.append(has_box & ~pairs)
        start += pairs.numel()
    return torch.cat(corners), torch.cat(indices), boxed


def loss_of_boxes(
    config: Sa2VAConfig,
    prediction: MaskPrediction | None,
    box_labels: list[Tensor | None] | None,
    known: list[Tensor],
    size: int,
) -> Tensor | None:
    """The weighted loss of the masks that are known by their boxes alone; None where no sample has boxes.

    box_labels: as in `Sa2VAForConditionalGeneration.forward`. known: see `known_pairs`. size: side of the masks.
    """
    if prediction is None or box_labels is None or all(boxes is None for boxes in box_labels):
        return None
    device, logits = prediction.masks.device, prediction.masks
    corners, indices, boxed = box_pairs(box_labels, known)
    cells = box_cells(corners.to(device), indices.to(device), len(logits), size)
    weights = pair_weights(boxed, config.objects_per_frame).to(device)
    if config.iou_loss_weight > 0:  # all candidates learn, as from masks
        logits, count = prediction.candidates.flatten(0, 1), prediction.candidates.shape[1]
        cells, weights = cells.repeat_interleave(count, 0), weights.repeat_interleave(count, 0)
    return config.box_loss_weight * weighted_mean(projection_loss(logits, cells), weights)
