"""How well a SAM tracks the objects of whole videos: J and F of every object, from its first mask on."""

from __future__ import annotations

import numpy as np
import torch

from ...data.clips.vos import VosClip
from ...evaluation.video_metrics import j_and_f
from ...model.grounding_protocol import GroundingEncoder
from ...model.postprocessing import object_masks
from ...model.tracking import follow_objects


@torch.no_grad()
def score_clip(encoder: GroundingEncoder, clip: VosClip, device: torch.device) -> list[dict[str, float]]:
    """{"J", "F", "J&F"} of each object, over the annotated frames between the one it is given on and the last one,
    which do not count (as in DAVIS and SA-V); an object that is given on one of the last two frames is skipped."""
    given = {obj: first for obj, first in clip.firsts.items() if first < len(clip) - 2}
    if not given:
        return []
    prompts = {obj: {first: torch.from_numpy(clip.mask(obj, first)).to(device)} for obj, first in given.items()}
    size = tuple(next(iter(next(iter(prompts.values())).values())).shape)
    predicted: dict[int, list[np.ndarray]] = {obj: [] for obj in given}
    truth: dict[int, list[np.ndarray]] = {obj: [] for obj in given}
    frames = follow_objects(encoder, lambda n: clip.frame(n, encoder.image_size).to(device), len(clip) - 1, prompts)
    for number, logits in frames:
        for obj, mask in zip(logits, object_masks(torch.stack([*logits.values()]), size), strict=True):
            if number > given[obj] and clip.known[obj, number]:
                predicted[obj].append(mask.cpu().numpy())
                truth[obj].append(clip.mask(obj, number))
    return [j_and_f(np.stack(predicted[obj]), np.stack(truth[obj])) for obj in given if predicted[obj]]
