"""What a model returns -> text and masks, under the names, arguments and forms of transformers' own processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KEPT = ("[SEG]", "<p>", "</p>")  # special tokens that belong to an answer


class PostProcessingMixin:
    """Post-processing of a processor that has `tokenizer` and `grounding_image_size`."""

    def post_process_masks(
        self,
        masks: Sequence[Tensor | np.ndarray],
        original_sizes: Sequence[tuple[int, int]] | Tensor,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        apply_non_overlapping_constraints: bool = False,
    ) -> list[Tensor]:
        """Mask logits at the size of the input, as `Sam2Processor.post_process_masks`.

        Args:
            masks: per sample (num_seg, num_frames, h, w), as `out.pred_masks`.
            original_sizes: per sample (height, width).
            binarize: bool masks, logits above `mask_threshold`; False: the logits.
            apply_non_overlapping_constraints: a pixel belongs to the likeliest object only.

        Returns per sample a tensor (num_seg, num_frames, H, W).

        Raises:
            ValueError: as many sizes as samples are needed.
        """
        sizes = [tuple(int(side) for side in size) for size in original_sizes]
        if len(sizes) != len(masks):
            raise ValueError(
                f"original_sizes: expected one (height, width) per sample, {len(masks)}, got {len(sizes)}"
            )
        resized = [self._enlarged(torch.as_tensor(m).float(), size) for m, size in zip(masks, sizes, strict=True)]
        if apply_non_overlapping_constraints:
            resized = [_exclusive(logits) for logits in resized]
        return [logits > mask_threshold for logits in resized] if binarize else resized

    def _enlarged(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(O, F, h, w) -> (O, F, H, W), by way of SAM 2's input size, as the released model."""
        if not logits.numel():
            return logits.new_zeros(*logits.shape[:2], *size)
        for sides in ((self.grounding_image_size,) * 2, size):
            logits = F.interpolate(logits, size=sides, mode="bilinear", align_corners=False)
        return logits

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """Objects of pictures, as `Mask2FormerImageProcessor.post_process_instance_segmentation`.

        Args:
            outputs: what `model(...)` returns, with `pred_masks` and `pred_scores`, for pictures of one frame.
            threshold: least score of an object, the IoU that SAM 2 expects of its mask.
            mask_threshold: least probability of a pixel.
            overlap_mask_area_threshold: accepted and not used: every [SEG] is one object.
            target_sizes: per sample (height, width); None: the size of the logits.
            return_coco_annotation: segmentation as a list of column-major run lengths per object.
            return_binary_maps: segmentation as (objects, H, W), in which objects may overlap.

        Returns per sample {"segmentation", "segments_info"}: int (H, W) with the id of an object (-1: none, later
        objects lie above earlier ones), and {"id", "label_id", "was_fused", "score"} of each. label_id is the index of
        its [SEG] in the text.

        Raises:
            ValueError: several frames per sample, both forms at once, or other than one size per sample.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("give one of return_coco_annotation and return_binary_maps")
        clips = [tuple(masks.shape[:2]) for masks in outputs.pred_masks if len(masks) and masks.shape[1] != 1]
        if clips:
            raise ValueError(f"outputs: expected pictures of one frame, got (objects, frames) {clips[:3]}")
        sizes = [masks.shape[-2:] for masks in outputs.pred_masks] if target_sizes is None else target_sizes
        logit = float(torch.logit(torch.tensor(mask_threshold, dtype=torch.float64)))
        masks = self.post_process_masks(outputs.pred_masks, sizes, logit)
        results = []
        for found, scores in zip(masks, outputs.pred_scores, strict=True):
            size = found.shape[-2:]
            found, scores = found.flatten(0, 1).view(-1, *size), scores.flatten().tolist()
            kept = [i for i, score in enumerate(scores) if score >= threshold and found[i].any()]
            info = [
                {"id": row, "label_id": i, "was_fused": False, "score": round(scores[i], 6)}
                for row, i in enumerate(kept)
            ]
            if return_binary_maps:
                segmentation: Any = found[kept].float()
            else:
                segmentation = torch.full(size, -1, dtype=torch.int32, device=found.device)
                for row, i in enumerate(kept):
                    segmentation[found[i]] = row
            if return_coco_annotation:
                segmentation = [_run_lengths(found[i]) for i in kept]
            results.append({"segmentation": segmentation, "segments_info": info})
        return results

    def post_process_image_text_to_text(
        self, generated_outputs: Tensor | np.ndarray, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Token ids (B, L) or (L,) as text. skip_special_tokens: all but those that belong to an answer, [SEG], <p>
        and </p>; further arguments go to the tokenizer's `decode`."""
        rows = torch.as_tensor(generated_outputs)
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        dropped: set[int] = set()
        if skip_special_tokens:
            dropped = set(self.tokenizer.all_special_ids) - set(self.tokenizer.convert_tokens_to_ids(list(KEPT)))
            dropped |= set(self.tokenizer.convert_tokens_to_ids(self._added_control_tokens))
        return [
            self.tokenizer.decode([i for i in row if i not in dropped], skip_special_tokens=False, **kwargs)
            for row in rows.tolist()
        ]


def _exclusive(logits: Tensor) -> Tensor:
    """(O, F, H, W): far below any threshold where another object is likelier."""
    if len(logits) < 2:
        return logits
    return torch.where(pixel_owner(logits), logits, logits.clamp(max=-10.0))


def pixel_owner(logits: Tensor) -> Tensor:
    """Logits (objects, ...) -> bool of the same shape: True where the object is the likeliest of all at its pixel."""
    index = torch.arange(len(logits), device=logits.device).view(-1, *[1] * (logits.ndim - 1))
    return index == logits.argmax(0)


def object_masks(logits: Tensor, size: tuple[int, int], threshold: float = 0.0, overlap: bool = False) -> Tensor:
    """The masks of one frame at its size: logits (objects, h, w) -> bool (objects, H, W).

    Args:
        size: (H, W).
        overlap: whether a pixel may belong to several objects; otherwise it belongs to the likeliest one.
    """
    full = F.interpolate(logits.unsqueeze(0).float(), size=size, mode="bilinear", align_corners=False)[0]
    masks = full > threshold
    return masks if overlap else masks & pixel_owner(full)


def _run_lengths(mask: Tensor) -> list[int]:
    """COCO's uncompressed counts of a bool (H, W): column by column, zeros first."""
    flat = mask.T.flatten().int().cpu()
    edges = torch.nonzero(torch.diff(flat, prepend=flat.new_zeros(1))).flatten() if len(flat) else flat
    bounds = [0, *edges.tolist(), len(flat)]
    return [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
