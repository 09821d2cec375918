"""The numbers that a Sa2VA run logs beside its loss, from what its `Meter` counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .flops import peak_flops

# What is counted per micro-batch, and per step: seconds of wall time, and of them seconds of waiting for data.
COUNTS = ("batches", "mask_batches", "masks", "tokens", "padded", "samples", "seconds", "waiting", "flops")


def batch_counts(parts: Mapping[str, float], *, masks: int, tokens: float, padded: int, samples: int) -> dict:
    """The amounts of one micro-batch: loss parts, masks in it, real tokens, tokens after padding, samples."""
    counts = {"batches": 1, "mask_batches": int(masks > 0), "masks": masks, "tokens": tokens}
    return counts | {"padded": padded, "samples": samples} | dict(parts)


def mask_counts(inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(objects, frames) of each sample with masks, as its mask losses count them: a frame of ignored pixels alone,
    as where an object has a box alone, weighs nothing."""
    labels = inputs.get("mask_labels") or []
    ignored = inputs.get("ignore_labels") or [None] * len(labels)
    return [
        (len(masks), masks.shape[1] if ignore is None else int((~ignore.flatten(1).all(1)).sum()))
        for masks, ignore in zip(labels, ignored, strict=True)
        if len(masks)
    ]


def logged(totals: Mapping[str, float], steps: int, processes: int, device: torch.device) -> dict[str, float]:
    """The numbers of `Sa2VATrainer`'s log: means and rates of what all ranks counted in `steps` steps.

    Without a micro-batch there is nothing to log.
    """
    batches = totals["batches"]
    if not batches:
        return {}
    parts = {name: total for name, total in totals.items() if name not in COUNTS and total}
    means = {name: total / (batches if name == "lm_loss" else totals["mask_batches"]) for name, total in parts.items()}
    seconds = max(totals["seconds"] / processes, 1e-9)
    return means | {
        "mask_batches": totals["mask_batches"] / batches,
        "masks": totals["masks"] / max(steps, 1),
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
