"""Image and video files -> upright RGB pictures. Whatever cannot be read is a ValueError that names the file."""

import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from sa2va_hf.data.schema import Media, Sample
from sa2va_hf.model.visuals import to_rgb

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112  # EXIF tag
# what Pillow raises for damaged files; never ImageFile.LOAD_TRUNCATED_IMAGES: it fills the missing part with grey
_UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, IndexError, struct.error, zlib.error)


def load_image(source: Media | Path) -> Image.Image:
    """The picture of a file (a path, or its encoded bytes) as upright RGB.

    Upright: the EXIF orientation is applied. Every mode is accepted: grey, palette and 1-bit; 16-bit grey is scaled
    to 0..255 by the bits that are filled (Pillow's own conversion clips at 255); CMYK is converted. Transparency is
    dropped and the colour below it shows, as in the reference (Pillow's convert("RGB")). Of an animation the first
    picture is taken.

    Raises:
        ValueError: the file is missing, truncated, no picture, or of a mode without a defined range (float).
    """
    name = describe(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            orientation = image.getexif().get(ORIENTATION, 1)
            rgb = to_rgb(image)
            return ImageOps.exif_transpose(_tagged(rgb, orientation)) if orientation != 1 else rgb
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        check_no_pointer(source if isinstance(source, bytes) else Path(source).read_bytes()[: len(LFS)], name)
        raise ValueError(f"{name}: not a picture in a format that Pillow knows") from error
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot be read as a picture: {error}") from error


def load_frames(sample: Sample, numbers: Sequence[int]) -> list[Image.Image]:
    """The frames of a sample with these numbers, in this order, as upright RGB; others are not decoded.

    Raises:
        ValueError: no such frame, an unreadable file, or frames that are not width x height.
    """
    return _read_frames(sample, numbers, None)


def _read_frames(sample: Sample, numbers: Sequence[int], film: "VideoFrames | None") -> list[Image.Image]:
    """film: the sample's video, already open."""
    try:
        if film is not None:
            pictures = [film[number] for number in numbers]
        elif sample.video is not None:
            pictures = decode_video(sample.video, numbers)
        else:
            _counted(len(sample.frames), numbers)
            pictures = [load_image(sample.frames[number]) for number in numbers]
        for number, picture in zip(numbers, pictures, strict=True):
            if picture.size != (sample.width, sample.height):
                file = describe(sample.frames[number] if sample.video is None else sample.video)
                raise ValueError(
                    f"{file}: frame {number} is {picture.width} x {picture.height}, expected {sample.width} x "
                    f"{sample.height}; was the file changed after the data were prepared?"
                )
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from error
    return pictures


class Frames(Sequence[Image.Image]):
    """The frames of a sample as upright RGB, each read when it is asked for and not kept: a clip may be longer than
    the memory. Errors as `load_frames`; an IndexError beyond the last one."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._film = None if sample.video is None else VideoFrames(sample.video)

    def __len__(self) -> int:
        return self.sample.num_frames

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {self.sample.id!r}: frame {number} of {len(self)}")
        return _read_frames(self.sample, [number], self._film)[0]


class VideoFrames:
    """The frames of a video file by index, as upright RGB. The file is opened once: a frame that comes soon after the
    one before costs the frames between them, wherever in the file they are. Errors as `decode_video`."""

    def __init__(self, source: Media | Path) -> None:
        self.source = source
        self._read: Callable[[int], Image.Image] | None = None

    def __getitem__(self, number: int) -> Image.Image:
        if self._read is None:
            self._read = _with_decoder(self.source, _opened)
        try:
            return self._read(number)
        except _CannotDecode:  # this decoder opened the file and fails on this frame; the other one may not
            return decode_video(self.source, [number])[0]
        except ValueError as error:
            raise ValueError(f"{describe(self.source)}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoder, which cannot be pickled; it is opened again where it is needed."""
        return {"source": self.source, "_read": None}


def decode_video(source: Media | Path, numbers: Sequence[int]) -> list[Image.Image]:
    """Chosen frames of a video file as upright RGB pictures.

    By decord, which seeks; by PyAV, which decodes up to the last one, where decord is not installed or cannot read
    the file. Both give the same pixels.

    Raises:
        ValueError: unreadable, without frames, or shorter than the numbers ask for.
        ImportError: neither decoder is installed.
    """
    return _with_decoder(source, lambda decoder, stream: decoder(stream, numbers))


def video_shape(source: Media | Path) -> tuple[int, int, int]:
    """(number of frames, width, height) of a video file. Errors as `decode_video`."""

    def measure(decoder: Callable, stream: Any) -> tuple[int, int, int]:
        count, (first,) = decoder(stream, None), decoder(_rewound(stream), [0])
        return count, *first.size

    return _with_decoder(source, measure)


LFS = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(data: bytes, name: Path | str) -> None:
    """ValueError when the beginning of a file is that of a git-lfs pointer, which stands for the file."""
    if data[: len(LFS)] == LFS:
        raise ValueError(f"{name} is a git-lfs pointer, not the file itself: run `git lfs pull` where it comes from")


def describe(source: Media | Path) -> str:
    """How errors name a file: its path, or that it is embedded."""
    return f"embedded file of {len(source)} bytes" if isinstance(source, bytes) else str(source)


# ---------------------------------------------------------------- images


def _tagged(rgb: Image.Image, orientation: int) -> Image.Image:
    rgb.getexif()[ORIENTATION] = orientation  # convert() may have left it behind
    return rgb


# ---------------------------------------------------------------- videos


def _with_decoder(source: Media | Path, use: Callable[[Callable, Any], Any]) -> Any:
    """use(decoder, stream) with the first decoder that reads the file."""
    name = describe(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"{name}: no such video file")
    problems, installed = [], 0
    for decoder in (_decord, _pyav):
        try:
            return use(decoder, io.BytesIO(source) if isinstance(source, bytes) else str(source))
        except ModuleNotFoundError as error:
            problems.append(str(error))
        except ValueError as error:  # both agree about the file: nothing to try again
            raise ValueError(f"{name}: {error}") from error
        except _CannotDecode as error:
            installed += 1
            problems.append(str(error))
            logger.debug("%s: %s", name, error)
    if not installed:
        raise ImportError(f"{name}: reading video files needs decord or PyAV: pip install av ({'; '.join(problems)})")
    raise ValueError(f"{name}: cannot be read as a video: {'; '.join(problems)}")


class _CannotDecode(Exception):
    """This decoder does not read the file; another one may."""


def _decord(stream: Any, numbers: Sequence[int] | None) -> list[Image.Image] | int:
    import decord

    try:
        reader = decord.VideoReader(stream, num_threads=1)
        if len(reader) == 0:
            raise _CannotDecode("decord: it finds no frames")
        count = _counted(len(reader), numbers)
        if numbers is None:
            return count
        return [Image.fromarray(frame) for frame in reader.get_batch(list(numbers)).asnumpy()]
    except (decord.DECORDError, RuntimeError) as error:
        raise _CannotDecode(f"decord: {str(error).strip().splitlines()[-1]}") from error


def _pyav(stream: Any, numbers: Sequence[int] | None) -> list[Image.Image] | int:
    import av

    try:
        with av.open(stream) as container:
            if not container.streams.video:
                raise _CannotDecode("PyAV: it has no video stream")
            if numbers is None:
                return _counted(sum(packet.size > 0 for packet in container.demux(video=0)), None)
            wanted, pictures, count = set(numbers), {}, 0
            for count, frame in enumerate(container.decode(video=0), start=1):
                if count - 1 in wanted:
                    pictures[count - 1] = _upright(frame)
                if len(pictures) == len(wanted):
                    break
            if len(pictures) < len(wanted):
                _counted(count, numbers)
            return [pictures[number] for number in numbers]
    except av.error.FFmpegError as error:
        raise _CannotDecode(f"PyAV: {error}") from error


def _opened(decoder: Callable, stream: Any) -> Callable[[int], Image.Image]:
    """What reads frames by index, with the file kept open."""
    return (_OpenDecord if decoder is _decord else _OpenPyav)(stream)


class _OpenDecord:
    def __init__(self, stream: Any) -> None:
        import decord

        try:
            self.reader = decord.VideoReader(stream, num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise _CannotDecode(f"decord: {str(error).strip().splitlines()[-1]}") from error
        if len(self.reader) == 0:
            raise _CannotDecode("decord: it finds no frames")

    def __call__(self, number: int) -> Image.Image:
        import decord

        _counted(len(self.reader), [number])
        try:
            return Image.fromarray(self.reader[number].asnumpy())
        except (decord.DECORDError, RuntimeError) as error:
            raise _CannotDecode(f"decord: {str(error).strip().splitlines()[-1]}") from error


class _OpenPyav:
    """Decodes forward; an earlier frame starts it over."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.frames, self.next = stream, _pyav_frames(stream), 0

    def __call__(self, number: int) -> Image.Image:
        if number < self.next:
            self.frames, self.next = _pyav_frames(_rewound(self.stream)), 0
        for frame in self.frames:
            self.next += 1
            if self.next > number:
                return _upright(frame)
        count, self.next = self.next, number + 1  # it is at its end: whatever comes next starts it over
        _counted(count, [number])


def _pyav_frames(stream: Any) -> Iterator[Any]:
    import av

    try:
        with av.open(stream) as container:
            if not container.streams.video:
                raise _CannotDecode("PyAV: it has no video stream")
            yield from container.decode(video=0)
    except av.error.FFmpegError as error:
        raise _CannotDecode(f"PyAV: {error}") from error


def _upright(frame: Any) -> Image.Image:
    return frame.to_image().rotate(frame.rotation, expand=True)  # degrees, 0 for most


def _counted(count: int, numbers: Sequence[int] | None) -> int:
    """The number of frames, if it is one and holds all the numbers asked for."""
    if count == 0:
        raise ValueError("it has no frames")
    wrong = [number for number in numbers or () if not 0 <= number < count]
    if wrong:
        raise ValueError(f"it has {count} frames, but frames {wrong} are asked for")
    return count


def _rewound(stream: Any) -> Any:
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
    return stream
