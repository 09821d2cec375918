"""Pictures of every mode are read as people see them; clips are read frame by frame, in any order.

Run: pytest tests/model/test_visuals.py
"""

import base64

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.model.visuals import Clip, fetch_image, open_base64, open_image

gradient = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(gradient)
    image = image.convert("RGB").convert(mode) if mode not in ("LA", "PA") else image.convert("LA").convert(mode)
    read = open_image(image)
    assert read.mode == "RGB" and read.size == (30, 20)
    values = np.asarray(read).astype(int)
    assert values[0].mean() < values[-1].mean(), "dark on top, bright below, in whatever colours"


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    file = tmp_path / f"deep{suffix}"
    Image.fromarray(gradient.astype(np.uint16) * 257).save(file)
    for read in (open_image(file), open_image(Image.open(file))):
        np.testing.assert_array_equal(np.asarray(read)[..., 0], gradient)


def test_pixels_without_a_range_are_an_error():
    with pytest.raises(ValueError, match="float pixels"):
        open_image(Image.fromarray(gradient.astype(np.float32)))
    with pytest.raises(ValueError, match="expected 16 bits"):
        open_image(Image.fromarray(gradient.astype(np.int32) * 100000))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_upright_and_a_picture_left_as_it_is(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = Image.fromarray(gradient).convert("RGB")  # the picture as people should see it
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = seen
    for step in undo[orientation]:
        stored = stored.transpose(step)
    stored.save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "phone.png")), np.asarray(seen))
    # masks must fit the array that the caller holds
    assert open_image(Image.open(tmp_path / "phone.png")).size == stored.size


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="text.jpg"):
        open_image(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match="absent.jpg"):
        open_image(str(tmp_path / "absent.jpg"))
    noise(0).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    with pytest.raises(ValueError, match="cut.jpg"):
        open_image(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match="got ndarray"):
        open_image(gradient)


# ---------------------------------------------------------------- clips


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert [frame.getpixel((0, 0))[0] for frame in Clip(tmp_path)] == list(range(12))


def test_a_list_may_hold_pictures_and_paths(tmp_path):
    noise(1).save(tmp_path / "1.png")
    clip = Clip([noise(0), tmp_path / "1.png"])
    assert len(clip) == 2 and clip.size == (64, 48)
    np.testing.assert_array_equal(np.asarray(clip[1]), np.asarray(noise(1)))


def test_a_clip_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        Clip([])
    with pytest.raises(ValueError, match="found none"):
        Clip(tmp_path)
    with pytest.raises(ValueError, match="no such video file"):
        Clip(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="frame 1 is .* 0 is"):
        list(Clip([noise(0), noise(1, (10, 10))]))
    with pytest.raises(ValueError, match="got int"):
        Clip(3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A file of 12 frames that grow brighter."""
    av = pytest.importorskip("av")
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (20 * number,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def test_a_video_file_gives_the_same_frames_in_any_order(video):
    clip = Clip(video)
    assert len(clip) == 12 and clip.size == (64, 48)
    forward = [np.asarray(frame) for frame in clip]
    brightness = [frame.mean() for frame in forward]
    np.testing.assert_allclose(brightness, [20 * number for number in range(12)], atol=6)
    for number in (7, 2, 2, 11, 0):  # on, back, again, last, first
        np.testing.assert_array_equal(np.asarray(clip[number]), forward[number])
    with pytest.raises(IndexError):
        clip[12]


def test_a_video_file_without_frames_or_that_is_none(tmp_path, video):
    av = pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="text.mp4"):
        Clip(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:  # sound only
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video stream"):
        Clip(tmp_path / "sound.wav")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_more_than_8_bits_is_scaled_by_its_own_range(bits):
    """A camera of 12 bits fills a sixteenth of a 16-bit file: it must not come out black."""
    values = np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16).reshape(8, 8)
    shown = np.asarray(open_image(Image.fromarray(values)))[..., 0]
    np.testing.assert_allclose(shown, values.astype(np.float64) * 255 / (2**bits - 1), atol=0.5)


def test_hidden_files_are_no_frames(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    clip = Clip(tmp_path)
    assert [frame.getpixel((0, 0))[0] for frame in clip] == [0, 1, 2]


def test_a_picture_comes_as_content_data_uri_or_base64(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 6), (10, 20, 30)).save(file)
    text = base64.b64encode(file.read_bytes()).decode()
    sources = [file, str(file), file.read_bytes(), f"data:image/png;base64,{text}", f"file://{file}"]
    for picture in [*map(fetch_image, sources), open_base64(text)]:
        assert picture.size == (8, 6) and picture.getpixel((0, 0)) == (10, 20, 30)
    for wrong in ("data:image/png;base64,???", "http://127.0.0.1:9/a.png"):
        with pytest.raises(ValueError, match="no base64|cannot be fetched"):
            fetch_image(wrong)
