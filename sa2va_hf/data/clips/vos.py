"""Arrow rows as videos whose objects are tracked from their first mask, at their own size: SAM 2 is scored on them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from sa2va_hf import mask_pictures, masks
from sa2va_hf.data.clips.dataset import open_frames
from sa2va_hf.data.dataset.rows import Row, Rows
from sa2va_hf.data.listing import subfolders
from sa2va_hf.data.sources.clips import numbered_frames

VOID = 255  # beside other values: no object


def to_square(picture: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> torch.Tensor:
    """A picture as SAM 2 takes it: uint8 (3, size, size)."""
    return torch.from_numpy(np.asarray(picture.resize((size, size), resample)).copy()).permute(2, 0, 1)


class VosClip:
    """The annotated frames of a row, counted from 0, and the objects that have masks on some of them."""

    def __init__(self, row: Row, limit: int | None = None) -> None:
        self.row, self.name = row, row["id"]
        self.numbers = row.annotated()[:limit]
        visible = row.visible()[:, : len(self.numbers)]
        self.firsts = {instance: int(np.argmax(seen)) for instance, seen in enumerate(visible) if seen.any()}

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

    def mask(self, instance: int, position: int) -> np.ndarray:
        """bool (H, W)."""
        return masks.decode(self.row.mask(instance, position))


class VosClips(Sequence[VosClip]):
    """The videos of prepared datasets, one after the other; images are skipped. limit: of a video only its first
    annotated frames are used, at most so many."""

    def __init__(self, prepared: Sequence[datasets.Dataset], limit: int | None = None) -> None:
        self.rows, self.limit = [Rows(dataset) for dataset in prepared], limit
        found = [np.flatnonzero(rows.dataset["is_video"].to_numpy()) for rows in self.rows]
        self.videos = [(dataset, int(row)) for dataset, rows in enumerate(found) for row in rows]
        if not self.videos:
            raise ValueError(f"expected at least one video to track, got {sum(map(len, self.rows))} rows without any")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VosClip:
        dataset, row = self.videos[index]
        return VosClip(self.rows[dataset][row], self.limit)


class MaskFolder(Mapping[int, dict[int, np.ndarray]]):
    """Mask pictures of a video, as FRAME.png with an index per object (DAVIS) or OBJECT/FRAME.png (SA-V):
    {frame number: {object: bool (H, W)}}, read when asked for. An object that a file of its own shows nowhere is there
    with an empty mask. ValueError naming the file or folder that cannot be read as such."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        layers = subfolders(folder)
        for layer in layers:
            if not layer.name.isdigit():
                raise ValueError(f"{layer}: a folder of one object's masks must have its number as name")
        self.per_object = bool(layers)
        files = {int(layer.name): numbered_frames(layer, (".png",)) for layer in layers}
        self._files = files or {0: numbered_frames(folder, (".png",))}
        self._numbers = sorted({number for of_layer in self._files.values() for number in of_layer})

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __contains__(self, number: object) -> bool:
        return any(number in files for files in self._files.values())

    def __getitem__(self, number: int) -> dict[int, np.ndarray]:
        read = mask_pictures.read_mask if self.per_object else mask_pictures.read_objects
        pictures = {layer: read(files[number]) for layer, files in self._files.items() if number in files}
        if not pictures:
            raise KeyError(number)
        if self.per_object:
            return pictures
        values = [int(value) for value in np.unique(pictures[0]) if value]
        instances = values if values == [VOID] else [value for value in values if value != VOID]
        return {value: pictures[0] == value for value in instances}

    def size(self, number: int) -> tuple[int, int]:
        """(H, W) of the pictures of a frame."""
        path = next(files[number] for files in self._files.values() if number in files)
        with Image.open(path) as picture:
            return picture.height, picture.width

    def palette(self) -> list[int] | None:
        """That of the first picture, where an index is an object."""
        if self.per_object:
            return None
        with Image.open(next(iter(self._files[0].values()))) as picture:
            return picture.getpalette()
