"""The memory of SAM 2 (arXiv 2408.00714, section 4) as a grounding encoder's: the `sam2` package's own calls."""

from __future__ import annotations

import torch
from torch import Tensor

from .grounding_protocol import (
    MASK_BIAS,
    MASK_SCALE,
    GivenMasks,
    ImageFeatures,
    Kept,
    MaskPrediction,
    resize,
    to_sequence,
)


class Sam2Memory:
    """The memory's part of a grounding encoder that has a `SAM2Base` as `sam2_model`."""

    @property
    def memory_frames(self) -> int:
        return self.sam2_model.num_maskmem

    @property
    def pointer_frames(self) -> int:
        return self.sam2_model.max_obj_ptrs_in_encoder

    @property
    def blanks_absent(self) -> bool:
        """By SAM 2's own decoder beside a fine-tuned one alone; a decoder tuned for [SEG] never learned to tell."""
        return self.tracking_decoder is not None

    def read(self, kept: Kept, index: int, features: ImageFeatures, objects: int, num_frames: int) -> Tensor:
        sam, low = self.sam2_model, features.levels[-1]
        position = sam.image_encoder.neck.position_encoding(low).to(low.dtype)
        return sam._prepare_memory_conditioned_features(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=[to_sequence(low, objects)],
            current_vision_pos_embeds=[to_sequence(position, objects)],
            feat_sizes=[low.shape[-2:]],
            output_dict=kept,
            num_frames=num_frames,
        )

    def given(self, features: ImageFeatures, masks: Tensor) -> GivenMasks:
        sam, size = self.sam2_model, (self.mask_size,) * 2
        binary = self._binary(masks.unsqueeze(1))
        image = features.levels[-1].expand(len(masks), -1, -1, -1)
        prediction = self.prompt(features, masks=sam.mask_downsample(binary), image=image)
        # The decoder may already say that there is nothing; then, and where the given mask is empty, the pointer is
        # that of no object.
        seen, present = prediction.object_scores > 0, binary.flatten(1).any(1, keepdim=True)
        pointers = torch.where(present, self.pointers(prediction, seen), sam.no_obj_ptr)
        exact = binary * MASK_SCALE + MASK_BIAS
        small = resize(exact, size, antialias=True).squeeze(1)
        return GivenMasks(small, small, exact.squeeze(1), pointers, present)

    def _binary(self, masks: Tensor) -> Tensor:
        """(objects, 1, H, W) logits or bool -> 0 and 1 at SAM 2's input size."""
        size = (self.image_size,) * 2
        if masks.dtype != torch.bool:
            return (resize(masks, size) > 0).float()
        masks = masks.float()
        return masks if masks.shape[-2:] == size else (resize(masks, size, antialias=True) >= 0.5).float()

    def pointers(self, prediction: MaskPrediction, present: Tensor) -> Tensor:
        sam = self.sam2_model
        return torch.where(present, sam.obj_ptr_proj(prediction.tokens), sam.no_obj_ptr)

    def remember(
        self, features: ImageFeatures, masks: Tensor, present: Tensor, prompted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        low, size = features.levels[-1], (self.image_size,) * 2
        return self.sam2_model._encode_new_memory(
            current_vision_feats=[to_sequence(low, len(masks))],
            feat_sizes=[low.shape[-2:]],
            pred_masks_high_res=resize(masks.unsqueeze(1), size),
            object_score_logits=present.float() * 2 - 1,
            is_mask_from_pts=prompted,
        )
