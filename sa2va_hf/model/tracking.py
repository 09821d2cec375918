"""Objects followed through a video from masks on some of its frames, all at once, frame by frame.

The steps are those of the `sam2` package's video predictor, with its memory in bfloat16; but frames come one at a time
and are forgotten, and objects that are drawn on the same frames are followed as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from .grounding import PIXEL_MEAN, PIXEL_STD


class ObjectTracker:
    """What is remembered of `objects` things that are drawn on the same frames of a video of `num_frames`."""

    def __init__(self, sam2: SAM2Base, num_frames: int, memory_dtype: torch.dtype = torch.bfloat16) -> None:
        if sam2.training:
            raise ValueError("SAM 2 is in training mode, where its memory is random; call eval() first")
        self.sam2, self.num_frames, self.dtype = sam2, num_frames, memory_dtype
        self.kept: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def prompt(self, number: int, features: dict[str, list], masks: Tensor) -> Tensor:
        """Draw the objects on a frame: bool (O, H, W), empty where one is absent. -> logits (O, S / 4, S / 4)."""
        side = self.sam2.image_size
        drawn = masks.unsqueeze(1).float()
        if masks.shape[-2:] != (side, side):
            drawn = F.interpolate(drawn, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
            drawn = (drawn >= 0.5).float()
        out = self._step(number, features, drawn)
        # as if it were a prediction: the memory is made of the small mask
        full = F.interpolate(out["pred_masks"], size=(side, side), mode="bilinear", align_corners=False)
        expanded = self._expanded(features, len(masks))
        memory, position = self.sam2._encode_new_memory(
            current_vision_feats=expanded["current_vision_feats"],
            feat_sizes=expanded["feat_sizes"],
            pred_masks_high_res=full,
            object_score_logits=out["object_score_logits"],
            is_mask_from_pts=True,
        )
        self._keep("cond_frame_outputs", number, out | {"maskmem_features": memory, "maskmem_pos_enc": position})
        self.objects = len(masks)
        return out["pred_masks"][:, 0]

    def follow(self, number: int, features: dict[str, list]) -> Tensor:
        """Find the objects on the next frame: logits (O, S / 4, S / 4)."""
        out = self._step(number, features, None)
        self._keep("non_cond_frame_outputs", number, out)
        return out["pred_masks"][:, 0]

    def _step(self, number: int, features: dict[str, list], masks: Tensor | None) -> dict[str, Any]:
        return self.sam2.track_step(
            frame_idx=number,
            is_init_cond_frame=masks is not None,
            point_inputs=None,
            mask_inputs=masks,
            output_dict=self.kept,
            num_frames=self.num_frames,
            run_mem_encoder=masks is None,
            **self._expanded(features, self.objects if masks is None else len(masks)),
        )

    def _expanded(self, features: dict[str, list], objects: int) -> dict[str, list]:
        maps = {name: [x.expand(-1, objects, -1) for x in features[name]] for name in features if name != "feat_sizes"}
        return maps | {"feat_sizes": features["feat_sizes"]}

    def _keep(self, group: str, number: int, out: dict[str, Any]) -> None:
        names = ("maskmem_pos_enc", "obj_ptr")
        memory = out["maskmem_features"].to(self.dtype)
        self.kept[group][number] = {name: out[name] for name in names} | {"maskmem_features": memory}
        others, upcoming = self.kept["non_cond_frame_outputs"], number + 1
        for old in list(others):  # no later frame looks back at these: maps first, pointers later
            if upcoming - old >= max(self.sam2.num_maskmem, self.sam2.max_obj_ptrs_in_encoder):
                del others[old]
            elif upcoming - old >= self.sam2.num_maskmem:
                others[old].update(maskmem_features=None, maskmem_pos_enc=None)


def frame_features(sam2: SAM2Base, frame: Tensor) -> dict[str, list]:
    """What SAM 2 sees in a frame uint8 (3, S, S), in the form that its tracking takes; for one object."""
    mean, std = (torch.tensor(values, device=frame.device).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    found = sam2.forward_image((frame.unsqueeze(0).float() / 255 - mean) / std)
    _, maps, positions, sizes = sam2._prepare_backbone_features(found)
    return {"current_vision_feats": maps, "current_vision_pos_embeds": positions, "feat_sizes": sizes}


@torch.no_grad()
def follow_objects(
    sam2: SAM2Base,
    open_frame: Callable[[int], Tensor],
    num_frames: int,
    prompts: Mapping[int, Mapping[int, Tensor]],
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Every frame from the first prompt on: (its number, {object: mask logits (S / 4, S / 4)}).

    open_frame: number -> uint8 (3, S, S). prompts: {object: {frame: bool (H, W)}}; an object is in the results from
    its first prompt on, and its later ones are known from the beginning. Frames are opened in order, but those with
    prompts first.

    Errors: ValueError for an object without prompts, or a prompt beyond the video.
    """
    for thing, given in prompts.items():
        if not given or not all(0 <= number < num_frames for number in given):
            raise ValueError(f"object {thing}: expected masks on frames 0 to {num_frames - 1}, got {sorted(given)}")
    groups: dict[tuple[int, ...], list[int]] = {}
    for thing, given in prompts.items():
        groups.setdefault(tuple(sorted(given)), []).append(thing)
    trackers = {numbers: ObjectTracker(sam2, num_frames) for numbers in groups}
    drawn: dict[tuple[int, ...], dict[int, Tensor]] = {numbers: {} for numbers in groups}
    for number in sorted({number for numbers in groups for number in numbers}):
        features = frame_features(sam2, open_frame(number))
        for numbers, things in groups.items():
            if number in numbers:
                masks = torch.stack([prompts[thing][number] for thing in things])
                drawn[numbers][number] = trackers[numbers].prompt(number, features, masks)
    for number in range(min(numbers[0] for numbers in groups), num_frames):
        following = [numbers for numbers in groups if numbers[0] < number and number not in numbers]
        features = frame_features(sam2, open_frame(number)) if following else {}
        found: dict[int, Tensor] = {}
        for numbers, things in groups.items():
            if numbers in following:
                found |= zip(things, trackers[numbers].follow(number, features), strict=True)
            elif number in numbers:
                found |= zip(things, drawn[numbers].pop(number), strict=True)
        yield number, {thing: found[thing] for thing in prompts if thing in found}
