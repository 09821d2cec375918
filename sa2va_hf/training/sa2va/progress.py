"""The numbers that a Sa2VA run logs beside its loss, from what its `Meter` counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .flops import peak_flops

# What is counted per micro-batch, and per step: seconds of wall time, and of them seconds of waiting for data.
CONTRASTIVE = "contrastive_loss"  # the loss part that the trainer adds to the model's
COUNTS = ("batches", "mask_batches", "box_batches", "masks", "boxes")
COUNTS = (*COUNTS, "tokens", "padded", "samples", "seconds", "waiting", "flops")


def batch_counts(
    parts: Mapping[str, float], *, masks: int, tokens: float, padded: int, samples: int, boxes: int = 0
) -> dict:
    """The amounts of one micro-batch: loss parts, masks in it, masks known by boxes alone, real tokens, tokens after
    padding, samples."""
    counts = {"batches": 1, "mask_batches": int(masks > 0), "box_batches": int(boxes > 0), "masks": masks}
    return counts | {"boxes": boxes, "tokens": tokens, "padded": padded, "samples": samples} | dict(parts)


def mask_counts(inputs: Mapping[str, Any]) -> list[list[int]]:
    """How many masks each frame of each sample has, as the mask losses count them; frames without any are not listed.

    A mask that is not known weighs nothing, nor does a frame that is ignored as a whole.
    """
    labels = inputs.get("mask_labels") or []
    ignored, known = (inputs.get(name) or [None] * len(labels) for name in ("ignore_labels", "mask_known"))
    counts = []
    for masks, ignore, pairs in zip(labels, ignored, known, strict=True):
        pairs = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device) if pairs is None else pairs
        counted = pairs if ignore is None else pairs & ~ignore.flatten(1).all(1)
        counts.append([count for count in counted.sum(0).tolist() if count])
    return counts


def box_counts(inputs: Mapping[str, Any]) -> list[list[int]]:
    """As `mask_counts`, the masks that are known by boxes alone."""
    counts = []
    for boxes in inputs.get("box_labels") or []:
        pairs = [] if boxes is None else boxes[:, :2].long().unique(dim=0)[:, 1].tolist()
        counts.append([pairs.count(frame) for frame in sorted(set(pairs))])
    return counts


def logged(totals: Mapping[str, float], steps: int, processes: int, device: torch.device) -> dict[str, float]:
    """The numbers of `Sa2VATrainer`'s log: means and rates of what all ranks counted in `steps` steps.

    Without a micro-batch there is nothing to log.
    """
    batches = totals["batches"]
    if not batches:
        return {}
    parts = {name: total for name, total in totals.items() if name not in COUNTS and total}
    batches_of = {"lm_loss": batches, CONTRASTIVE: batches, "box_loss": totals["box_batches"]}
    means = {name: total / max(batches_of.get(name, totals["mask_batches"]), 1) for name, total in parts.items()}
    seconds = max(totals["seconds"] / processes, 1e-9)
    return means | {
        "mask_batches": totals["mask_batches"] / batches,
        "masks": totals["masks"] / max(steps, 1),
        **({"boxes": totals["boxes"] / max(steps, 1)} if totals["boxes"] else {}),
        "padding_efficiency": totals["tokens"] / totals["padded"],
        **{f"{name}_per_second": totals[name] / seconds for name in ("tokens", "samples", "masks")},
        "data_wait": totals["waiting"] / max(totals["seconds"], 1e-9),
        **_speed(totals["flops"] / processes / seconds, device),
    }


def _speed(flops: float, device: torch.device) -> dict[str, float]:
    """TFLOP/s of a device, and its share of what the device can do, where that is known."""
    if not flops:
        return {}
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {"tflops": flops / 1e12} | ({"mfu": flops / peak} if peak else {})
