"""Arrow rows as videos whose objects are to be followed: for scoring, at their own size and from their first frame."""

from collections.abc import Sequence
from functools import cached_property

import datasets
import numpy as np
import torch
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.clip_dataset import open_frames
from sa2va_hf.data.rows import Row


def to_square(picture: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> torch.Tensor:
    """A picture as SAM 2 takes it: uint8 (3, size, size)."""
    return torch.from_numpy(np.asarray(picture.resize((size, size), resample)).copy()).permute(2, 0, 1)


class VosClip:
    """The annotated frames of a row, counted from 0, and the objects that have masks on some of them."""

    def __init__(self, row: Row, limit: int | None = None) -> None:
        self.row, self.name = row, row["id"]
        self.numbers = row.annotated()[:limit]
        visible = row.visible()[:, : len(self.numbers)]
        self.firsts = {thing: int(np.argmax(seen)) for thing, seen in enumerate(visible) if seen.any()}

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def known(self) -> np.ndarray:
        """Which object was annotated where: bool (objects, frames)."""
        return self.row.known()

    def frame(self, position: int, size: int) -> torch.Tensor:
        """uint8 (3, size, size)."""
        (picture,) = open_frames(self.row, [int(self.numbers[position])])
        return to_square(picture, size)

    def mask(self, thing: int, position: int) -> np.ndarray:
        """bool (H, W)."""
        return masks.decode(self.row.mask(thing, position))


class VosClips(Sequence[VosClip]):
    """The videos of prepared datasets, one after the other; pictures are no videos. limit: frames of a video that
    count, its first ones."""

    def __init__(self, parts: Sequence[datasets.Dataset], limit: int | None = None) -> None:
        self.parts, self.limit = [part.with_format("arrow") for part in parts], limit
        found = [np.flatnonzero(part["is_video"].to_numpy()) for part in self.parts]
        self.places = [(part, int(number)) for part, numbers in enumerate(found) for number in numbers]
        if not self.places:
            raise ValueError(f"there is no video among the {sum(map(len, self.parts))} rows that are to be followed")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> VosClip:
        part, number = self.places[index]
        return VosClip(Row(self.parts[part], number), self.limit)
