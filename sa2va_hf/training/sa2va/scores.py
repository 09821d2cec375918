"""What an evaluation measures: sums per sample on the device, scores from the sums of all samples.

Teacher-forced: the masks of the [SEG] tokens in the given answer, and what the model would have said at each position
of it. Masks are compared by `evaluation`'s code. Because only sums per sample travel between processes, the scores
do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction

from ...evaluation.metrics import intersection_union, ratio
from ...model.configuration_sa2va import IGNORE_INDEX

COLUMNS = (
    "intersection",  # pixels, over all masks of the sample (one mask = one object on one frame)
    "union",
    "iou",  # sum over masks; a mask that is empty in truth and prediction counts 1
    "masks",
    "seg_said",  # [SEG] tokens of the answers that come first where they belong
    "seg_total",
    "seg_wrong",  # other answer tokens in whose place [SEG] comes first
    "tokens_right",
    "tokens",
)


NAMES = ("cIoU", "gIoU", "seg_emission", "seg_precision", "token_accuracy", "masks")


@contextmanager
def first_tokens(head: nn.Module) -> Iterator[list[Tensor]]:
    """While this lasts, the ids of the likeliest tokens, (n,) for each call of the LM head `head`, are collected.

    With `return_logits=False` the model calls the head a few positions at a time: its logits of a whole batch,
    (B, L, V), would take 12 GB in float32 at 4096 tokens and a vocabulary of 151,000.
    """
    found: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, inputs, logits: found.append(logits.detach().argmax(-1)))
    try:
        yield found
    finally:
        handle.remove()


def predicted_ids(firsts: Tensor, labels: Tensor) -> Tensor:
    """The likeliest next tokens (n,), in the order in which `labels` (B, L) ask for them -> (B, L - 1); else -1."""
    asked = labels[:, 1:] != IGNORE_INDEX
    predicted = torch.full_like(labels[:, 1:], -1)
    predicted[asked] = firsts
    return predicted


def sample_sums(
    predicted: Tensor,
    input_ids: Tensor,
    labels: Tensor,
    seg_token_id: int,
    pred_masks: list[Tensor],
    mask_labels: list[Tensor],
    ignore_labels: list[Tensor | None] | None = None,
    mask_known: list[Tensor | None] | None = None,
) -> Tensor:
    """One row per sample, `COLUMNS` wide: (B, 9) float64.

    Args:
        predicted: (B, L - 1) ids of the likeliest next tokens, see `predicted_ids`. input_ids, labels: (B, L).
        pred_masks: per sample (num_seg, num_frames, h, w) mask logits; mask_labels: per sample bool
            (num_seg, num_frames, H, W), the size at which the two are compared; ignore_labels: per sample None or bool
            (num_frames, H, W), pixels that do not count; mask_known: per sample None or bool (num_seg, num_frames).
    """
    wanted = input_ids[:, 1:]
    answer = labels[:, 1:] != IGNORE_INDEX
    seg = answer & (wanted == seg_token_id)
    said = predicted == seg_token_id
    right = answer & (predicted == wanted)
    text = torch.stack([seg & said, seg, answer & ~seg & said, right, answer]).sum(-1).T.double()  # (B, 5)
    optional = [given or [None] * len(mask_labels) for given in (ignore_labels, mask_known)]
    masks = [_mask_sums(*given) for given in zip(pred_masks, mask_labels, *optional, strict=True)]
    return torch.cat([torch.stack(masks).to(text.device), text], dim=1)


def _mask_sums(logits: Tensor, target: Tensor, ignore: Tensor | None, known: Tensor | None) -> Tensor:
    """(4,) intersection, union, sum of IoUs, number of masks. An object at a time: full-size logits are large."""
    sums = torch.zeros(4, dtype=torch.float64)
    ignored = None if ignore is None else ignore.cpu().numpy()
    # a frame that is ignored as a whole is no frame
    whole = np.ones(target.shape[1], dtype=bool) if ignored is None else ~ignored.all((-2, -1))
    for number, (one, truth) in enumerate(zip(logits, target, strict=True)):  # (frames, h, w), (frames, H, W)
        full = F.interpolate(one.unsqueeze(1).float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
        intersection, union = intersection_union((full[:, 0] > 0).cpu().numpy(), truth.bool().cpu().numpy(), ignored)
        counted = whole if known is None else whole & known[number].cpu().numpy()
        intersection, union = intersection[counted], union[counted]
        iou = ratio(intersection, union).sum()
        sums += torch.tensor([intersection.sum(), union.sum(), iou, counted.sum()], dtype=torch.float64)
    return sums


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """Scores from the rows of all samples; one without anything to score is omitted.

    cIoU: sum of intersections over sum of unions; 1 where all masks are empty and so are the predictions. gIoU: mean
    IoU over masks. seg_emission: share of [SEG] tokens that come first where the answer has them. seg_precision: share
    of first-coming [SEG] that the answer has there. token_accuracy: share of answer tokens that come first.
    """
    total = dict(zip(COLUMNS, prediction.predictions.reshape(-1, len(COLUMNS)).sum(0).tolist(), strict=True))
    ratios = {
        "cIoU": (total["intersection"], total["union"]),
        "gIoU": (total["iou"], total["masks"]),
        "seg_emission": (total["seg_said"], total["seg_total"]),
        "seg_precision": (total["seg_said"], total["seg_said"] + total["seg_wrong"]),
        "token_accuracy": (total["tokens_right"], total["tokens"]),
    }
    found = {name: part / whole for name, (part, whole) in ratios.items() if whole}
    if total["masks"]:
        found.setdefault("cIoU", 1.0)
    return found | {"masks": total["masks"]}
