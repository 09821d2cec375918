"""What SAM 2 remembers of a clip (arXiv 2408.00714, section 4), for all objects at once, in an object you hold.

Attention to memories and their encoding are the `sam2` package's; here is which frames are kept, and for how long: the
prompted ones, and of the others no more than the next frame can look back at. So the length of a clip costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .grounding import ImageFeatures, MaskPrediction, Sa2VAGroundingEncoder

NO_OBJECT_LOGIT = -1024.0  # what SAM 2 puts where its object score says that there is nothing
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a given mask as logits: -10 and 10


class ClipMemory:
    """The memories of `objects` things in a clip of `num_frames` frames.

    Args:
        dtype: what spatial memories are stored as; None = as computed. The released inference stores bfloat16 even
            where it computes in float32.
    """

    def __init__(
        self, encoder: Sa2VAGroundingEncoder, objects: int, num_frames: int, dtype: torch.dtype | None = None
    ) -> None:
        if encoder.training:
            raise ValueError("the model is in training mode, where SAM 2's memory is random; call model.eval() first")
        self.encoder, self.objects, self.num_frames, self.dtype = encoder, objects, num_frames, dtype
        self._kept: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def remember(
        self,
        number: int,
        features: ImageFeatures,
        masks: Tensor,
        pointers: Tensor,
        present: Tensor,
        prompted: bool,
    ) -> None:
        """Keep frame `number`: `features` of that one frame, mask logits (objects, h, w), object pointers (objects, C)
        from `pointers`, and bool (objects, 1) whether each object is there. Frames must come in order."""
        sam, side = self.encoder.sam2_model, self.encoder.config.image_size
        large = F.interpolate(masks.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False)
        memory, position = sam._encode_new_memory(
            current_vision_feats=[self._flat(features)],
            feat_sizes=[features.levels[-1].shape[-2:]],
            pred_masks_high_res=large,
            object_score_logits=present.float() * 2 - 1,
            is_mask_from_pts=prompted,
        )
        kept = self._kept["cond_frame_outputs" if prompted else "non_cond_frame_outputs"]
        kept[number] = {
            "maskmem_features": memory.to(self.dtype or memory.dtype),
            "maskmem_pos_enc": position,
            "obj_ptr": pointers,
        }
        self._forget(number + 1)

    def _forget(self, upcoming: int) -> None:
        """Drop what no frame from `upcoming` on looks back at: maps first, pointers later."""
        sam, kept = self.encoder.sam2_model, self._kept["non_cond_frame_outputs"]
        for number in list(kept):
            if upcoming - number >= max(sam.num_maskmem, sam.max_obj_ptrs_in_encoder):
                del kept[number]
            elif upcoming - number >= sam.num_maskmem:
                kept[number].update(maskmem_features=None, maskmem_pos_enc=None)

    def condition(self, number: int, features: ImageFeatures) -> Tensor:
        """(objects, C, H, W): what frame `number` looks like to SAM 2, given what it remembers of each object."""
        sam, low = self.encoder.sam2_model, features.levels[-1]
        position = sam.image_encoder.neck.position_encoding(low).to(low.dtype)
        return sam._prepare_memory_conditioned_features(
            frame_idx=number,
            is_init_cond_frame=False,
            current_vision_feats=[self._flat(features)],
            current_vision_pos_embeds=[_to_sequence(position, self.objects)],
            feat_sizes=[low.shape[-2:]],
            output_dict=self._kept,
            num_frames=self.num_frames,
        )

    def pointers(self, prediction: MaskPrediction, present: Tensor) -> Tensor:
        """(objects, C): the output tokens as SAM 2 keeps them, `no_obj_ptr` where the object is not there."""
        sam = self.encoder.sam2_model
        return torch.where(present, sam.obj_ptr_proj(prediction.tokens), sam.no_obj_ptr)

    def follow(self, number: int, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Find the objects on the next frame, without any prompt, and remember it.

        Returns mask logits (objects, h, w) and the IoU expected of them (objects,). SAM 2's own decoder, where there
        is one, blanks the masks of objects that it takes to be gone; a fine-tuned one never learned to tell.
        """
        prediction = self.encoder.follow(features, self.condition(number, features))
        present = prediction.object_scores > 0
        masks = prediction.masks
        if self.encoder.config.tracking_decoder:
            masks = masks.where(present.unsqueeze(-1), torch.full_like(masks, NO_OBJECT_LOGIT))
        self.remember(number, features, masks, self.pointers(prediction, present), present, prompted=False)
        return masks, prediction.ious.amax(1)

    def prompt_with_embeddings(self, number: int, features: ImageFeatures, prediction: MaskPrediction) -> None:
        """Remember a frame whose masks came from [SEG] embeddings, as the released inference does."""
        present = prediction.object_scores > 0
        self.remember(number, features, prediction.masks, self.pointers(prediction, present), present, prompted=True)

    def prompt_with_masks(self, number: int, features: ImageFeatures, masks: Tensor) -> None:
        """Remember a frame as if the user had drawn `masks` (logits (objects, h, w)) on it: the tracker reads them as
        mask prompts, and the memory takes them as they are, binary."""
        sam, side = self.encoder.sam2_model, self.encoder.config.image_size
        large = F.interpolate(masks.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False)
        drawn = (large > 0).float()
        image = features.levels[-1].expand(self.objects, -1, -1, -1)
        prediction = self.encoder.follow(features, image, sam.mask_downsample(drawn))
        # The decoder may already say that there is nothing; then, and where nothing was drawn, the pointer says so.
        seen, present = prediction.object_scores > 0, drawn.flatten(1).any(1, keepdim=True)
        pointers = self.pointers(prediction, seen)
        pointers = torch.where(present, pointers, sam.no_obj_ptr)
        small = F.interpolate(
            drawn * MASK_SCALE + MASK_BIAS,
            size=masks.shape[-2:],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        self.remember(number, features, small.squeeze(1), pointers, present, prompted=True)

    def _flat(self, features: ImageFeatures) -> Tensor:
        return _to_sequence(features.levels[-1], self.objects)


def _to_sequence(maps: Tensor, objects: int) -> Tensor:
    """(1, C, H, W) -> (H * W, objects, C), the form that SAM 2's memory reads."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, objects, -1)
