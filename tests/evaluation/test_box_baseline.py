"""A box that the LLM writes in its family's manner is drawn by SAM 2, and followed through a clip.

Run: pytest tests/evaluation/test_box_baseline.py
"""

import json
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawer import CLIPS, PICTURES, Drawer, given
from PIL import Image
from records import clip, picture, sample
from tiny import tiny_model, tiny_processor
from transformers import LogitsProcessor

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.sources.folder_parts import Shapes
from sa2va_hf.evaluation import box_baseline
from sa2va_hf.evaluation.benchmarks import load_items
from sa2va_hf.evaluation.box_baseline import BOX_STYLES, read_boxes
from sa2va_hf.evaluation.following import follow
from sa2va_hf.evaluation.items import Settings
from sa2va_hf.pseudo_labels import prompted_mask

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate.py"
SETTINGS = Settings(baseline="box", box_style="internvl")
BOX = (4.0, 3.0, 20.0, 15.0)  # of a picture of 40 x 30
WRITTEN = "<ref>it</ref><box>[[100, 100, 500, 500]]</box>"


class Writer(Drawer):
    """Says one text after the other, whatever it is shown; SAM 2 is the tiny one."""

    def __init__(self, *texts):
        super().__init__(None)
        self.texts, self.model, self.processor = list(texts), tiny_model(seed=4), tiny_processor()

    def _prediction(self, frames):
        return SimpleNamespace(text=self.texts.pop(0))


def ask(predictor, *records, task=PICTURES, settings=SETTINGS):
    items, _ = load_items(given(task, *records), None, settings)
    return items, task.ask(predictor, items, settings)


# ---------------------------------------------------------------- what families write


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("internvl", WRITTEN),
        ("qwen3_vl", '```json\n[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "it"}\n]\n```'),
        ("qwen2_5_vl", '```json\n[{"bbox_2d": [%d, %d, %d, %d], "label": "it"}]\n```'),
    ],
)
def test_a_family_writes_boxes_in_its_own_manner(style, text):
    predictor = SimpleNamespace(processor=tiny_processor(style))
    if style == "qwen2_5_vl":  # in pixels of the picture that it gets
        height, width = resized(predictor.processor)
        assert (height, width) != (30, 40)
        text %= tuple(round(value) for value in (0.1 * width, 0.1 * height, 0.5 * width, 0.5 * height))
    (box,) = read_boxes(text, Image.new("RGB", (40, 30)), style, predictor)
    assert np.allclose(box, BOX, atol=0.3)
    assert read_boxes("[10, 10, 10, 40] or [1, 2, 3]", Image.new("RGB", (40, 30)), style, predictor) == []


def resized(processor):
    pixels = processor.pictures.inputs([([Image.new("RGB", (40, 30))], False)])
    *_, rows, columns = pixels["image_grid_thw"][0].tolist()
    return rows * 14, columns * 14


class Dictated(LogitsProcessor):
    """Has the LLM write a text, whatever it would say."""

    def __init__(self, tokenizer, text):
        self.ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        self.written = 0

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, -torch.inf)
        scores[:, self.ids[self.written]] = 0
        self.written += 1
        return scores


@pytest.mark.parametrize("backbone", list(BOX_STYLES))
def test_what_an_llm_writes_becomes_a_mask(backbone, tmp_path):
    """The whole way with the real parts of every family, in small; only the words are given to the LLM."""
    written = WRITTEN if backbone == "internvl" else '{"bbox_2d": [10, 10, 60, 50]}'
    predictor = Sa2VAPredictor(tiny_model(seed=4, backbone=backbone), tiny_processor(backbone))
    dictated = Dictated(predictor.processor.tokenizer, written)
    predictor.model.generate_new_tokens = partial(predictor.model.generate_new_tokens, logits_processor=[dictated])
    settings = Settings(baseline="box", box_style=backbone)
    record = sample("a", picture(tmp_path / "a.png", (96, 64)), (96, 64))
    (item,), (answer,) = ask(predictor, record, settings=settings)
    assert item.question == BOX_STYLES[backbone].prompt.format("it")
    assert answer.text == written
    shown = load_frames(record, [0])[0]
    boxes = read_boxes(written, shown, backbone, predictor)
    expected, _ = prompted_mask(predictor, shown, Shapes(boxes=boxes))
    np.testing.assert_array_equal(answer.mask(item, 0), expected)
    assert answer.more == {"boxes": [list(boxes[0])], "frame": 0, "said": True}


# ---------------------------------------------------------------- pictures and clips


def test_an_answer_without_a_box_is_an_empty_mask(tmp_path):
    records = [sample(name, picture(tmp_path / "a.png")) for name in "ab"]
    items, answers = ask(Writer("I cannot see it.", WRITTEN), *records)
    assert [answer.more["said"] for answer in answers] == [False, True]
    figures = PICTURES.score(items[0], answers[0])
    assert figures["nothing_said"] and not figures["said"] and figures["counts"][0] == 0
    assert answers[1].more["boxes"] == [list(BOX)]


def test_in_a_clip_the_first_box_is_followed(tmp_path, monkeypatch):
    """Frames are shown until one has a box; from there on SAM 2's memory has it, before there is nothing."""
    mask = np.zeros((30, 40), bool)
    mask[3:15, 4:20] = True
    monkeypatch.setattr(box_baseline, "prompted_mask", lambda predictor, image, shapes: (mask, 0.9))
    record = clip("c", [picture(tmp_path / f"{number}.png") for number in range(5)])
    settings = Settings(baseline="box", box_style="internvl", num_frames=3)  # frames 0, 2 and 4
    writer = Writer("no", WRITTEN)
    (item,), (answer,) = ask(writer, record, task=CLIPS, settings=settings)
    assert len(writer.asked) == 2 and answer.more["frame"] == 2 and answer.text == WRITTEN
    assert [len(track) for track in answer.masks] == [5]
    np.testing.assert_array_equal(answer.mask(item, 2), mask)
    assert not answer.mask(item, 0).any() and not answer.mask(item, 1).any()
    (expected,) = follow(writer, record, [{2: mask}])
    assert answer.masks[0][3:] == expected[3:]
    (item,), (answer,) = ask(Writer("no", "no", "no"), record, task=CLIPS, settings=settings)
    assert answer.masks == [] and not answer.more["said"] and CLIPS.score(item, answer)["score"] == 0


def test_pictures_and_clips_wait_for_nobody(tmp_path):
    """Only those without a box are asked again, in one batch."""
    frames = [picture(tmp_path / f"{number}.png") for number in range(3)]
    writer = Writer("no", WRITTEN, WRITTEN, WRITTEN)
    _, answers = ask(writer, *(clip(name, frames) for name in "abc"), task=CLIPS)
    assert [answer.more["frame"] for answer in answers] == [1, 0, 0]
    assert [answer.more["said"] for answer in answers] == [True, True, True]


# ---------------------------------------------------------------- errors and the command


def test_settings_that_make_no_sense_are_errors(tmp_path):
    with pytest.raises(ValueError, match="baseline: expected one of None, box"):
        Settings(baseline="point")
    with pytest.raises(ValueError, match="needs mode 'generate', got 'teacher'"):
        Settings(baseline="box", mode="teacher")
    with pytest.raises(ValueError, match="box_style: expected one of internvl, .* got None"):
        ask(Writer(), sample("a", picture(tmp_path / "a.png")), settings=Settings(baseline="box"))


def test_the_command_asks_in_the_manner_of_the_model(tmp_path, monkeypatch, capsys):
    output = tmp_path / "m.json"
    data = ["--benchmark", "shapes", "--option", "count=1", "--option", "clips=1", "--limit", "6"]
    options = ["--baseline", "box", "--device", "cpu", "--max_new_tokens", "4", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", "shapes-tiny", *data, *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads(output.read_text())
    assert result["asked"]["prompts"] == [BOX_STYLES["internvl"].prompt]
    assert result["recipe"]["settings"]["box_style"] == "internvl"
    assert result["metrics"]["emission"] == 0  # it has not learned to write boxes
    again = ["--predictions", str(tmp_path / "m.predictions.arrow"), "--output", str(tmp_path / "again.json")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *data, *again])  # that it was a baseline stands in the file
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (tmp_path / "again.json").read_bytes() == output.read_bytes()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--predictions", "p.arrow", *data, *options])
    with pytest.raises(SystemExit, match="--baseline asks a model"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
