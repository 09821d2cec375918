"""The parts of the quickstart: copies of photos keep their masks, sheets show who is right, and figures are explained.

Run: pytest tests/quickstart
"""

import io
import random

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from PIL import Image

from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, from_row, to_row
from sa2va_hf.masks import decode, encode, mask_to_box
from sa2va_hf.quickstart import sheets
from sa2va_hf.quickstart.budget import LARGER_FROM, image_side, steps_in
from sa2va_hf.quickstart.photos import LONGEST, augmented, copy_of
from sa2va_hf.quickstart.questions import Question, constant_mask, iou, questions, score, with_article
from sa2va_hf.quickstart.report import add_figures, explanation, last_line

RED = (220, 30, 30)


def photo(phrase: str = "the red patch", width: int = 400, height: int = 300) -> Sample:
    """A grey photo with a red patch in its left half; the patch is the mask."""
    mask = np.zeros((height, width), bool)
    mask[60:160, 40:140] = True
    pixels = np.full((height, width, 3), 120, np.uint8)
    pixels[mask] = RED
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Sample(
        id="one",
        task="referring",
        width=width,
        height=height,
        frames=[buffer.getvalue()],
        objects=[Object([encode(mask)], [mask_to_box(mask)])],
        expressions=[Expression(phrase, [0])],
        source="png_masks",
    )


def opened(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(Image.open(io.BytesIO(sample.frames[0])).convert("RGB"))
    return pixels, decode(sample.objects[0].masks[0])


def test_in_every_copy_the_mask_is_where_the_object_is():
    sample = photo()
    image = Image.open(io.BytesIO(sample.frames[0])).convert("RGB")
    sides = set()
    for number in range(40):
        copy = copy_of(sample, image, random.Random(number))
        pixels, mask = opened(copy)
        assert pixels.shape[:2] == mask.shape == (copy.height, copy.width)
        assert max(copy.width, copy.height) <= LONGEST
        red = pixels[..., 0].astype(int) - pixels[..., 1] > 40
        assert iou(red, mask) > 0.9
        assert [e.text for e in copy.expressions] == ["the red patch"]
        sides.add(np.flatnonzero(mask.any(0)).mean() < copy.width / 2)
    assert sides == {True, False}, "no copy is mirrored"


def test_a_phrase_that_speaks_of_a_side_is_never_mirrored():
    sample = photo("the left patch")
    image = Image.open(io.BytesIO(sample.frames[0])).convert("RGB")
    for number in range(40):
        copy = copy_of(sample, image, random.Random(number))
        _, mask = opened(copy)
        whole = mask[:, : int(0.75 * copy.width)].sum() / mask.sum()
        assert whole > 0.9


def test_copies_are_a_prepared_folder(tmp_path):
    Dataset.from_list([to_row(photo())], features=FEATURES).save_to_disk(str(tmp_path / "train"))
    assert augmented(tmp_path / "train", tmp_path / "copies", 5) == 5
    rows = load_from_disk(str(tmp_path / "copies"))
    assert len({row["id"] for row in rows}) == 5
    assert all(from_row(row).expressions for row in rows)
    (asked,) = questions(tmp_path / "train")
    assert asked.phrase == "the red patch" and asked.target.sum() == 100 * 100


def test_the_constant_mask_is_the_best_that_needs_no_image():
    target = np.zeros((30, 40), bool)
    target[10:20, 10:30] = True
    asked = [Question(Image.new("RGB", (40, 30)), "it", target)] * 3
    assert score(constant_mask(asked, asked), asked)["cIoU"] > 0.9
    assert score([~target] * 3, asked) == {"cIoU": 0, "gIoU": 0}


def test_phrases_get_an_article():
    expected = {"cat": "the cat", "the cat": "the cat", "all cats": "all cats", "A cat": "A cat"}
    assert {phrase: with_article(phrase) for phrase in expected} == expected


def test_a_sheet_marks_hits_and_misses():
    image, target = Image.new("RGB", (128, 96), (90, 90, 90)), np.zeros((96, 128), bool)
    target[20:60, 30:90] = True
    asked = [Question(image, "the patch", target)] * 2
    sheet = sheets.picture_sheet(asked, {"before": [~target] * 2, "after": [target] * 2})
    assert sheet.width >= 3 * sheets.SIDE, "an image is smaller than it should be"
    pixels = np.asarray(sheet).reshape(-1, 3)
    for colour in sheets.COLOURS.values():
        assert (pixels == colour).all(1).sum() > 100, f"nothing is marked {colour}"
    assert sheets.verdict(0.91) == "hit, IoU 0.91" and sheets.verdict(0.2) == "miss, IoU 0.20"


def test_a_clip_sheet_has_truth_and_prediction_of_every_frame():
    frames, truth = [Image.new("RGB", (64, 64))] * 6, np.zeros((6, 64, 64), bool)
    truth[:, 10:30, 10:30] = True
    sheet = sheets.clip_sheet(frames, truth, truth, "the patch")
    cell = sheets.SIDE + 2 * sheets.BORDER
    assert sheet.width >= 4 * cell and sheet.height >= 4 * cell, "two rows of truth and two of prediction"


@pytest.mark.parametrize(
    ("minutes", "seconds", "steps"), [(3, 0.5, 360), (3, 60, 20), (1000, 0.5, 5000)], ids=["budget", "least", "most"]
)
def test_steps_of_a_budget(minutes, seconds, steps):
    assert steps_in(minutes, seconds) == steps


def test_a_large_budget_buys_a_larger_image():
    assert image_side(LARGER_FROM - 1, 128) == 128
    assert image_side(LARGER_FROM, 128) == 256


def figures(after: float, constant: float, trained: float) -> dict[str, dict[str, float]]:
    pairs = {"before": 0.1, "after": after, "constant mask": constant, "training photos": trained}
    return {name: {"cIoU": value, "gIoU": value} for name, value in pairs.items()}


@pytest.mark.parametrize(
    ("after", "constant", "trained", "model", "said"),
    [
        (0.5, 0.2, 0.9, "shapes-tiny", "better than a mask that is always the same"),
        (0.1, 0.2, 0.9, "shapes-tiny", "shapes-tiny has seen drawn shapes only"),
        (0.1, 0.2, 0.3, "shapes-tiny", "has not learned its training photos either"),
        (0.1, 0.2, 0.9, "models/real", "Give it more photos"),
    ],
)
def test_the_figures_are_explained(after, constant, trained, model, said):
    assert said in explanation(figures(after, constant, trained), model)


def test_card_and_last_line_have_the_same_figures(tmp_path):
    found, card = figures(0.5, 0.2, 0.9), tmp_path / "README.md"
    card.write_text("# Sa2VA\n\n## Training\n")
    add_figures(card, found, 30)
    text, line = card.read_text(), last_line(found, 30)
    assert text.startswith("# Sa2VA") and "wrote each answer itself" in text
    assert "| after | 0.500 | 0.500 |" in text and "after 0.500 / 0.500" in line
    assert line.startswith("training photos 0.900 / 0.900; held-out cIoU / gIoU over 30 expressions")
