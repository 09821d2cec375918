"""The demo's page in a browser: upload, draw a region, ask twice, see masks, download; two users at once.

Run: pytest tests/serving/test_demo.py; SA2VA_SCREENSHOTS=FOLDER keeps what the browser shows.
"""

import io
import os
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from browser import chromium
from PIL import Image

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.drawing import COLOURS
from sa2va_hf.masks import decode
from sa2va_hf.serving.batching import Batcher
from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.pen import Stroke
from sa2va_hf.serving.talk import Talk, answer_html

pytest.importorskip("gradio", reason="needs the extra `demo`")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from sa2va_hf.serving.demo import Page, create_demo, launch  # noqa: E402

LIMITS = Limits(max_new_tokens=40, max_pixels=300_000, max_frames=20)
QUESTION = "Please segment the red square."


def shapes(second: tuple[int, int, int] = (30, 60, 200)) -> Image.Image:
    image = Image.new("RGB", (128, 128), (245, 245, 245))
    image.paste((220, 30, 30), (16, 20, 60, 64))
    image.paste(second, (70, 70, 112, 112))
    return image


@pytest.fixture(scope="module")
def batcher():
    batcher = Batcher(Sa2VAPredictor.from_pretrained("shapes-tiny"), LIMITS)
    yield batcher
    batcher.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    shapes().save(folder / "shapes.png")
    shapes((20, 150, 60)).save(folder / "other.png")
    frames = [shapes().transform((128, 128), Image.Transform.AFFINE, (1, 0, -4 * i, 0, 1, 0)) for i in range(6)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    return folder


# ---------------------------------------------------------------- without a browser
def test_phrases_have_the_colour_of_their_mask_and_text_is_escaped():
    shown = answer_html("<script> & <p> a dog </p> [SEG], <p> cat </p> [SEG].")
    assert "<script>" not in shown and "&lt;script&gt; &amp; " in shown and "[SEG]" not in shown
    for index, phrase in enumerate(("a dog", "cat")):
        assert f'data-object="{index + 1}" style="background: rgb{COLOURS[index]}' in shown and f">{phrase}<" in shown


def test_a_conversation_goes_through_the_page(batcher, files, tmp_path, monkeypatch):
    page = Page(batcher)
    monkeypatch.setattr("sa2va_hf.serving.demo.SHOWN_EVERY", 0.0)
    talk, view, slider, tools, _, conversation, download = page.load(str(files / "clip.gif"))
    assert talk.frames == 6 and view.size == (640, 640) and slider.visible and not download.interactive
    assert not tools.visible and page.load(str(files / "shapes.png"))[3].visible, "regions are of images"
    updates = list(page.ask(talk, QUESTION, 0))
    shown = [update for update in updates[:-1] if isinstance(update[0], Talk)]
    assert len(updates) > len(shown) + 3 and len(shown) == 6, "every frame is shown when its masks are there"
    for index, (early, view, *_, conversation, _, _) in enumerate(shown):
        assert f"Frame {index + 1} of 6" in conversation and view == early.show(index)
        assert {entry["frame"] for entry in early.masks} == set(range(index + 1))
    talk, *_ = updates[-1]
    ((question, answer),) = talk.turns
    assert question == QUESTION and len(talk.masks) == 6 * answer.count("[SEG]")
    with zipfile.ZipFile(talk.archive(tmp_path)) as archive:
        with av.open(io.BytesIO(archive.read("overlay.mp4"))) as video:
            assert video.streams.video[0].average_rate == talk.visual.rate
            shown = [frame.to_image() for frame in video.decode(video=0)]
        assert "answer.json" in archive.namelist()
    assert [frame.size for frame in shown] == [(128, 128)] * 6
    for index, frame in enumerate(shown):
        wanted = np.asarray(talk._overlay(talk.visual.open()[index], index), float)
        assert np.abs(np.asarray(frame, float) - wanted).mean() < 12, "the masks are drawn on the frames"
    (talk, *_) = list(page.ask(talk, "And the blue one?", 0))[-1]
    assert len(talk.turns) == 2


def drawn(talk: Talk, tool: str, *points: tuple[float, float], width: float = 0.05) -> Talk:
    return talk.draw(Stroke.read({"tool": tool, "points": [list(point) for point in points], "width": width}))


def test_a_box_is_a_region_of_the_image(files):
    talk = Talk.about((files / "shapes.png").read_bytes(), LIMITS)
    found = drawn(talk, "Box", (0.5, 0.4), (0.9, 0.9), (0.125, 0.25))  # the corners in any order
    (region,) = found.regions
    assert region.box == (16, 32, 64, 51.2) and region.mask((128, 128)).sum() == 48 * 19
    assert found.show().size == (640, 640) and found.show() != talk.show()
    assert drawn(talk, "Box", (0.5, 0.5)).regions == (), "a click is no box"
    clip = Talk.about((files / "clip.gif").read_bytes(), LIMITS)
    assert drawn(clip, "Box", (0.1, 0.1), (0.9, 0.9)).regions == ()


def test_strokes_of_the_brush_that_touch_are_one_region(files):
    talk = Talk.about((files / "shapes.png").read_bytes(), LIMITS)
    talk = drawn(talk, "Brush", (0.25, 0.5), (0.75, 0.5), width=0.1)
    mask = talk.regions[0].mask((128, 128))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert abs(len(rows) - 13) <= 2 and abs(columns[0] - 25) <= 2 and abs(columns[-1] - 102) <= 2
    both = drawn(talk, "Brush", (0.5, 0.25), (0.5, 0.75), width=0.1)
    assert len(both.regions) == 1 and (both.regions[0].mask((128, 128)) >= mask).all()
    apart = drawn(both, "Brush", (0.05, 0.05), width=0.02)
    assert len(apart.regions) == 2 and 1 <= apart.regions[1].mask((128, 128)).sum() <= 16


def test_a_region_that_the_model_cannot_see_is_refused_when_it_is_drawn(batcher, files):
    page = Page(batcher)
    talk, *_ = page.load(str(files / "shapes.png"))
    cell = 1 / batcher.predictor.processor.pictures.region_grid
    for start, kept in ((1.2 * cell, 0), (0.8 * cell, 1)):
        points = [[start, start], [1.6 * cell, 1.6 * cell]]
        event = SimpleNamespace(tool="Box", points=points, width=0.05)
        drawn, view, conversation = page.draw(talk, 0, event)
        assert len(drawn.regions) == kept and view.size == (640, 640)
        assert ("too small for this model: draw a larger box, or use a wider brush" in conversation) == (not kept)


@pytest.mark.parametrize(
    "sent",
    [
        None,
        {},
        {"tool": "Pen", "points": [[0, 0]], "width": 0.1},
        {"tool": "Brush", "points": [], "width": 0.1},
        {"tool": "Brush", "points": [[0, 0]] * 4001, "width": 0.1},
        {"tool": "Brush", "points": [[0, float("nan")]], "width": 0.1},
        {"tool": "Brush", "points": [[0, 1e9]], "width": 0.1},
        {"tool": "Brush", "points": [[0, "0"]], "width": 0.1},
        {"tool": "Brush", "points": [[0, 0]], "width": None},
    ],
)
def test_what_no_page_of_ours_sends_is_no_region(sent):
    with pytest.raises(Refused, match="the drawn region cannot be read"):
        Stroke.read(sent)


def test_a_file_that_is_too_large_is_refused_by_its_header(batcher, tmp_path):
    Image.new("1", (3000, 3000)).save(tmp_path / "large.png")
    talk, *_, conversation, _ = Page(batcher).load(str(tmp_path / "large.png"))
    assert talk.visual is None and "3000 x 3000 = 9000000 pixels; this server takes 300000" in conversation
    with pytest.raises(Refused, match="MP4, WebM, AVI or GIF"):
        Talk.about(b"nothing", LIMITS)


# ---------------------------------------------------------------- in a browser
class User:
    """What a person does on the page."""

    def __init__(self, driver, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.all("#question textarea") and self.all("#file input[type=file]"))

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds: float = 90.0):
        end = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except Exception as error:  # the page has replaced the element meanwhile
                if "stale element" not in str(error):
                    raise
            assert time.monotonic() < end, self.driver.page_source[-3000:]
            time.sleep(0.1)

    def upload(self, file: Path) -> None:
        self.all("#file input[type=file]")[0].send_keys(str(file))
        self.wait(lambda: self.all("#view img"))

    def image(self) -> str:
        return self.all("#view img")[0].get_attribute("src")

    def draw(self, tool: str, *points: tuple[float, float]) -> None:
        """Press, move and release at shares of the shown image's sides; waits for the page to draw the region."""
        from selenium.webdriver import ActionChains

        self.wait(lambda: self.all(f"#tool input[value={tool}]"))[0].click()
        self.wait(lambda: self.all("#tool input:checked")[0].get_attribute("value") == tool)
        image = self.all("#view img")[0]
        before, size = self.image(), image.size
        moves = ActionChains(self.driver)
        for index, (x, y) in enumerate(points):
            offset = (round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
            moves.move_to_element_with_offset(image, *offset)
            if not index:
                moves.click_and_hold()
        moves.perform()
        assert self.all("#stroke"), "what is being drawn is seen"
        ActionChains(self.driver).release().perform()
        self.wait(lambda: self.image() != before)
        self.wait(lambda: not self.all("#stroke"))

    def ask(self, question: str, turns: int) -> str:
        box = self.all("#question textarea")[0]
        box.send_keys(question)
        self.all("#ask")[0].click()
        done = "#conversation .turn.model"
        self.wait(lambda: len(self.all(done)) == turns and not self.all("#conversation .note"))
        self.wait(lambda: not self.all("#question textarea")[0].get_attribute("value"))
        return self.all(done)[-1].text

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("SA2VA_SCREENSHOTS"):
            time.sleep(0.5)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def url(batcher):
    demo = create_demo(batcher, "shapes-tiny")
    _, url, _ = launch(demo, "127.0.0.1", None, LIMITS.max_bytes, prevent_thread_lock=True)
    yield url
    demo.close()


def test_upload_region_two_questions_masks_and_download(url, files, tmp_path):
    with chromium(tmp_path / "profile", tmp_path) as driver:
        user = User(driver, url)
        user.upload(files / "shapes.png")
        first = user.ask(QUESTION, turns=1)
        coloured = user.all("#conversation .object")
        assert first and coloured and str(COLOURS[0])[1:-1] in coloured[0].get_attribute("style")
        user.shoot("demo-image")
        user.draw("Box", (0.52, 0.52), (0.9, 0.9))
        user.draw("Brush", (0.2, 0.25), (0.4, 0.25), (0.3, 0.45))
        second = user.ask("Please describe region1.", turns=2)
        assert second and len(user.all("#conversation .past .object")) == len(coloured)
        user.shoot("demo-region")
        user.all("#download")[0].click()
        (file,) = user.wait(lambda: list(tmp_path.glob("*.zip")))
        time.sleep(0.5)
        with zipfile.ZipFile(file) as archive:
            assert "answer.json" in archive.namelist() and "overlay.png" in archive.namelist()
        names = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert names and not [name for name in names if not name.startswith((url, "data:", "blob:"))]


def test_two_users_do_not_see_each_other_and_videos_are_scrubbed(url, files, tmp_path):
    with chromium(tmp_path / "one") as first, chromium(tmp_path / "two") as second:
        one, two = User(first, url), User(second, url)
        one.upload(files / "clip.gif")
        two.upload(files / "other.png")
        one.all("#question textarea")[0].send_keys("Please segment the blue square.")
        one.all("#ask")[0].click()
        two.ask("Please segment the green square.", turns=1)
        one.wait(lambda: len(one.all("#conversation .turn.model")) == 1 and not one.all("#conversation .note"))
        assert "green" in two.all("#conversation")[0].text and "blue" not in two.all("#conversation")[0].text
        assert "blue" in one.all("#conversation")[0].text and "green" not in one.all("#conversation")[0].text
        before = one.image()
        slider = one.wait(lambda: one.all("#frame input[type=range]"))[0]
        from selenium.webdriver import Keys

        slider.send_keys(Keys.ARROW_RIGHT * 3)
        one.wait(lambda: one.image() != before)
        one.shoot("demo-video")
        assert not two.all("#frame input[type=range]") or not two.all("#frame")[0].is_displayed()
        fresh = User(second, url)
        assert not fresh.all("#conversation .turn")


def test_masks_of_the_archive_are_those_of_the_answer(batcher, files, tmp_path):
    page = Page(batcher)
    talk, *_ = page.load(str(files / "shapes.png"))
    talk, *_ = list(page.ask(talk, QUESTION, 0))[-1]
    with zipfile.ZipFile(talk.archive(tmp_path)) as archive:
        for entry in talk.masks:
            with archive.open(f"masks/object{entry['index'] + 1}_frame00000.png") as file:
                assert (np.asarray(Image.open(file)) > 0).tolist() == decode(entry["rle"]).tolist()
