"""The memory of SAM 3's tracker as a grounding encoder's: what is stored of a frame, and what a later frame reads.

After the original tracker where transformers' differs: a mask is activated at the input's size and resized to the
memory's after that, and of prompted frames that are not looked at, pointers are read like those of other frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .grounding_protocol import (
    FOLLOWED,
    MASK_BIAS,
    MASK_SCALE,
    PROMPTED,
    GivenMasks,
    ImageFeatures,
    Kept,
    MaskPrediction,
    resize,
    to_sequence,
)

MASK_STRIDE = 16  # of the memory encoder's own downsampling


class Sam3Memory:
    """The memory's part of a grounding encoder that has a `Sam3TrackerVideoModel` as `sam3_model` and a `config`."""

    @property
    def memory_frames(self) -> int:
        return self.config.num_maskmem

    @property
    def pointer_frames(self) -> int:
        return self.config.max_obj_ptrs

    @property
    def blanks_absent(self) -> bool:
        return self.config.blank_absent or self.tracking_decoder is not None

    @property
    def memory_mask_size(self) -> int:
        """Side of the masks that the memory encoder takes: 1152 for an input of 1008."""
        return MASK_STRIDE * (self.config.image_size // self.config.patch_size)

    # ---------------------------------------------------------------- what is stored
    def given(self, features: ImageFeatures, masks: Tensor) -> GivenMasks:
        """As in the protocol. Masks that are given as bool are resized and not thresholded after that."""
        sam, size = self.sam3_model, (self.mask_size,) * 2
        large = self._large(masks.unsqueeze(1))
        image = features.levels[-1].expand(len(masks), -1, -1, -1)
        prediction = self.prompt(features, masks=sam.mask_downsample(large), image=image)
        seen, present = prediction.object_scores > 0, large.flatten(1).any(1, keepdim=True)
        pointers = torch.where(present, self.pointers(prediction, seen), sam.no_object_pointer)
        logits = large * MASK_SCALE + MASK_BIAS
        exact = logits.squeeze(1)
        return GivenMasks(resize(logits, size, antialias=True).squeeze(1), exact, exact, pointers, present)

    def _large(self, masks: Tensor) -> Tensor:
        """(objects, 1, H, W) logits or bool -> 0 to 1 at the size that the memory encoder takes."""
        if masks.dtype != torch.bool:
            masks = resize(masks, (self.image_size,) * 2) > 0
        return _resized(masks.float(), self.memory_mask_size)

    def pointers(self, prediction: MaskPrediction, present: Tensor) -> Tensor:
        sam = self.sam3_model
        return torch.where(present, sam.object_pointer_proj(prediction.tokens), sam.no_object_pointer)

    def remember(
        self, features: ImageFeatures, masks: Tensor, present: Tensor, prompted: bool
    ) -> tuple[Tensor, Tensor]:
        """As in the protocol: outside training, masks of prompted frames are made binary. Returns (H * W, objects, 64)
        and the positions (H * W, objects, 64)."""
        sam, side = self.sam3_model, self.memory_mask_size
        masks = masks.unsqueeze(1)
        if masks.shape[-1] != side:
            masks = resize(masks, (self.image_size,) * 2)
        binary = prompted and not self.training
        shares = (masks > 0).float() if binary else masks.sigmoid()
        grid = features.levels[-1].expand(len(masks), -1, -1, -1)
        memory, _ = sam.memory_encoder(grid, _resized(shares * MASK_SCALE + MASK_BIAS, side))
        # In float32 first: half precision cannot count the rows of a grid.
        position = sam.memory_encoder.position_encoding(memory.shape, memory.device, torch.float32).to(memory.dtype)
        absent = (~present).to(memory.dtype).view(-1, 1, 1, 1)
        memory = memory + absent * sam.occlusion_spatial_embedding_parameter.to(memory.dtype).view(1, -1, 1, 1)
        return to_sequence(memory, len(masks)), to_sequence(position, len(masks))

    # ---------------------------------------------------------------- what is read
    def read(self, kept: Kept, index: int, features: ImageFeatures, objects: int, num_frames: int) -> Tensor:
        sam, low = self.sam3_model, features.levels[-1]
        temporal, looked_at = sam.memory_temporal_positional_encoding, list(self._memories(kept, index))
        memories = [entry["maskmem_features"].to(temporal.dtype) for _, entry in looked_at]
        positions = [entry["maskmem_pos_enc"] + temporal[row] for row, entry in looked_at]
        count = 0
        if pointers := dict(self._pointers(kept, index, num_frames)):
            furthest = min(num_frames, self.pointer_frames)
            tokens, token_positions = sam._process_object_pointers(
                list(pointers), list(pointers.values()), furthest, objects, low.shape[1], low.device
            )
            memories, positions, count = [*memories, tokens], [*positions, token_positions], len(tokens)
        grid = sam.vision_encoder.neck.position_encoding(low.shape, low.device, torch.float32).to(low.dtype)
        read = sam.memory_attention(
            current_vision_features=to_sequence(low, objects),
            current_vision_position_embeddings=to_sequence(grid, objects),
            memory=torch.cat(memories),
            memory_posision_embeddings=torch.cat(positions),  # spelt so in transformers
            num_object_pointer_tokens=count,
        )
        return read[0].transpose(1, 2).reshape(objects, *low.shape[1:])

    def _memories(self, kept: Kept, index: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The frames whose maps frame `index` looks at, each with its row of the temporal encoding."""
        selected, others = self._selected(kept, index)
        for frame in selected:
            yield -1, kept[PROMPTED][frame]
        for distance in range(self.memory_frames - 1, 0, -1):
            entry = kept[FOLLOWED].get(index - distance, others.get(index - distance))
            if entry is not None:
                yield distance - 1, entry

    def _pointers(self, kept: Kept, index: int, num_frames: int) -> Iterator[tuple[int, Tensor]]:
        """The object pointers (objects, C) that frame `index` looks at, each with the frame's distance; in training
        those of later prompted frames as well."""
        selected, others = self._selected(kept, index)
        for frame in selected:
            if frame <= index or self.training:
                yield index - frame, kept[PROMPTED][frame]["obj_ptr"]
        for distance in range(1, min(num_frames, self.pointer_frames)):
            entry = kept[FOLLOWED].get(index - distance, others.get(index - distance))
            if entry is not None:
                yield distance, entry["obj_ptr"]

    def _selected(self, kept: Kept, index: int) -> tuple[list[int], dict[int, dict[str, Any]]]:
        """The prompted frames that frame `index` looks at as such: the nearest ones, with one on either side of it if
        there is one. The others are read as if they had been followed."""
        prompted, limit = kept[PROMPTED], self.config.max_cond_frames_in_attn
        if limit == -1 or len(prompted) <= limit:
            return list(prompted), {}
        before = max((frame for frame in prompted if frame < index), default=None)
        after = min((frame for frame in prompted if frame >= index), default=None)
        chosen = [frame for frame in (before, after) if frame is not None]
        near = sorted((frame for frame in prompted if frame not in chosen), key=lambda frame: abs(frame - index))
        chosen += near[: limit - len(chosen)]
        return chosen, {frame: entry for frame, entry in prompted.items() if frame not in chosen}


def _resized(masks: Tensor, side: int) -> Tensor:
    """(N, 1, H, W) at a size of the memory's, antialiased where it is another one."""
    return masks if masks.shape[-2:] == (side, side) else resize(masks, (side, side), antialias=True)
