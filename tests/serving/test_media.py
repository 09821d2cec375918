"""Clients' bytes: what is too large is refused before it is decoded, what is damaged by name.

Run: pytest tests/serving/test_media.py
"""

import io
import struct
import tracemalloc
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.masks import encode
from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.media import Region, read_image, read_video

LIMITS = Limits(max_pixels=1_000_000, max_frames=50)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_header(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG whose header says so, whatever its data holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def video_bytes(frames: int, size: tuple[int, int] = (32, 32), codec: str = "libx264", form: str = "mp4") -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), index * 20 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return file.getvalue()


def repeated_frame(count: int) -> bytes:
    """An AVI of one frame, `count` times."""
    import av

    file, jpeg = io.BytesIO(), encoded(Image.new("RGB", (16, 16)), "JPEG")
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for index in range(count):
            packet = av.Packet(jpeg)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_come_upright_and_their_size_is_known_before(form):
    image = Image.new("RGB", (40, 20), (200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, size in (({}, (40, 20)), ({"exif": exif}, (20, 40))):
        read = read_image(encoded(image, form, **options), LIMITS)
        assert read.size == size == read.open().size
        assert read.open().mode == "RGB"


BOMB = zlib.compress(bytes(50_000_000), 9)  # 49 KB
REFUSED_IMAGES = {
    "100 megapixels": (
        lambda: encoded(Image.new("1", (10_000, 10_000)), "PNG", compress_level=1),
        413,
        "10000 x 10000",
    ),
    "400 megapixels": (lambda: png_header(20_000, 20_000), 413, "pixels"),
    "webp of 268 megapixels": (
        lambda: b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2 + bytes(40),
        413,
        "16383 x 16383",
    ),
    "zip bomb in a text chunk": (
        lambda: png_header(
            4,
            4,
            zlib.compress(bytes(52)),
            extra=struct.pack(">I", len(BOMB) + 5)
            + b"zTXtabc\0\0"
            + BOMB
            + struct.pack(">I", zlib.crc32(b"zTXtabc\0\0" + BOMB)),
        ),
        422,
        "cannot be read",
    ),
    "many scans": (lambda: encoded(Image.new("RGB", (8, 8)), "JPEG") + b"\xff\xda" * 101, 413, "scans"),
    "a GIF": (lambda: encoded(Image.new("RGB", (8, 8)), "GIF"), 415, "PNG, JPEG or WebP"),
    "text": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "PNG, JPEG or WebP"),
    "nothing": (lambda: b"", 415, "PNG, JPEG or WebP"),
    "half a header": (lambda: b"\x89PNG\r\n\x1a\n\0\0", 422, "cannot be read"),
    "an animation": (
        lambda: encoded(
            Image.new("RGB", (8, 8)), "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
        ),
        415,
        "animation",
    ),
}


@pytest.mark.parametrize("name", REFUSED_IMAGES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_for_us_is_refused_without_decoding_it(name):
    make, status, words = REFUSED_IMAGES[name]
    data = make()
    tracemalloc.start()
    with pytest.raises(Refused, match=words) as caught:
        read_image(data, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == status
    assert peak < 4_000_000, "refused by its header"


def test_a_zip_bomb_decodes_to_the_pixels_of_its_header_at_most():
    """50 MB of zeros for an image of 16 pixels: the decoder stops where the image ends."""
    image = read_image(png_header(4, 4, BOMB), LIMITS)
    try:
        assert image.open().size == (4, 4)
    except Refused as refused:
        assert refused.status == 422


def test_a_image_cut_in_half_is_refused_when_it_is_decoded():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG"):
        data = encoded(noise, form)
        image = read_image(data[: len(data) // 2], LIMITS)
        with pytest.raises(Refused, match="cannot be decoded") as caught:
            image.open()
        assert caught.value.status == 422


@pytest.mark.parametrize(("codec", "form"), [("libx264", "mp4"), ("libvpx", "webm"), ("mjpeg", "avi")])
def test_clips_are_counted_and_read_in_any_order(codec, form):
    video = read_video(video_bytes(12, codec=codec, form=form), LIMITS)
    clip = video.open()
    assert (len(clip), video.size) == (12, (32, 32))
    shades = [np.asarray(clip[index]).mean() for index in (0, 5, 11, 2)]
    assert np.abs(np.array(shades) - [0, 100, 220, 40]).max() < 8


REFUSED_VIDEOS = {
    "10,000 frames": (lambda: repeated_frame(10_000), 413, "more than 50 frames"),
    "large frames": (lambda: video_bytes(1, (1280, 960)), 413, "1280 x 960"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415, "MP4, WebM, AVI or GIF"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "MP4, WebM, AVI or GIF"),
    "an image": (lambda: encoded(Image.new("RGB", (8, 8)), "PNG"), 415, "MP4, WebM, AVI or GIF"),
    "half a video": (lambda: video_bytes(12)[:700], 422, "cannot be decoded"),
    "a name only": (lambda: b"\0\0\0\x18ftypmp42" + bytes(64), 422, "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED_VIDEOS)
def test_what_is_no_clip_for_us_is_refused(name):
    make, status, words = REFUSED_VIDEOS[name]
    with pytest.raises(Refused, match=words) as caught:
        read_video(make(), LIMITS)
    assert caught.value.status == status


def test_a_container_that_lies_about_its_frames_is_refused():
    """An AVI header says 16 x 16; the JPEG inside it is larger than the limit."""
    data = bytearray(video_bytes(1, (1280, 960), "mjpeg", "avi"))
    for old in (struct.pack("<II", 1280, 960), struct.pack("<HH", 1280, 960)):
        data = bytearray(bytes(data).replace(old, struct.pack("<II" if len(old) == 8 else "<HH", 16, 16)))
    with pytest.raises(Refused) as caught:
        read_video(bytes(data), LIMITS)
    assert caught.value.status in (413, 422)


def test_regions_are_boxes_or_masks_of_the_image():
    size = (6, 4)
    box = Region(box=(1, 1, 99, 3)).mask(size)
    assert box.sum() == 10 and box[1:3, 1:].all()
    assert (Region(rle=encode(box)).mask(size) == box).all()
    wrong = {
        "expected the image's": Region(rle=encode(box.T)),
        "covers no pixel": Region(box=(4, 4, 2, 2)),
        "RLE garbage": Region(rle={"size": [4, 6], "counts": "zzz"}),
    }
    for words, region in wrong.items():
        with pytest.raises(Refused, match=words):
            region.check(size)


def test_an_answer_gets_as_many_masks_as_there_is_room_for():
    limits = Limits(max_objects=10, max_answer_bytes=1_000_000)
    assert limits.objects(10_000, 100) == 10
    assert limits.objects(100_000, 1000) == (1_000_000 - 300_000) // (12_500 + 4000 + 100_000) == 6
    with pytest.raises(Refused, match="does not fit this server") as caught:
        limits.objects(300_000, 1000)
    assert caught.value.status == 413
