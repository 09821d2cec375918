"""Pictures and clips as upright RGB, opened when they are asked for: a clip may be longer than the memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """A path or a picture as RGB. A file is turned upright (EXIF); a picture keeps its pixels where they are, so that
    masks fit the picture that was given. 16-bit grey is scaled to 8 bits; transparency is dropped."""
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if not isinstance(image, str | Path):
        raise ValueError(f"image: expected a PIL picture or a path, got {type(image).__name__}")
    try:
        with Image.open(image) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image}: cannot be read as a picture ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"image: integer pixels {values.min()} to {values.max()}; expected 16 bits, 0 to 65535")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("image: float pixels have no defined range; give 8 or 16 bits per channel")
    return image if image.mode == "RGB" else image.convert("RGB")


class Clip(Sequence[Image.Image]):
    """The frames of a clip as upright RGB, read one at a time and not kept; a picture is a clip of one frame.

    Args:
        source: a list of pictures or paths, a folder of frames (taken in the order of the numbers in their names), or
            a video file. A video file is decoded forward; to ask for an earlier frame starts it over.
    """

    def __init__(self, source: Any) -> None:
        if isinstance(source, str | Path) and Path(source).is_dir():
            files = (file for file in Path(source).iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
            self._frames: Sequence[Any] = sorted(files, key=_number_order)
            name = f"{source}: expected frames ({', '.join(FRAME_SUFFIXES)}) in this folder"
        elif isinstance(source, str | Path):
            self._frames = _VideoFile(Path(source))
            name = f"{source}: expected a video"
        elif isinstance(source, Sequence):
            self._frames = source
            name = "video: expected at least one frame"
        else:
            raise ValueError(f"video: expected a list of frames, a folder or a file, got {type(source).__name__}")
        if not len(self._frames):
            raise ValueError(f"{name}, found none")
        self.size = self[0].size  # (width, height), of every frame

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: int) -> Image.Image:
        frame = open_image(self._frames[number])
        if number and frame.size != self.size:
            raise ValueError(f"video: expected frames of one size; frame {number} is {frame.size}, 0 is {self.size}")
        return frame


def _number_order(file: Path) -> list[str | int]:
    """frame2 before frame10: digits compare as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


class _VideoFile(Sequence[Image.Image]):
    """Frames of a video file by PyAV, upright (the container's rotation applied)."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"{path}: no such video file or folder of frames")
        self.path = path
        self._count = sum(1 for _ in self._decode())  # headers are often wrong about it
        self._frames, self._next = self._decode(), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < self._count:
            raise IndexError(f"{self.path}: frame {number} of {self._count}")
        if number < self._next:
            self._frames, self._next = self._decode(), 0
        while True:
            frame = next(self._frames)
            self._next += 1
            if self._next > number:
                image = frame.to_image()
                return image.rotate(frame.rotation, expand=True) if frame.rotation else image

    def _decode(self) -> Iterator[Any]:
        import av  # only for video files: frames and pictures need no decoder

        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path}: has no video stream")
                container.streams.video[0].thread_type = "AUTO"
                yield from container.decode(video=0)
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be decoded as a video ({error})") from error
