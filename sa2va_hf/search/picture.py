"""A picture of any size on disk, of which only crops at the model's size are in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_hf.model.visuals import open_image
from sa2va_hf.search.patches import Crop

ROWS = 64  # of a reduced picture that are made at a time
SPARE = 2  # a crop is first reduced by whole pixels to at least this many times its final size, then resampled


class LargePicture:
    """Reads crops of a picture.

    The picture is decoded once, which takes three bytes per pixel for that moment, and then lies in a temporary file
    that is read through a memory map. A crop is reduced a few rows at a time.

    Args:
        source: a path or a picture. ValueError when it cannot be read.
    """

    def __init__(self, source: Image.Image | str | Path) -> None:
        image = open_image(source)
        self.size = image.size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the picture is
        for top in range(0, image.height, ROWS):
            rows = image.crop((0, top, image.width, min(top + ROWS, image.height)))
            self._file.write(rows.tobytes())
        self._file.flush()
        self._pixels = np.memmap(self._file, np.uint8, "r", shape=(image.height, image.width, 3))

    def read(self, crop: Crop, side: int) -> Image.Image:
        """A crop, its longer side at most `side` pixels."""
        longer = max(crop.width, crop.height)
        factor = max(longer // (SPARE * side), 1)
        found = self._reduced(crop, factor)
        if longer <= side:
            return found
        size = (max(round(crop.width * side / longer), 1), max(round(crop.height * side / longer), 1))
        return found.resize(size, Image.Resampling.BICUBIC)

    def _reduced(self, crop: Crop, factor: int) -> Image.Image:
        """A crop with `factor` x `factor` pixels averaged into one."""
        pixels = self._pixels[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
        if factor == 1:
            return Image.fromarray(np.array(pixels))
        bands = [
            np.asarray(Image.fromarray(np.array(pixels[top : top + ROWS * factor])).reduce(factor))
            for top in range(0, crop.height, ROWS * factor)
        ]
        return Image.fromarray(np.concatenate(bands))
