"""SAM 2's losses (arXiv 2408.00714, section D.2.2): focal, dice, IoU and object score, as pure functions.

A step is one answer of the mask decoder for all O objects of a frame: M = 3 candidates where the prompt is ambiguous,
else one. Masks are learnt by the best candidate alone, IoUs by all. Everything is a sum over objects divided by
`objects`; sums over the steps and frames of a clip are the caller's (sam2: `training/loss_fns.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT_LOGIT = -30.0  # so sure that nothing is there that focal loss and gradient vanish


@dataclass(frozen=True)
class LossSettings:
    """Weights and forms of the parts; the defaults are those of SAM 2's fine-tuning on MOSE.

    focal_alpha, focal_gamma: of the mask's focal loss; below 0, alpha weighs nothing.
    supervise_all_ious: the IoU head learns on every candidate, not on the best alone. iou_l1: by L1, not by squares.
    object_scores: absent objects teach the object score alone; without it they are empty masks like any other.
    score_alpha, score_gamma: focal loss of the object score; -1 and 0 make it plain cross-entropy.
    """

    mask_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    score_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    supervise_all_ious: bool = True
    iou_l1: bool = True
    object_scores: bool = True
    score_alpha: float = -1.0
    score_gamma: float = 0.0


class Losses(NamedTuple):
    """Scalars without their weights; `total` weighs and adds them."""

    mask: Tensor
    dice: Tensor
    iou: Tensor
    score: Tensor

    def total(self, settings: LossSettings) -> Tensor:
        weights = (settings.mask_weight, settings.dice_weight, settings.iou_weight, settings.score_weight)
        # a part of weight 0 is not added: it may be infinite
        return sum((w * part for w, part in zip(weights, self, strict=True) if w), start=self.mask.new_zeros(()))


def step_losses(
    logits: Tensor,
    ious: Tensor,
    scores: Tensor,
    targets: Tensor,
    settings: LossSettings,
    objects: float,
    ignore: Tensor | None = None,
) -> Losses:
    """The losses of one step on one frame.

    Args:
        logits: (O, M, H, W) of the masks; ious (O, M) predicted, in 0..1; scores (O, 1), logits of being there at all.
        targets: bool (O, H, W). ignore: None or bool (O, H, W), pixels that do not count.
        objects: the mean number of objects of a batch, over all processes; what the sums are divided by.
    """
    if ignore is not None:  # as if nothing were there, neither in truth nor in the prediction
        logits, targets = logits.masked_fill(ignore.unsqueeze(1), ABSENT_LOGIT), targets & ~ignore
    present = targets.flatten(1).any(1).to(logits.dtype)  # (O,)
    counted = present if settings.object_scores else torch.ones_like(present)
    best = _best_candidate(logits.detach(), targets, settings)
    chosen = logits[torch.arange(len(logits), device=logits.device).unsqueeze(1), best]  # (O, 1, H, W)
    mask = mask_focal(chosen, targets, settings.focal_alpha, settings.focal_gamma)[:, 0]
    iou = iou_errors(logits, ious, targets, settings.iou_l1)
    iou = iou.mean(1) if settings.supervise_all_ious else iou.gather(1, best)[:, 0]
    parts = [(part * counted).sum() / objects for part in (mask, dice(chosen, targets)[:, 0], iou)]
    score = logits.new_zeros(())
    if settings.object_scores:
        errors = focal(scores, present.unsqueeze(1), settings.score_alpha, settings.score_gamma)
        score = errors.mean(1).sum() / objects
    return Losses(*parts, score)


def _best_candidate(logits: Tensor, targets: Tensor, settings: LossSettings) -> Tensor:
    """Which of the masks (O, M, H, W) is nearest to the target by the weighted sum of focal and dice: (O, 1)."""
    if logits.shape[1] == 1:
        return torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
    errors = settings.mask_weight * mask_focal(logits, targets, settings.focal_alpha, settings.focal_gamma)
    return (errors + settings.dice_weight * dice(logits, targets)).argmin(1, keepdim=True)


def focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (arXiv 1708.02002) of every entry: shapes as given."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma:
        wrong = (targets - logits.sigmoid()).abs()  # 1 - p of the true class
        loss = loss * (wrong.square() if gamma == 2 else wrong**gamma)
    return loss * (targets * (2 * alpha - 1) + (1 - alpha)) if alpha >= 0 else loss


def mask_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean focal loss of masks: logits (O, M, H, W), targets bool (O, H, W) -> (O, M)."""
    wanted = targets.unsqueeze(1).to(logits.dtype).expand_as(logits)
    return focal(logits, wanted, alpha, gamma).flatten(2).mean(2)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice coefficient with 1 added above and below: logits (O, M, H, W), targets bool (O, H, W) -> (O, M)."""
    shares = logits.sigmoid().flatten(2)
    wanted = targets.unsqueeze(1).flatten(2).to(logits.dtype)
    both = (shares * wanted).sum(2)
    return 1 - (2 * both + 1) / (shares.sum(2) + wanted.sum(2) + 1)


def iou_errors(logits: Tensor, ious: Tensor, targets: Tensor, l1: bool) -> Tensor:
    """How far predicted IoUs (O, M) are off the true ones of the masks (O, M, H, W); an empty pair has IoU 0."""
    drawn, wanted = logits > 0, targets.unsqueeze(1)
    both, either = (drawn & wanted).flatten(2).sum(2), (drawn | wanted).flatten(2).sum(2)
    difference = ious - both.to(ious.dtype) / either.clamp(min=1)
    return difference.abs() if l1 else difference.square()
