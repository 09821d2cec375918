"""What a Sa2VA offers, with each grounding encoder: joined batches, what is trained, video modes, boxes and prompts.

Run: pytest tests/model/test_grounding_options.py
"""

import numpy as np
import pytest
import torch
from examples import example, picture
from sam3s import SIDE, tiny_sam3_model
from tiny import loud, tiny_model, tiny_processor

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.sources.folder_parts import Shapes
from sa2va_hf.model.answering import Answer
from sa2va_hf.model.video_modes import VIDEO_MODES
from sa2va_hf.pseudo_labels import prompted_mask
from sa2va_hf.training.sa2va.flops import StepFlops

ENCODERS = {"sam2": (tiny_model, 128), "sam3": (tiny_sam3_model, SIDE)}
SIZE = (60, 100)  # height and width of `picture`
TWO = "The dog [SEG] and the cat [SEG]."
BOX, OTHER = [10.0, 5.0, 40.0, 30.0], [30.0, 20.0, 90.0, 50.0]


@pytest.fixture(scope="module", params=ENCODERS)
def made(request):
    if request.param == "sam3":
        pytest.importorskip("transformers.models.sam3_tracker_video", reason="this transformers has no SAM 3")
    build, side = ENCODERS[request.param]
    return loud(build(num_points=0)), tiny_processor(grounding_image_size=side)


@pytest.fixture(scope="module")
def predictor(made):
    return Sa2VAPredictor(*made)


@pytest.fixture(scope="module")
def clip():
    return [picture(seed) for seed in range(4)]


def learn(made, join, **options):
    model, processor = made
    examples = [example(kind, seed) for seed, kind in enumerate(("clip", "two objects", "text"))]
    inputs = Sa2VACollator(processor, join=join)(examples)
    inputs.pop("sample_ids")
    model.zero_grad()
    output = model(**inputs, **options)
    output.loss.backward()
    reached = {n for n, one in model.grounding_encoder.named_parameters() if one.grad is not None}
    return output, reached, inputs


def test_joined_batches(made):
    model, _ = made
    model.train().freeze_for_training()
    padded, joined = learn(made, False)[0], learn(made, True, return_logits=False)[0]
    for name in ("loss", "lm_loss", "mask_loss", "dice_loss"):
        torch.testing.assert_close(getattr(joined, name), getattr(padded, name), rtol=1e-5, atol=1e-6)
    assert joined.mask_loss > 0
    assert StepFlops(model).count(learn(made, True)[2]) > 0
    model.eval()


@pytest.mark.parametrize("grounding", ["none", "decoder", "all"])
def test_what_is_trained_gets_a_gradient_and_nothing_else(made, grounding):
    model, _ = made
    model.train().freeze_for_training(grounding)
    try:
        _, reached, _ = learn(made, False)
        wanted = {name for name, one in model.grounding_encoder.named_parameters() if one.requires_grad}
        assert reached == wanted and bool(wanted) == (grounding != "none")
    finally:
        model.zero_grad(), model.eval().freeze_for_training()


@pytest.mark.parametrize("mode", VIDEO_MODES)
def test_video_modes(predictor, clip, mode):
    found = predictor.segment(video=clip, text="What?", answer=TWO, video_mode=mode)
    side = predictor.model.grounding_encoder.mask_size
    assert found.masks.shape == (2, 4, *SIZE) and found.mask_logits.shape == (2, 4, side, side)
    assert found.scores.shape == (2,) and np.isfinite(found.scores).all()


def test_a_batch_is_its_pictures_one_by_one(predictor, clip):
    together = predictor.segment(image=clip[:2], text=["What?"] * 2, answer=["It is [SEG].", TWO])
    for found, (image, answer) in zip(together, zip(clip, ["It is [SEG].", TWO], strict=False), strict=True):
        alone = predictor.segment(image=image, text="What?", answer=answer)
        np.testing.assert_allclose(found.mask_logits, alone.mask_logits, rtol=1e-3, atol=1e-3)


def test_boxes_and_clicks(predictor, clip):
    found = predictor.segment_boxes(image=clip[0], boxes=[BOX, None, OTHER])
    assert found.masks.shape == (3, 1, *SIZE) and not found.masks[1].any()
    mask, _ = prompted_mask(predictor, clip[0], Shapes(boxes=[BOX]))
    np.testing.assert_array_equal(found.masks[0, 0], mask)
    assert prompted_mask(predictor, clip[0], Shapes(points=[(20, 20, True)]))[0].shape == SIZE
    followed = predictor.segment_boxes(video=clip, boxes={0: [BOX, OTHER], 2: [None, BOX]})
    assert followed.masks.shape == (2, 4, *SIZE)


def test_locate(predictor, clip, monkeypatch):
    states = torch.zeros(0, predictor.model.config.hidden_size)
    said = Answer(*["<box>[[100, 200, 600, 700]]</box>"] * 2, states)
    monkeypatch.setattr(predictor.model, "answer", lambda processor, inputs, **options: [said])
    found = predictor.locate(image=clip[0], text="the dog", masks=True)
    assert found.masks.shape == (1, 1, *SIZE) and np.isfinite(found.boxes).all()
