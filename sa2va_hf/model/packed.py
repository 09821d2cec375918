"""Masks of clips at one bit per pixel: 300 objects on 100 frames of 1080p take 62 GB as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class PackedMasks:
    """Bool masks (objects, frames, H, W), eight pixels of a row per byte.

    Args:
        bits: uint8 (objects, frames, H, ceil(W / 8)).
        width: W.
    """

    bits: np.ndarray
    width: int

    @classmethod
    def of(cls, masks: np.ndarray) -> PackedMasks:
        """Of bool masks (objects, frames, H, W)."""
        masks = np.asarray(masks, dtype=bool)
        return cls(np.packbits(masks, axis=-1), masks.shape[-1])

    @classmethod
    def empty(cls, objects: int, frames: int, height: int, width: int) -> PackedMasks:
        """Masks without any pixel."""
        return cls(np.zeros((objects, frames, height, -(-width // 8)), dtype=np.uint8), width)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(objects, frames, H, W)."""
        return (*self.bits.shape[:3], self.width)

    def unpack(self, objects: slice | int = slice(None), frames: slice | int = slice(None)) -> np.ndarray:
        """Bool masks of some objects and frames: (objects, frames, H, W), without the axes given as a number."""
        bits = self.bits[objects][..., frames, :, :] if isinstance(objects, int) else self.bits[objects, frames]
        if not self.width:
            return np.zeros((*bits.shape[:-1], 0), dtype=bool)
        return np.unpackbits(bits, axis=-1, count=self.width).astype(bool)

    def put(self, frames: slice, masks: np.ndarray) -> None:
        """Write bool masks (objects, n, H, W) of some frames."""
        self.bits[:, frames] = np.packbits(masks, axis=-1)
