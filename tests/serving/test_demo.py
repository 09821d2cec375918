"""The demo's page in a browser: upload, draw a region, ask twice, see masks, download; two users at once.

Run: pytest tests/serving/test_demo.py; SA2VA_SCREENSHOTS=FOLDER keeps what the browser shows.
"""

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from PIL import Image

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.drawing import COLOURS
from sa2va_hf.masks import decode
from sa2va_hf.serving.batching import Batcher
from sa2va_hf.serving.limits import Limits, Refused
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


def test_a_conversation_goes_through_the_page(batcher, files, tmp_path):
    page = Page(batcher)
    talk, view, slider, conversation, download = page.load(str(files / "clip.gif"))
    assert talk.frames == 6 and view.size == (640, 640) and slider.visible and not download.interactive
    updates = list(page.ask(talk, QUESTION, 0))
    assert len(updates) > 3
    talk, *_ = updates[-1]
    ((question, answer),) = talk.turns
    assert question == QUESTION and len(talk.masks) == 6 * answer.count("[SEG]")
    with zipfile.ZipFile(talk.archive(tmp_path)) as archive:
        names = archive.namelist()
    assert "answer.json" in names and sum(name.startswith("overlay/") for name in names) == 6
    (talk, *_) = list(page.ask(talk, "And the blue one?", 0))[-1]
    assert len(talk.turns) == 2


def test_two_clicks_are_a_region_of_the_image(files):
    talk = Talk.about((files / "shapes.png").read_bytes(), LIMITS)
    talk = talk.click(320.0, 300.0).click(80.0, 100.0)  # shown five times enlarged, the corners in any order
    (region,) = talk.regions
    assert region.box == (16, 20, 65, 61) and talk.corner is None
    assert talk.show().size == (640, 640)
    assert Talk.about((files / "clip.gif").read_bytes(), LIMITS).click(9, 9).corner is None


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

    def click_image(self, x: float, y: float) -> None:
        """At a share of the shown image's width and height; waits for the page to draw it."""
        from selenium.webdriver import ActionChains

        image = self.all("#view img")[0]
        before, size = self.image(), image.size
        offset = (round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
        ActionChains(self.driver).move_to_element_with_offset(image, *offset).click().perform()
        self.wait(lambda: self.image() != before)

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
        user.click_image(0.52, 0.52)
        user.click_image(0.9, 0.9)
        second = user.ask("Please describe region1.", turns=2)
        assert second
        user.shoot("demo-region")
        user.all("#download")[0].click()
        (file,) = user.wait(lambda: list(tmp_path.glob("*.zip")))
        time.sleep(0.5)
        with zipfile.ZipFile(file) as archive:
            assert "answer.json" in archive.namelist() and "overlay/00000.png" in archive.namelist()
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
