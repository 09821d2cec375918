"""Whatever a camera or a tool wrote becomes upright RGB, or an error that names the file."""

import builtins
import io
import pickle
import struct
from functools import partial

import av
import numpy as np
import pytest
from PIL import Image

from sa2va_hf.data import media
from sa2va_hf.data.media import Frames, decode_video, load_frames, load_image, video_shape
from sa2va_hf.data.schema import Sample
from sa2va_hf.data.sources.files import read_annotation, upright_size
from sa2va_hf.model.visuals import open_image

WIDTH, HEIGHT = 64, 32


def gradient() -> Image.Image:
    """Red grows to the right, green downwards: every corner is another colour."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 4, y * 7, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray((np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256).astype(np.uint8)))
    return image


def transparent_palette() -> Image.Image:
    image = gradient().quantize(64)
    image.info["transparency"] = bytes(range(0, 256, 4))
    return image


GREY = gradient().convert("L")


@pytest.mark.parametrize(
    "image, expected",
    [
        (gradient(), gradient()),
        (GREY, GREY),
        (with_alpha(gradient()), gradient()),  # the colour below the transparency, not a background
        (with_alpha(GREY.copy()), GREY),
        (GREY.point(lambda v: v > 60, mode="1"), GREY.point(lambda v: 255 * (v > 60))),
        (gradient().quantize(64), gradient().quantize(64).convert("RGB")),
        (transparent_palette(), gradient().quantize(64).convert("RGB")),
    ],
    ids=["RGB", "L", "RGBA", "LA", "1", "P", "P with transparency"],
)
@pytest.mark.filterwarnings("error")
def test_every_mode_becomes_rgb(image, expected):
    loaded = load_image(encoded(image))
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(pixels(loaded), pixels(expected.convert("RGB")))


@pytest.mark.parametrize("format, dtype", [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_16_bit_is_scaled_not_clipped(format, dtype):
    """Pillow's convert("RGB") turns every value above 255 into white."""
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    loaded = pixels(load_image(encoded(Image.fromarray(values.astype(dtype)), format)))
    np.testing.assert_allclose(loaded, np.repeat(values[..., None] / 257, 3, axis=-1), atol=0.51)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_fewer_bits_than_its_file_has_is_scaled_by_its_own_range(bits):
    """12-bit grey in a 16-bit file would be black otherwise. The same rule for training and for inference."""
    values = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    image = Image.fromarray(values)
    loaded = pixels(load_image(encoded(image)))
    np.testing.assert_allclose(loaded[..., 0], values / (2**bits - 1) * 255, atol=0.51)
    np.testing.assert_array_equal(loaded, pixels(open_image(image)))


@pytest.mark.parametrize("pointer", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path, pointer):
    (tmp_path / "a.png").write_bytes(pointer)
    for read in (load_image, upright_size, read_annotation):
        with pytest.raises(
            ValueError, match=r"a\.png.* is a git-lfs pointer, not the file itself: run `git lfs pull`"
        ):
            read(tmp_path / "a.png")


def test_cmyk_is_converted():
    loaded = pixels(load_image(encoded(gradient().convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(loaded - pixels(gradient())).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    """The stored picture is turned so that the tag turns it back."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient().transpose(turn[orientation]) if orientation in turn else gradient()
    exif = Image.Exif()
    exif[media.ORIENTATION] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    loaded = load_image(encoded(stored, format, exif=exif, **options))
    assert loaded.size == (WIDTH, HEIGHT)
    assert np.abs(pixels(loaded) - pixels(gradient())).mean() < 2


def test_orientation_of_a_palette_and_a_16_bit_picture():
    exif = Image.Exif()
    exif[media.ORIENTATION] = 6
    for image in (gradient().quantize(16), Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16))):
        assert load_image(encoded(image, exif=exif)).size == (HEIGHT, WIDTH)


def test_an_animation_gives_its_first_picture():
    data = encoded(GREY, "GIF", save_all=True, append_images=[GREY.point(lambda v: 255 - v)])
    np.testing.assert_array_equal(pixels(load_image(data))[..., 0], pixels(GREY))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, format, share):
    """Not half a picture filled with grey, as with LOAD_TRUNCATED_IMAGES."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    path = tmp_path / "holiday.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="holiday.img: "):
        load_image(path)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "not a picture"), (b"<html>404</html>", "not a picture"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "picture")],
)
def test_what_is_no_picture_is_an_error(tmp_path, content, message):
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"holiday.png: .*{message}"):
        load_image(str(path))
    with pytest.raises(ValueError, match=f"embedded file of {len(content)} bytes"):
        load_image(content)


def test_a_missing_file_a_folder_and_float_pixels_are_errors(tmp_path):
    with pytest.raises(ValueError, match="nowhere.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match="float pixels"):
        load_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="expected 16 bits"):
        load_image(encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"))


# ---------------------------------------------------------------- videos


def clip(count: int, width: int = WIDTH, height: int = HEIGHT, codec: str = "mpeg4", format: str = "mp4") -> bytes:
    """A video whose frame number n is a plain grey of 10 * n."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            grey = np.full((height, width, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(params=["decord", "av"])
def decoder(request, monkeypatch):
    """Makes the other decoder impossible to import."""
    if request.param == "decord":
        pytest.importorskip("decord")
    hide(monkeypatch, "av" if request.param == "decord" else "decord")
    return request.param


def hide(monkeypatch, *names):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)


@pytest.mark.parametrize("numbers", [[0, 7, 19], [19], [7, 0], [3, 3]])
def test_chosen_frames_of_a_video_in_the_order_asked_for(decoder, tmp_path, numbers):
    data = clip(20)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        frames = decode_video(source, numbers)
        assert [frame.size for frame in frames] == [(WIDTH, HEIGHT)] * len(numbers)
        assert [round(pixels(frame).mean() / 10) for frame in frames] == numbers
        assert video_shape(source) == (20, WIDTH, HEIGHT)


def test_a_video_that_was_filmed_upright_comes_upright(decoder):
    """Phones store the rotation in the track header; without it the masks would lie across the picture."""
    data = bytearray(clip(3))
    at = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and ids, reserved, layer ... volume
    assert struct.unpack(">9i", data[at : at + 36])[:2] == (1 << 16, 0)
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    assert video_shape(bytes(data)) == (3, HEIGHT, WIDTH)


def test_both_decoders_give_the_same_pixels(shared_data, monkeypatch):
    pytest.importorskip("decord")
    path = shared_data / "sam2_media" / "bedroom.mp4"
    by_decord = decode_video(path, [0, 30])
    hide(monkeypatch, "decord")
    for one, other in zip(by_decord, decode_video(path, [0, 30]), strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


@pytest.mark.parametrize(
    "content, message",
    [(b"", "cannot be read as a video"), (b"no video" * 40, "cannot be read as a video"), (clip(0), "video")],
    ids=["empty", "garbage", "zero frames"],
)
def test_an_unreadable_video_is_an_error_that_names_it(decoder, tmp_path, content, message):
    path = tmp_path / "holiday.mp4"
    path.write_bytes(content)
    for read in (video_shape, lambda source: decode_video(source, [0])):
        with pytest.raises(ValueError, match=f"holiday.mp4: .*{message}"):
            read(path)


def test_what_decord_cannot_read_is_read_by_pyav():
    """decord 0.6 fails on pictures of this size (rows of 144 bytes)."""
    frames = decode_video(clip(4, width=48, height=32), [2])
    assert [(frame.size, round(pixels(frame).mean() / 10)) for frame in frames] == [((48, 32), 2)]


def test_frames_beyond_the_end_are_an_error(decoder):
    with pytest.raises(ValueError, match=r"5 frames, but frames \[5\] are asked for"):
        decode_video(clip(5), [1, 5])


def test_a_missing_video_and_a_missing_decoder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere.mp4: no such video file"):
        decode_video(tmp_path / "nowhere.mp4", [0])
    hide(monkeypatch, "av", "decord")
    with pytest.raises(ImportError, match="needs decord or PyAV: pip install av"):
        decode_video(clip(2), [0])


# ---------------------------------------------------------------- samples


def sample_of(**fields) -> Sample:
    return Sample(**({"id": "s1", "task": "referring", "width": WIDTH, "height": HEIGHT} | fields))


def test_only_the_chosen_frames_are_opened(tmp_path):
    good, bad = tmp_path / "1.png", tmp_path / "0.png"
    good.write_bytes(encoded(gradient()))
    sample = sample_of(frames=[str(bad), str(good), encoded(gradient())])
    assert [pixels(frame).tolist() for frame in load_frames(sample, [1, 2])] == [pixels(gradient()).tolist()] * 2
    with pytest.raises(ValueError, match="'s1': .*0.png: no such file"):
        load_frames(sample, [0, 1])
    with pytest.raises(ValueError, match=r"'s1': it has 3 frames, but frames \[3\]"):
        load_frames(sample, [3])


def test_frames_of_a_video_sample():
    frames = load_frames(sample_of(video=clip(4), num_frames=4), [1, 3])
    assert [round(pixels(frame).mean() / 10) for frame in frames] == [1, 3]


def test_a_video_is_opened_once_and_every_frame_is_decoded_once(decoder, monkeypatch):
    """The time of a frame does not depend on where in the clip it is."""
    opened, decoded = [], []

    def counted(kind, stream):
        reader = kind(stream)
        opened.append(reader)
        return reader

    for name in ("_OpenDecord", "_OpenPyav"):
        monkeypatch.setattr(media, name, partial(counted, getattr(media, name)))
    upright = media._upright
    monkeypatch.setattr(media, "_upright", lambda frame: decoded.append(frame) or upright(frame))
    frames = Frames(sample_of(video=clip(20), num_frames=20))
    read = [pixels(frame) for frame in frames]
    assert len(opened) == 1 and len(decoded) == (20 if decoder == "av" else 0)
    for number in (3, 19, 0):
        expected = load_frames(frames.sample, [number])[0]
        np.testing.assert_array_equal(read[number], pixels(expected))
        np.testing.assert_array_equal(pixels(frames[number]), pixels(expected))
    np.testing.assert_array_equal(pixels(pickle.loads(pickle.dumps(frames))[5]), read[5])
    with pytest.raises(ValueError, match="it has 20 frames, but frames \\[20\\] are asked for"):
        media.VideoFrames(clip(20))[20]


def test_a_picture_of_another_size_than_prepared_is_an_error():
    """Its masks would be those of another picture."""
    with pytest.raises(ValueError, match="'s1': .*: frame 0 is 64 x 32, expected 32 x 64"):
        load_frames(sample_of(frames=[encoded(gradient())], width=HEIGHT, height=WIDTH), [0])
