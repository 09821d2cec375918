"""Pictures and clips as upright RGB, opened when they are asked for: a clip may be longer than the memory."""

from __future__ import annotations

import re
import warnings
from base64 import b64decode
from collections.abc import Iterator, Sequence
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

TIMEOUT, MAX_DOWNLOAD = 30, 64 * 2**20  # of a picture from a URL: seconds, bytes
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def open_image(image: Image.Image | str | Path | bytes) -> Image.Image:
    """A picture, or the path or content of a file, as RGB.

    A file is turned upright (EXIF); a picture keeps its pixels where they are, so that masks fit the picture that was
    given. Grey of more than 8 bits is scaled by its own range; transparency is dropped.

    Raises:
        ValueError: a file that cannot be read, or pixels without a defined range.
    """
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except ValueError as error:
            raise ValueError(f"image: {error}") from error
    if not isinstance(image, str | Path | bytes):
        raise ValueError(f"image: expected a PIL picture or a path, got {type(image).__name__}")
    is_content = isinstance(image, bytes)
    try:
        with Image.open(BytesIO(image) if is_content else image) as opened:
            return to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = f"image of {len(image)} bytes" if is_content else image
        raise ValueError(f"{name}: cannot be read as a picture ({error})") from error


def fetch_image(source: Any) -> Image.Image:
    """As `open_image`, and a URL (http, https), a data URI or the base64 of a file as well.

    Raises:
        ValueError: a source that cannot be fetched or decoded; a file of more than `MAX_DOWNLOAD` bytes.
    """
    if not isinstance(source, str):
        return open_image(source)
    if source.startswith(("http://", "https://")):
        try:
            with urlopen(source, timeout=TIMEOUT) as response:
                content = response.read(MAX_DOWNLOAD + 1)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: cannot be fetched ({error})") from error
        if len(content) > MAX_DOWNLOAD:
            raise ValueError(f"{source}: expected at most {MAX_DOWNLOAD} bytes")
        return open_image(content)
    if source.startswith("data:"):
        return open_image(_from_base64(source.partition(",")[2]))
    return open_image(source.removeprefix("file://"))


def open_base64(text: str) -> Image.Image:
    """A picture from the base64 of its file, or from a data URI. Raises: ValueError if it is none."""
    return open_image(_from_base64(text.partition(",")[2] if text.startswith("data:") else text))


def _from_base64(text: str) -> bytes:
    try:
        return b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"image: {text[:40]!r}... is no base64 ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, without turning it; transparency is dropped.

    Grey of 16 bits is scaled to 0..255 by the number of bits that its values fill.

    Raises:
        ValueError: float pixels, or integer pixels outside 0..65535.
    """
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I" of older Pillow, whose own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"image: integer pixels from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535"
            )
        # A file of 16 bits says not how many the camera filled: the fewest of these that hold its values.
        white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
        image = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; save the image with 8 or 16 bits per channel")
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)  # dropped on purpose
        return image.convert("RGB")


class Clip(Sequence[Image.Image]):
    """The frames of a clip as upright RGB, read one at a time and not kept; a picture is a clip of one frame.

    Args:
        source: a list of pictures or paths, a folder of frames (taken in the order of the numbers in their names), or
            a video file. A video file is decoded forward; to ask for an earlier frame starts it over.
    """

    def __init__(self, source: Any) -> None:
        if isinstance(source, str | Path) and Path(source).is_dir():
            self._frames: Sequence[Any] = frame_files(Path(source))
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

    def reopened(self) -> Clip:
        """The same clip, a video file with a decoder of its own: two readers do not disturb each other."""
        again = copy(self)
        again._frames = copy(self._frames) if isinstance(self._frames, _VideoFile) else self._frames
        return again

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: int) -> Image.Image:
        frame = open_image(self._frames[number])
        if number and frame.size != self.size:
            raise ValueError(f"video: expected frames of one size; frame {number} is {frame.size}, 0 is {self.size}")
        return frame


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder in the order of the numbers in their names. Hidden files are skipped: `._0.png` is what
    macOS leaves beside 0.png on other file systems."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
    return sorted((file for file in files if not file.name.startswith(".")), key=_number_order)


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

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoder, which cannot be pickled; it starts over where it is needed."""
        return self.__dict__ | {"_frames": None, "_next": self._count + 1}

    def _decode(self) -> Iterator[Any]:
        try:
            import av  # only for video files: frames and pictures need no decoder
        except ImportError as error:
            raise ValueError(
                f"{self.path}: a video file needs PyAV; install av, or give a folder of frames"
            ) from error

        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path}: has no video stream")
                container.streams.video[0].thread_type = "AUTO"
                yield from container.decode(video=0)
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be decoded as a video ({error})") from error
