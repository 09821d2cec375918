"""Objects followed through a clip by a SAM's memory (arXiv 2408.00714, section 4): which frames are remembered.

Attention to memories and their encoding are the grounding encoder's. `ClipMemory` keeps the prompted frames, and of
the others no more than the next frame can look back at, so the space needed does not depend on the clip's length.
`follow_objects` follows objects from given masks through a whole video. Both predict all objects at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from .grounding import Sa2VAGroundingEncoder
from .grounding_protocol import FOLLOWED, NO_OBJECT_LOGIT, PROMPTED, GroundingEncoder, ImageFeatures, MaskPrediction


class ClipMemory:
    """What is remembered of `objects` objects in a clip of `num_frames` frames.

    Args:
        dtype: what spatial memories are stored as; None = as computed. The released inference and SAM 2's own video
            predictor store bfloat16 even where they compute in float32.
        blank_absent: whether masks of objects that the encoder takes to be gone are blanked. Default: as the encoder
            says (`GroundingEncoder.blanks_absent`).

    Raises:
        ValueError: the encoder is in training mode.
    """

    def __init__(
        self,
        encoder: GroundingEncoder,
        objects: int,
        num_frames: int,
        dtype: torch.dtype | None = None,
        blank_absent: bool | None = None,
    ) -> None:
        if encoder.training:
            raise ValueError("the model is in training mode, where SAM's memory is random; call model.eval() first")
        self.encoder, self.objects, self.num_frames, self.dtype = encoder, objects, num_frames, dtype
        self.blank_absent = encoder.blanks_absent if blank_absent is None else blank_absent
        self.kept = encoder.begin()

    # ---------------------------------------------------------------- frames with a prompt
    def prompt_with_embeddings(self, index: int, features: ImageFeatures, prediction: MaskPrediction) -> None:
        """Remember frame `index`, whose masks came from [SEG] embeddings, as the released inference does."""
        present = prediction.object_scores > 0
        pointers = self.encoder.pointers(prediction, present)
        self._remember(index, features, prediction.masks, pointers, present, prompted=True)

    def prompt_with_masks(self, index: int, features: ImageFeatures, masks: Tensor) -> Tensor:
        """Remember frame `index` as if the user had given its masks: the tracker reads them as mask prompts, and the
        memory takes them as they are, binary.

        masks: logits (objects, h, w), or bool masks of any size; empty where an object is absent. Returns
        low-resolution logits (objects, h, w).
        """
        given = self.encoder.given(features, masks)
        self._remember(index, features, given.remembered, given.pointers, given.present, prompted=True)
        return given.masks

    # ---------------------------------------------------------------- frames without one
    def follow(self, index: int, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Find the objects on the next frame, without any prompt, and remember it.

        Returns mask logits (objects, h, w) and their `MaskPrediction.scores` (objects, 2).
        """
        prediction = self.predict(index, features)
        return self.keep(index, features, prediction), prediction.scores

    def predict(self, index: int, features: ImageFeatures) -> MaskPrediction:
        """The objects on the next frame, without any prompt; nothing is remembered yet."""
        image = self.encoder.read(self.kept, index, features, self.objects, self.num_frames)
        return self.encoder.prompt(features, image=image)

    def keep(self, index: int, features: ImageFeatures, prediction: MaskPrediction) -> Tensor:
        """Remember what `predict` found on frame `index`; returns its mask logits (objects, h, w), blanked where an
        object is absent and `blank_absent` asks for it."""
        present = prediction.object_scores > 0
        masks = prediction.masks
        if self.blank_absent:
            masks = masks.where(present.unsqueeze(-1), torch.full_like(masks, NO_OBJECT_LOGIT))
        pointers = self.encoder.pointers(prediction, present)
        self._remember(index, features, masks, pointers, present, prompted=False)
        return masks

    # ---------------------------------------------------------------- what is kept
    def _remember(
        self, index: int, features: ImageFeatures, masks: Tensor, pointers: Tensor, present: Tensor, prompted: bool
    ) -> None:
        """Keep frame `index`: mask logits (objects, h, w), object pointers (objects, C), and bool (objects, 1) whether
        each object is there. Frames without a prompt must come in order."""
        memory, position = self.encoder.remember(features, masks, present, prompted)
        memory = memory.to(self.dtype or memory.dtype)
        kept = self.kept[PROMPTED if prompted else FOLLOWED]
        kept[index] = {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointers}
        self._forget(index + 1)

    def _forget(self, upcoming: int) -> None:
        self.encoder.forget(self.kept, upcoming)


@torch.no_grad()
def follow_objects(
    encoder: GroundingEncoder | SAM2Base,
    open_frame: Callable[[int], Tensor],
    num_frames: int,
    prompts: Mapping[int, Mapping[int, Tensor]],
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Every frame from the first prompt on: (its index, {object: low-resolution mask logits (h, w)}).

    The steps are those of the video predictor of the `sam2` package, its bfloat16 memory included, by SAM's own
    decoder where there are two. Objects with prompts on the same frames are followed as one batch.

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


def _features(encoder: GroundingEncoder, frame: Tensor) -> ImageFeatures:
    return encoder.encode(encoder.normalize(frame.unsqueeze(0)))
