"""Clients' bytes -> images and videos. What they would allocate is known, and limited, before a pixel is decoded."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sa2va_hf.masks import decode
from sa2va_hf.serving.limits import Limits, Refused

IMAGES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}  # by their first bytes; the rest: form_of
IMAGE_FORMS, VIDEO_FORMS = ("PNG", "JPEG", "WEBP"), ("mp4", "matroska", "avi", "gif")
SCANS = 100  # of a progressive JPEG; encoders write about ten, and a decoder walks over all pixels for each
RATE, MAX_RATE = Fraction(10), 240  # frames per second: of a container without a usable one, and of one that is
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: the values that exchange width and height


@dataclass(frozen=True)
class EncodedImage:
    """An image that has not been decoded. size: (width, height), upright; turned: its file is not upright."""

    data: bytes
    form: str
    size: tuple[int, int]
    turned: bool = False
    frames: int = 1

    def open(self) -> Image.Image:
        """Upright RGB. `Refused` (422) when the pixels are damaged."""
        try:
            with Image.open(io.BytesIO(self.data), formats=[self.form]) as opened:
                return (ImageOps.exif_transpose(opened) if self.turned else opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Refused(422, "unreadable_media", f"the image ({self.form}) cannot be decoded: {error}") from error


class VideoFrames(Sequence[Image.Image]):
    """The frames of a video that stays compressed in memory; decoded forward, an earlier frame starts it over."""

    def __init__(self, data: bytes, form: str, limits: Limits) -> None:
        self._data, self._form, self._max_pixels = data, form, limits.max_pixels
        self.rate = RATE
        self._count = self._count_packets(limits)
        self._frames, self._next = self._decode(), 0
        self.size = self[0].size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Image.Image:
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        if index < self._next:
            self._frames, self._next = self._decode(), 0
        for frame in self._frames:
            self._next += 1
            if self._next > index:
                image = frame.to_image()
                return image.rotate(frame.rotation, expand=True) if frame.rotation else image
        raise _unreadable(f"frame {index} of {self._count} cannot be decoded")

    def again(self) -> VideoFrames:
        """The same frames with a decoder of their own, for another thread."""
        other = copy.copy(self)
        other._frames, other._next = other._decode(), 0
        return other

    def _container(self) -> Any:
        import av

        # The format is given, not guessed: a playlist that calls itself a video would make FFmpeg open its entries.
        return av.open(io.BytesIO(self._data), format=self._form)

    def _count_packets(self, limits: Limits) -> int:
        import av

        try:
            with self._container() as container:
                if not container.streams.video:
                    raise _unreadable("it has no video stream")
                stream = container.streams.video[0]
                limits.check_pixels(stream.codec_context.width, stream.codec_context.height, "a frame of the video")
                if stream.average_rate and stream.average_rate <= MAX_RATE:
                    self.rate = stream.average_rate
                count = 0
                for packet in container.demux(stream):
                    count += packet.size > 0
                    limits.check_frames(count)
        except av.error.FFmpegError as error:
            raise _unreadable(str(error)) from error
        if not count:
            raise _unreadable("it has no frames")
        return count

    def _decode(self) -> Iterator[Any]:
        import av

        try:
            with self._container() as container:
                stream = container.streams.video[0]
                stream.codec_context.options = {"max_pixels": str(self._max_pixels)}  # headers of a container may lie
                yield from container.decode(stream)
        except av.error.FFmpegError as error:
            raise _unreadable(str(error)) from error


@dataclass(frozen=True)
class Video:
    """A clip that has been counted. size: (width, height), upright."""

    clip: VideoFrames

    @property
    def size(self) -> tuple[int, int]:
        return self.clip.size

    @property
    def frames(self) -> int:
        return len(self.clip)

    @property
    def rate(self) -> Fraction:
        """Frames per second."""
        return self.clip.rate

    def open(self) -> VideoFrames:
        return self.clip.again()


Visual = EncodedImage | Video


@dataclass(frozen=True)
class Region:
    """A region prompt: a COCO RLE of the image's size, or a box (x0, y0, x1, y1) in pixels."""

    rle: dict[str, Any] | None = None
    box: tuple[float, float, float, float] | None = None

    def check(self, size: tuple[int, int]) -> None:
        """`Refused` when it is not a region of an image of `size` (width, height)."""
        expected = [size[1], size[0]]
        if self.rle is not None and self.rle.get("size") != expected:
            got = repr(self.rle.get("size"))[:60]
            raise _bad_region(f".rle.size: expected the image's [height, width] {expected}, got {got}")
        if not self.mask(size).any():
            where = f".box: {list(self.box)}" if self.box else ".rle"
            raise _bad_region(f"{where} covers no pixel of the image of {size[0]} x {size[1]}")

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """bool (H, W)."""
        if self.rle is not None:
            try:
                return decode(self.rle)
            except ValueError as error:
                raise _bad_region(f".rle: {error}") from error
        x0, y0, x1, y1 = self._corners(size)
        mask = np.zeros((size[1], size[0]), dtype=bool)
        mask[y0:y1, x0:x1] = True
        return mask

    def _corners(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        width, height = size
        x0, y0, x1, y1 = self.box
        clip = (max(0, min(x0, width)), max(0, min(y0, height)), max(0, min(x1, width)), max(0, min(y1, height)))
        return tuple(round(value) for value in clip)


def read_image(data: bytes, limits: Limits) -> EncodedImage:
    """Bytes of a PNG, JPEG or WebP -> an image whose header is within the limits; nothing is decoded.

    Raises:
        Refused: 413 too many bytes or pixels; 415 another format, or an animation; 422 a damaged header.
    """
    limits.check_bytes(len(data), "the image")
    form = form_of(data)
    if form not in IMAGE_FORMS:
        raise Refused(415, "unsupported_media", "image_url: expected the bytes of a PNG, JPEG or WebP image")
    if form == "WEBP":
        limits.check_pixels(*_webp_size(data), "the image")  # Pillow makes room for a WebP when it opens it
    if form == "JPEG" and data.count(b"\xff\xda") > SCANS:
        raise Refused(413, "too_large", f"image_url: a JPEG of more than {SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=[form]) as opened:
            limits.check_pixels(*opened.size, "the image")
            if getattr(opened, "is_animated", False) and form != "JPEG":
                raise Refused(415, "unsupported_media", "image_url: an animation; send a video as video_url")
            # Pillow decodes a PNG to look for EXIF data behind its pixels; only what comes before them counts here.
            exif = opened.getexif() if form != "PNG" or "exif" in opened.info else {}
            orientation = exif.get(ORIENTATION, 1)
            size = opened.size[::-1] if orientation in TURNED else opened.size
    except Image.DecompressionBombError as error:
        raise Refused(413, "too_large", f"image_url: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(422, "unreadable_media", f"the image ({form}) cannot be read: {error}") from error
    return EncodedImage(data, form, size, orientation != 1)


def read_video(data: bytes, limits: Limits) -> Video:
    """Bytes of an MP4, WebM, AVI or GIF -> a video whose frames are counted and whose size is within the limits.

    Raises:
        Refused: 413 too many bytes, frames or pixels; 415 another format; 422 it cannot be decoded.
    """
    limits.check_bytes(len(data), "the video")
    form = form_of(data)
    if form not in VIDEO_FORMS:
        raise Refused(415, "unsupported_media", "video_url: expected the bytes of an MP4, WebM, AVI or GIF")
    video = Video(VideoFrames(data, form, limits))
    limits.check_pixels(*video.size, "a frame of the video")
    return video


def form_of(data: bytes) -> str | None:
    """What the first bytes say; not what the client says."""
    for start, form in IMAGES.items():
        if data.startswith(start):
            return form
    if data[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "avi"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "mp4"
    return {b"\x1a\x45\xdf\xa3": "matroska", b"GIF8": "gif"}.get(data[:4])


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the first chunk of a WebP (RFC 9649); (0, 0) of what is none."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _bad_region(problem: str) -> Refused:
    return Refused(422, "invalid_region", f"region{problem}")


def _unreadable(reason: str) -> Refused:
    return Refused(422, "unreadable_media", f"the video cannot be decoded: {reason}")
