"""Objects followed through a clip by SAM 2's memory (arXiv 2408.00714, section 4): which frames are remembered.

Attention to memories and their encoding are the `sam2` package's. `ClipMemory` keeps the prompted frames, and of the
others no more than the next frame can look back at, so the space needed does not depend on the length of the clip.
`follow_objects` follows objects from given masks through a whole video. Both predict all objects at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from .grounding import ImageFeatures, MaskPrediction, Sa2VAGroundingEncoder

NO_OBJECT_LOGIT = -1024.0  # what SAM 2 puts where its object score says that there is nothing
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a given mask as logits: -10 and 10


class ClipMemory:
    """What is remembered of `objects` objects in a clip of `num_frames` frames.

    Args:
        dtype: what spatial memories are stored as; None = as computed. The released inference and SAM 2's own video
            predictor store bfloat16 even where they compute in float32.
        blank_absent: whether masks of objects that SAM 2 takes to be gone are blanked. Default: only by SAM 2's own
            decoder beside a fine-tuned one; a decoder tuned for [SEG] never learned to tell.

    Raises:
        ValueError: the encoder is in training mode.
    """

    def __init__(
        self,
        encoder: Sa2VAGroundingEncoder,
        objects: int,
        num_frames: int,
        dtype: torch.dtype | None = None,
        blank_absent: bool | None = None,
    ) -> None:
        if encoder.training:
            raise ValueError("the model is in training mode, where SAM 2's memory is random; call model.eval() first")
        self.encoder, self.objects, self.num_frames, self.dtype = encoder, objects, num_frames, dtype
        self.blank_absent = encoder.tracking_decoder is not None if blank_absent is None else blank_absent
        self.kept: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    # ---------------------------------------------------------------- frames with a prompt
    def prompt_with_embeddings(self, index: int, features: ImageFeatures, prediction: MaskPrediction) -> None:
        """Remember frame `index`, whose masks came from [SEG] embeddings, as the released inference does."""
        present = prediction.object_scores > 0
        pointers = self._pointers(prediction, present)
        self._remember(index, features, prediction.masks, pointers, present, prompted=True)

    def prompt_with_masks(self, index: int, features: ImageFeatures, masks: Tensor) -> Tensor:
        """Remember frame `index` as if the user had given its masks: the tracker reads them as mask prompts, and the
        memory takes them as they are, binary.

        masks: logits (objects, h, w), or bool masks of any size; empty where an object is absent. Returns logits
        (objects, S / 4, S / 4).
        """
        sam, size = self.encoder.sam2_model, (self.encoder.mask_size,) * 2
        given = self._binary(masks.unsqueeze(1))
        image = features.levels[-1].expand(self.objects, -1, -1, -1)
        prediction = self.encoder.prompt(features, masks=sam.mask_downsample(given), image=image)
        # The decoder may already say that there is nothing; then, and where the given mask is empty, the pointer is
        # that of no object.
        seen, present = prediction.object_scores > 0, given.flatten(1).any(1, keepdim=True)
        pointers = torch.where(present, self._pointers(prediction, seen), sam.no_obj_ptr)
        small = _resize(given * MASK_SCALE + MASK_BIAS, size, antialias=True).squeeze(1)
        self._remember(index, features, small, pointers, present, prompted=True)
        return small

    def _binary(self, masks: Tensor) -> Tensor:
        """(objects, 1, H, W) logits or bool -> 0 and 1 at SAM 2's input size."""
        size = (self.encoder.image_size,) * 2
        if masks.dtype != torch.bool:
            return (_resize(masks, size) > 0).float()
        masks = masks.float()
        return masks if masks.shape[-2:] == size else (_resize(masks, size, antialias=True) >= 0.5).float()

    # ---------------------------------------------------------------- frames without one
    def follow(self, index: int, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Find the objects on the next frame, without any prompt, and remember it.

        Returns mask logits (objects, h, w) and the IoU expected of them (objects,).
        """
        prediction = self.predict(index, features)
        return self.keep(index, features, prediction), prediction.ious.amax(1)

    def predict(self, index: int, features: ImageFeatures) -> MaskPrediction:
        """The objects on the next frame, without any prompt; nothing is remembered yet."""
        return self.encoder.prompt(features, image=self._condition(index, features))

    def keep(self, index: int, features: ImageFeatures, prediction: MaskPrediction) -> Tensor:
        """Remember what `predict` found on frame `index`; returns its mask logits (objects, h, w), blanked where an
        object is absent and `blank_absent` asks for it."""
        present = prediction.object_scores > 0
        masks = prediction.masks
        if self.blank_absent:
            masks = masks.where(present.unsqueeze(-1), torch.full_like(masks, NO_OBJECT_LOGIT))
        self._remember(index, features, masks, self._pointers(prediction, present), present, prompted=False)
        return masks

    def _condition(self, index: int, features: ImageFeatures) -> Tensor:
        """(objects, C, H, W): what frame `index` looks like to SAM 2, given what it remembers of each object."""
        sam, low = self.encoder.sam2_model, features.levels[-1]
        position = sam.image_encoder.neck.position_encoding(low).to(low.dtype)
        return sam._prepare_memory_conditioned_features(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=[_to_sequence(low, self.objects)],
            current_vision_pos_embeds=[_to_sequence(position, self.objects)],
            feat_sizes=[low.shape[-2:]],
            output_dict=self.kept,
            num_frames=self.num_frames,
        )

    # ---------------------------------------------------------------- what is kept
    def _pointers(self, prediction: MaskPrediction, present: Tensor) -> Tensor:
        """(objects, C): the output tokens as SAM 2 keeps them, `no_obj_ptr` where the object is not there."""
        sam = self.encoder.sam2_model
        return torch.where(present, sam.obj_ptr_proj(prediction.tokens), sam.no_obj_ptr)

    def _remember(
        self, index: int, features: ImageFeatures, masks: Tensor, pointers: Tensor, present: Tensor, prompted: bool
    ) -> None:
        """Keep frame `index`: mask logits (objects, h, w), object pointers (objects, C), and bool (objects, 1) whether
        each object is there. Frames without a prompt must come in order."""
        low, size = features.levels[-1], (self.encoder.image_size,) * 2
        memory, position = self.encoder.sam2_model._encode_new_memory(
            current_vision_feats=[_to_sequence(low, self.objects)],
            feat_sizes=[low.shape[-2:]],
            pred_masks_high_res=_resize(masks.unsqueeze(1), size),
            object_score_logits=present.float() * 2 - 1,
            is_mask_from_pts=prompted,
        )
        kept = self.kept["cond_frame_outputs" if prompted else "non_cond_frame_outputs"]
        memory = memory.to(self.dtype or memory.dtype)
        kept[index] = {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointers}
        self._forget(index + 1)

    def _forget(self, upcoming: int) -> None:
        """Drop what no frame from `upcoming` on looks back at: maps first, pointers later."""
        sam, kept = self.encoder.sam2_model, self.kept["non_cond_frame_outputs"]
        for index in list(kept):
            if upcoming - index >= max(sam.num_maskmem, sam.max_obj_ptrs_in_encoder):
                del kept[index]
            elif upcoming - index >= sam.num_maskmem:
                kept[index].update(maskmem_features=None, maskmem_pos_enc=None)


def _resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def _to_sequence(maps: Tensor, objects: int) -> Tensor:
    """(1, C, H, W) -> (H * W, objects, C), the form that SAM 2's memory reads."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, objects, -1)


@torch.no_grad()
def follow_objects(
    encoder: Sa2VAGroundingEncoder | SAM2Base,
    open_frame: Callable[[int], Tensor],
    num_frames: int,
    prompts: Mapping[int, Mapping[int, Tensor]],
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Every frame from the first prompt on: (its index, {object: mask logits (S / 4, S / 4)}).

    The steps are those of the `sam2` package's video predictor, its bfloat16 memory included, by SAM 2's own decoder
    where there are two. Objects with prompts on the same frames are followed as one batch.

    Args:
        open_frame: index -> uint8 (3, S, S). Frames are opened in order, but those with prompts first.
        prompts: {object: {frame index: bool (H, W)}}; an object is in the results from its first prompt on, and its
            later ones are known from the beginning.

    Raises:
        ValueError: an object without prompts, or a prompt beyond the video.
    """
    if isinstance(encoder, SAM2Base):
        encoder = Sa2VAGroundingEncoder(sam2=encoder).train(encoder.training)
    for item, given in prompts.items():
        if not given or not all(0 <= index < num_frames for index in given):
            raise ValueError(f"object {item}: expected masks on frames 0 to {num_frames - 1}, got {sorted(given)}")
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, given in prompts.items():
        groups.setdefault(tuple(sorted(given)), []).append(item)
    memories = {
        indices: ClipMemory(encoder, len(items), num_frames, torch.bfloat16, blank_absent=True)
        for indices, items in groups.items()
    }
    prompted: dict[tuple[int, ...], dict[int, Tensor]] = {indices: {} for indices in groups}
    for index in sorted({index for indices in groups for index in indices}):
        features = _features(encoder, open_frame(index))
        for indices, items in groups.items():
            if index in indices:
                masks = torch.stack([prompts[item][index] for item in items])
                prompted[indices][index] = memories[indices].prompt_with_masks(index, features, masks)
    for index in range(min(indices[0] for indices in groups), num_frames):
        following = [indices for indices in groups if indices[0] < index and index not in indices]
        features = _features(encoder, open_frame(index)) if following else None
        found: dict[int, Tensor] = {}
        for indices, items in groups.items():
            if indices in following:
                found |= zip(items, memories[indices].follow(index, features)[0], strict=True)
            elif index in indices:
                found |= zip(items, prompted[indices].pop(index), strict=True)
        yield index, {item: found[item] for item in prompts if item in found}


def _features(encoder: Sa2VAGroundingEncoder, frame: Tensor) -> ImageFeatures:
    return encoder.encode(encoder.normalize(frame.unsqueeze(0)))
