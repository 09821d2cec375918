"""Boxes that a model writes, and masks of boxes, with a model of random weights.

Run: pytest tests/locating/test_predictions.py
"""

import numpy as np
import pytest
from dictated import said
from PIL import Image
from tiny import tiny_model, tiny_processor

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.data.sources.folder_parts import Shapes
from sa2va_hf.pseudo_labels import prompted_mask

SIZE = (71, 53)
BOX, OTHER = (10.0, 5.0, 40.0, 30.0), (30.0, 20.0, 65.0, 50.0)


@pytest.fixture(scope="module")
def predictor():
    return Sa2VAPredictor(tiny_model(), tiny_processor())


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)) for _ in range(5)]


def test_masks_of_boxes_on_a_picture(predictor, clip):
    found = predictor.segment_boxes(image=clip[0], boxes=[BOX, None, OTHER])
    assert found.masks.shape == (3, 1, *SIZE[::-1]) and not found.masks[1].any()
    for number, box in ((0, BOX), (2, OTHER)):
        mask, score = prompted_mask(predictor, clip[0], Shapes(boxes=[box]))
        np.testing.assert_array_equal(found.masks[number, 0], mask)
        assert found.scores[number] == pytest.approx(score, abs=1e-5)


def test_masks_of_boxes_on_a_clip(predictor, clip):
    found = predictor.segment_boxes(video=clip, boxes={1: [BOX, OTHER], 3: [None, BOX]})
    assert found.masks.shape == (2, 5, *SIZE[::-1]) and found.mask_logits.shape[:2] == (2, 5)
    assert not found.masks[0, 3:].any() and not found.mask_logits[0, 3:].any()
    # the objects of a frame are followed together, each as if it were alone; and before frame 3 nothing knows of it
    alone = predictor.segment_boxes(video=clip, boxes={1: [OTHER]})
    np.testing.assert_allclose(found.mask_logits[1, :3], alone.mask_logits[0, :3], rtol=1e-4, atol=1e-4)
    # time runs backward from frame 1 to frame 0 as it does forward
    mirrored = predictor.segment_boxes(video=clip[:2][::-1], boxes={0: [BOX]})
    np.testing.assert_allclose(mirrored.mask_logits[0, 1], found.mask_logits[0, 0], rtol=1e-4, atol=1e-4)


def test_boxes_that_are_written_for_a_picture(predictor, clip, monkeypatch):
    said(predictor, monkeypatch, "<ref>dog</ref><box>[[100, 200, 300, 400], [500, 500, 500, 600]]</box>")
    found = predictor.locate(image=clip[0], text="the dog")
    np.testing.assert_allclose(found.boxes[0, 0], [7.1, 10.6, 21.3, 21.2], rtol=1e-5)
    assert np.isnan(found.boxes[1]).all()  # a box without area keeps its place
    assert found.masks.shape == (0, 1, *SIZE[::-1])
    assert found.problems == ("frame 0, object 1: a box without area",)
    (question, answer), *_ = found.history.turns
    assert "<ref>the dog</ref>" in question and answer == found.text


def test_boxes_that_are_written_for_a_clip(predictor, clip, monkeypatch):
    said(predictor, monkeypatch, "<box>[[100, 200, 600, 700]]</box>", "I see <box>[[1, 2]]</box>", "nothing")
    found = predictor.locate(video=clip, text="the dog", num_frames=3, masks=True)
    assert found.boxes.shape == (1, 5, 4) and np.isfinite(found.boxes[0]).all(-1).tolist() == [True] + [False] * 4
    assert found.masks.shape == (1, 5, *SIZE[::-1]) and len(found.problems) == 2
    assert found.text.count("\n") == 2


def test_a_model_trained_for_boxes_is_asked_as_in_its_training(predictor, clip, monkeypatch):
    monkeypatch.setattr(predictor.processor, "box_form", "spatial")
    said(predictor, monkeypatch, "It is at <box>0.1,0.2,0.3,0.4<next><no_box><next>0.5,0.5,0.9,0.9</box>.")
    text = "the first one to the left of [100, 200, 300, 400]"
    found = predictor.locate(video=clip, text=text, num_frames=3)
    assert np.isfinite(found.boxes[0]).all(-1).tolist() == [True, False, False, False, True] and not found.problems
    question = found.history.turns[0][0]
    reference = "<box>0.1000,0.2000,0.3000,0.4000</box>"
    assert question == f"Give the bounding box of the first one to the left of {reference} in every frame."


def test_an_answer_that_is_cut_gives_the_frames_that_can_be_read(predictor, clip, monkeypatch):
    monkeypatch.setattr(predictor.processor, "box_form", "spatial")
    said(predictor, monkeypatch, "It is at <box>0.1,0.2,0.3,0.4<next>0.5,0.5,0.9")
    found = predictor.locate(video=clip, text="the dog", num_frames=3)
    assert np.isfinite(found.boxes[0]).all(-1).tolist() == [True, False, False, False, False]
    assert any("cut at max_new_tokens" in problem for problem in found.problems)


@pytest.mark.parametrize("form", [None, "spatial"])  # asked frame by frame, and about all frames at once
def test_a_batch_is_answered_as_each_text_alone(predictor, clip, monkeypatch, form):
    monkeypatch.setattr(predictor.processor, "box_form", form)
    written = ["<box>[[100, 200, 600, 700]]</box>", "nothing", "<box>[[1, 2, 300, 400]]</box>", "<box>[[1, 2]]</box>"]
    looks = {"text": ["the dog", "it", "a cat"], "image": [None, clip[0], None], "video": [clip[:2], None, clip[2:3]]}
    calls = said(predictor, monkeypatch, *written)
    together = predictor.locate(**looks)
    assert len(calls) == 1
    said(predictor, monkeypatch, *written)
    alone = [predictor.locate(*look, text) for text, *look in zip(*looks.values(), strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert (one.text, one.problems, one.history.turns) == (other.text, other.problems, other.history.turns)
    assert [one.boxes.shape[1] for one in together] == [2, 1, 1]


BAD = [
    (lambda p, c: p.locate(image=c[0], text="left of [9, 9, 9, 20]"), r"\[9, 9, 9, 20\]: expected a box .* x0 < x1"),
    (lambda p, c: p.locate(image=c[0], text="left of [9, 9, 1200, 20]"), "in thousandths of the picture's sides"),
    (lambda p, c: p.locate(image=c[0], text=" "), r"text: expected a text that is not empty .* got \[' '\]"),
    (lambda p, c: p.locate(text="dog"), "give one of image and video"),
    (
        lambda p, c: p.locate(video=c, text="dog", num_frames=-1),
        "num_frames: expected a whole number from 1",
    ),
    (lambda p, c: p.locate(image=c, text=["dog", "cat"]), "image: text is a list of 2, so expected None or a list of"),
    (lambda p, c: p.segment_boxes(video=c, boxes={7: [BOX]}), "the clip has frames 0 to 4, got boxes on frames 7"),
    (lambda p, c: p.segment_boxes(video=c, boxes={}), "expected boxes on at least one frame, got none"),
    (lambda p, c: p.segment_boxes(video=c, boxes=[BOX]), r"expected \{frame: \[box, ...\]\} for a video, got list"),
    (lambda p, c: p.segment_boxes(image=c[0], boxes=[(80, 5, 90, 9)]), "has no area in a picture of 71 x 53"),
    (lambda p, c: p.segment_boxes(image=c[0], boxes=[(9, 5, 3, 9)]), "frame 0, object 0: .* has no area"),
    (lambda p, c: p.segment_boxes(image=c[0], boxes=[(np.nan, 5, 3, 9)]), "of finite numbers"),
    (lambda p, c: p.segment_boxes(image="no/such.png", boxes=[BOX]), "no/such.png: cannot be read as a picture"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_one_line(predictor, clip, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(predictor, clip)
    assert "\n" not in str(caught.value)
