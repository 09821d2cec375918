"""Losses of Sa2VA as pure functions of tensors: weights and reductions are arguments, nothing is stored.
`losses_of_masks` puts those of masks together, by the weights of a configuration.

Numbers: Sa2VA's training (BCE 2.0, dice 0.5, 12544 uncertainty-sampled points); the sampling is PointRend's
(arXiv 1912.08193, section 3.3). All arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .configuration_sa2va import IGNORE_INDEX, Sa2VAConfig
from .grounding_protocol import MaskPrediction

# The reference divides by (count + 1e-4) and its reduction adds the float32 epsilon: part of the published numbers.
AVERAGE_EPS = 1e-4 + torch.finfo(torch.float32).eps


def answer_cross_entropy(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int | None = None
) -> Tensor:
    """Mean cross entropy of the next tokens, where `labels` (B, L) ask for one, from `hidden` (B, L, D).

    head: (n, D) -> logits (n, V); called for those positions only. chunk: so many of them at a time, whose logits are
    made again in the backward pass: a vocabulary of 150,000 takes 0.6 MB per token. 0 where no label asks.
    """
    asked = labels[:, 1:] != IGNORE_INDEX
    states, wanted = hidden[:, :-1][asked], labels[:, 1:][asked]

    def total(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), wanted, reduction="sum")

    if chunk is None or len(states) <= chunk:
        return total(states, wanted) / max(len(states), 1)
    pieces = zip(states.split(chunk), wanted.split(chunk), strict=True)
    return torch.stack([checkpoint(total, *piece, use_reentrant=False) for piece in pieces]).sum() / len(states)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `maps` (N, H, W) at `points` (N, P, 2), x then y in 0..1, zero outside. -> (N, P)"""
    grid = 2.0 * points.unsqueeze(1) - 1.0
    return F.grid_sample(maps.unsqueeze(1), grid, mode="bilinear", align_corners=False)[:, 0, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Points (N, num_points, 2) of which a share lies where the mask is undecided, the rest anywhere.

    Draws `num_points * oversample_ratio` candidates from torch's global generator and keeps those of smallest |logit|.
    """
    n = len(logits)
    candidates = torch.rand(n, int(num_points * oversample_ratio), 2, device=logits.device)
    num_important = int(importance_ratio * num_points)
    closest = sample_at(logits, candidates).abs().neg().topk(num_important, dim=1).indices
    important = candidates.gather(1, closest.unsqueeze(-1).expand(-1, -1, 2))
    fresh = torch.rand(n, num_points - num_important, 2, device=logits.device)
    return torch.cat([important, fresh], dim=1)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Per-mask sum over cells of BCE with logits: (N, P), (N, P) -> (N,)"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)


def dice(logits: Tensor, targets: Tensor, eps: float = 1.0) -> Tensor:
    """Per-mask dice loss, 1 - (2 |pt| + eps) / (|p| + |t| + eps), unsquared: (N, P), (N, P) -> (N,)"""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(1)
    return 1.0 - (2.0 * overlap + eps) / (probabilities.sum(1) + targets.sum(1) + eps)


def mask_losses(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    points: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted means of BCE and dice over masks, before the loss weights.

    Args:
        logits, targets: (N, h, w) mask logits and targets in 0..1.
        weights: (N,) how many masks each one counts as; None = 1 each.
        points: (N, P, 2) compare there only, targets sampled bilinearly as well; None = on all cells.
        valid: (N, h, w) cells that count; None = all. Cells outside add nothing but stay in the BCE's denominator; a
            mask without any such cell weighs nothing.
    """
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights.float()
    if valid is not None:
        weights = weights * valid.flatten(1).any(1)
    logits, targets = logits.float(), targets.float()
    eps = 0.0
    if points is not None:
        logits, targets = sample_at(logits, points), sample_at(targets, points)
        valid = None if valid is None else sample_at(valid.float(), points) > 0.5
        eps = AVERAGE_EPS
    logits, targets = logits.flatten(1), targets.flatten(1)
    if valid is not None:  # a very negative logit against target 0 costs nothing
        valid = valid.flatten(1)
        logits, targets = logits.masked_fill(~valid, -1e4), targets.masked_fill(~valid, 0.0)
    total, least = weights.sum(), torch.finfo(torch.float32).tiny  # nothing counts: the losses are 0, not 0 / 0
    bce = (weights * binary_cross_entropy(logits, targets)).sum() / (total * logits.shape[1] + eps).clamp(min=least)
    return bce, (weights * dice(logits, targets)).sum() / (total + eps).clamp(min=least)


def presence_errors(scores: Tensor, present: Tensor) -> Tensor:
    """Cross entropy of object scores, as logits, with whether the object is there: (N,), bool (N,) -> (N,)"""
    return F.binary_cross_entropy_with_logits(scores.float(), present.float(), reduction="none")


@torch.no_grad()
def soft_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the thresholded masks: (..., h, w) logits and targets -> (...); two empty masks agree (1)."""
    predicted, wanted = logits > 0, targets > 0.5
    intersection = (predicted & wanted).flatten(-2).sum(-1).float()
    union = (predicted | wanted).flatten(-2).sum(-1).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


def pair_weights(known: Sequence[Tensor], limit: int | None) -> Tensor:
    """How much each (object, frame) pair counts, in the order of `predict_masks`: per sample bool (objects, frames),
    whether it is known -> (sum of objects * frames,).

    A frame with n known objects shows each of them to the loss `limit / n` times (cyclic repetition, so earlier
    objects once more); of more objects a random subset of that size is sampled on every frame. None: each counts
    once. What is not known weighs 0.
    """
    return torch.cat([_sample_weights(pairs, limit).flatten() for pairs in known])


def _sample_weights(known: Tensor, limit: int | None) -> Tensor:
    if limit is None:
        return known.float()
    count, rank = known.sum(0), known.cumsum(0) - 1
    copies = limit // count.clamp(min=1) + (rank < limit % count.clamp(min=1))
    for frame, objects in enumerate(count.tolist()):
        if objects > limit:
            copies[:, frame] = torch.isin(rank[:, frame], torch.randperm(objects)[:limit].to(known.device))
    return copies.float() * known


def shrink(masks: Tensor, size: int, mode: str) -> Tensor:
    """(N, F, H, W) -> (N * F, size, size) float; nearest cells as in the reference, or the share of each cell."""
    return F.interpolate(masks.float(), size=(size, size), mode=mode).flatten(0, 1)


def valid_cells(
    ignore_labels: list[Tensor | None] | None, objects: list[int], frames: list[int], size: int, device: torch.device
) -> Tensor | None:
    """Cells that count, bool (sum of objects * frames, size, size); None where all do.

    Args:
        ignore_labels: per sample None or bool (frames, H, W), pixels that do not count.
        objects, frames: how many of each every sample has.
    """
    if ignore_labels is None or all(ignore is None for ignore in ignore_labels):
        return None
    cells = [
        torch.ones(count * length, size, size, dtype=torch.bool, device=device)
        if ignore is None
        else ~shrink(ignore.to(device).expand(count, -1, -1, -1), size, "nearest").bool()
        for ignore, count, length in zip(ignore_labels, objects, frames, strict=True)
        if count
    ]
    return torch.cat(cells)


def iou_error(
    ious: Tensor, candidates: Tensor, targets: Tensor, valid: Tensor | None, known: Tensor | None = None
) -> Tensor:
    """L1 between predicted and actual IoUs, mean over all candidates of the masks that are known and have a `valid`
    cell.

    Args:
        ious: (N, C) predicted.
        candidates: (N, C, h, w) mask logits.
        targets, valid: (N, h, w); valid None = all cells.
        known: bool (N,); None = all.
    """
    actual = soft_iou(candidates, targets.unsqueeze(1).expand_as(candidates))
    errors = (ious - actual).abs()
    if valid is None and known is None:
        return errors.mean()
    counts = torch.ones_like(errors[:, :1]) if valid is None else valid.flatten(1).any(1).float().unsqueeze(1)
    counts = counts if known is None else counts * known.unsqueeze(1)
    return (errors * counts).sum() / (counts.sum() * errors.shape[1]).clamp(min=1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """(N,), (N,) -> (); 0 where nothing has a weight."""
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def losses_of_masks(
    config: Sa2VAConfig,
    prediction: MaskPrediction | None,
    mask_labels: list[Tensor],
    ignore_labels: list[Tensor | None] | None,
    known: list[Tensor],
    size: int,
) -> dict[str, Tensor]:
    """Weighted losses "mask" and "dice", and "iou" and "object_score" where they have a weight; none without masks.

    mask_labels, ignore_labels: as in `Sa2VAForConditionalGeneration.forward`. known: bool (objects, frames) per
    sample. size: side of the predicted masks.

    Raises:
        ValueError: if a sample has not as many masks as [SEG] tokens.
    """
    counts, lengths = zip(*(pairs.shape for pairs in known), strict=True)
    wrong = [
        f"sample {i}: {n} [SEG] in the text, {len(masks)} objects in mask_labels"
        for i, (n, masks) in enumerate(zip(counts, mask_labels, strict=True))
        if n != len(masks)
    ]
    if wrong:
        raise ValueError("[SEG] tokens and masks do not match (was the text cut?): " + "; ".join(wrong))
    if prediction is None:
        return {}
    found, device, logits = {}, prediction.masks.device, prediction.masks
    targets = torch.cat([shrink(masks.to(device), size, config.mask_targets) for masks in mask_labels if len(masks)])
    valid = valid_cells(ignore_labels, counts, lengths, size, device)
    weights = pair_weights(known, config.objects_per_frame).to(device)
    if config.object_score_loss_weight > 0:
        present = torch.cat([masks.flatten(0, 1).flatten(1).any(1) for masks in mask_labels]).to(device)
        errors = presence_errors(prediction.object_scores[:, 0], present)
        counted = weights if valid is None else weights * valid.flatten(1).any(1)
        found["object_score"] = config.object_score_loss_weight * weighted_mean(errors, counted)
    if config.iou_loss_weight > 0:
        flags = torch.cat([pairs.flatten() for pairs in known])
        flags = None if bool(flags.all()) else flags.to(device)
        error = iou_error(prediction.ious, prediction.candidates, targets, valid, flags)
        found["iou"] = config.iou_loss_weight * error
        # All three candidates learn the mask: the best alone would let them guess one object each, and never read the
        # prompt.
        logits, count = prediction.candidates.flatten(0, 1), prediction.candidates.shape[1]
        targets, weights = targets.repeat_interleave(count, 0), weights.repeat_interleave(count, 0)
        valid = None if valid is None else valid.repeat_interleave(count, 0)
    points = None
    if config.num_points:
        points = uncertain_points(
            logits.detach(), config.num_points, config.oversample_ratio, config.importance_sample_ratio
        )
    bce, dice_loss = mask_losses(logits, targets, weights, points, valid)
    return found | {"mask": config.mask_loss_weight * bce, "dice": config.dice_loss_weight * dice_loss}
