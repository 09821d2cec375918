"""How well a model finds again what it has described: the student's own captions, read in the other picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SUMS = ("pairs", "intersection", "union", "iou", "seg_said", "seg_total", "caption_tokens")


def cross_frame_scores(trainer: Any, model: nn.Module, pairs: Any) -> dict[str, float]:
    """cross_cIoU, cross_gIoU: of the masks in the second pictures, at their own size, for greedy captions of the
    regions in the first ones; seg_emission: how often [SEG] comes first where it belongs; caption_length: tokens.

    The ranks take turns. A collective call of every rank.
    """
    totals = dict.fromkeys(SUMS, 0.0)
    size, ranks = trainer.args.per_device_eval_batch_size, trainer.args.world_size
    for first in range(0, len(pairs), size * ranks):
        start = first + trainer.args.process_index * size
        numbers = range(start, min(start + size, len(pairs)))
        found = _scores(trainer, model, [pairs[number] for number in numbers or range(1)])
        if numbers:  # a rank without a pair of its own still makes the calls that all ranks make
            totals = {name: totals[name] + found[name] for name in SUMS}
    totals = dict(zip(SUMS, trainer._sums(*totals.values()), strict=True))
    return {
        "cross_cIoU": totals["intersection"] / max(totals["union"], 1),
        "cross_gIoU": totals["iou"] / totals["pairs"],
        "seg_emission": totals["seg_said"] / totals["seg_total"],
        "caption_length": totals["caption_tokens"] / totals["pairs"],
        "pairs": totals["pairs"],
    }


def _scores(trainer: Any, model: nn.Module, pairs: list[Any]) -> dict[str, float]:
    batch = trainer._prepare_inputs({"pairs": trainer.data_collator.pairs(pairs)})["pairs"]
    captions = model(write=batch["describe"], may_end_early=not trainer.is_fsdp_enabled)
    answered = model(answer=batch["segment"], captions=captions)
    return pair_sums(answered, batch) | {"caption_tokens": sum(map(len, captions))}


def pair_sums(answered: dict[str, Any], batch: dict[str, Any]) -> dict[str, float]:
    """Sums over the pairs of a batch, from what `DualLoopModel.answered` gives: `SUMS` without the captions'."""
    sums = {"pairs": len(batch["mask_labels"]), "intersection": 0.0, "union": 0.0, "iou": 0.0}
    sums |= {name: float(answered[name]) for name in ("seg_said", "seg_total")}
    ignored = batch.get("ignore_labels") or [None] * len(batch["mask_labels"])
    for logits, truth, ignore in zip(answered["masks"], batch["mask_labels"], ignored, strict=True):
        intersection, union = _overlap(logits, truth[0, 0], None if ignore is None else ignore[0])
        sums["intersection"] += intersection
        sums["union"] += union
        sums["iou"] += intersection / union if union else 1.0
    return sums


def _overlap(logits: torch.Tensor, truth: torch.Tensor, ignore: torch.Tensor | None) -> tuple[int, int]:
    """Pixels of intersection and union of a mask (h, w) of logits, at the size of the true one (H, W)."""
    large = F.interpolate(logits[None, None].float(), truth.shape, mode="bilinear", align_corners=False)[0, 0] > 0
    if ignore is not None:
        large, truth = large & ~ignore, truth & ~ignore
    return int((large & truth).sum()), int((large | truth).sum())
