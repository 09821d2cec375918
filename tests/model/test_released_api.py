"""`predict_forward`: the released code's inputs and outputs, in the `"memory"` mode of the predictor.

Run: pytest tests/model/test_released_api.py
"""

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_talker

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor
from sa2va_hf.model.released_api import read_history

ANSWER = "Sure, it is [SEG]."
STOP = "<|im_end|>"


def picture(seed: int, size: tuple[int, int] = (100, 60)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


CLIP = [picture(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    return Sa2VAPredictor(tiny_talker(ANSWER), tiny_processor())


def ask(predictor: Sa2VAPredictor, **question) -> dict:
    return predictor.model.predict_forward(tokenizer=None, processor=predictor.processor, **question)


@pytest.mark.parametrize("visual", [{"image": CLIP[0]}, {"video": CLIP}, {"video": CLIP[:3]}])
def test_it_answers_and_draws_as_the_memory_mode(predictor, visual):
    out = ask(predictor, text="<image>\nPlease segment the dog.", **visual)
    expected = predictor(text="Please segment the dog.", video_mode="memory", **visual)
    assert out["prediction"] == ANSWER + STOP  # special tokens are kept, as there
    assert len(out["prediction_masks"]) == 1
    mask = out["prediction_masks"][0]
    assert mask.dtype == np.bool_ and mask.shape == (len(visual.get("video", [0])), 60, 100)
    np.testing.assert_array_equal(mask, expected.masks[0])


def test_regions_come_in_one_array(predictor):
    masks = np.zeros((2, 60, 100), bool)
    masks[0, :30], masks[1, :, 50:] = True, True
    out = ask(predictor, image=CLIP[0], text="<image>\nSegment region2.", mask_prompts=[masks])
    expected = predictor(image=CLIP[0], text="<image>\nSegment region2.", regions=list(masks), video_mode="memory")
    np.testing.assert_array_equal(out["prediction_masks"][0], expected.masks[0])


def test_text_alone(predictor):
    out = ask(predictor, text="<image>What is this?")  # a stray <image> is deleted, as there
    assert out["prediction"] == ANSWER + STOP and out["prediction_masks"][0].size == 0


def test_the_history_goes_round(predictor):
    first = ask(predictor, image=CLIP[0], text="<image>\nPlease segment the dog.")
    again = ask(predictor, image=CLIP[0], text="And the cat?", past_text=first["past_text"])
    p = predictor(image=CLIP[0], text="Please segment the dog.", video_mode="memory")
    expected = predictor(text="And the cat?", history=p.history, video_mode="memory")
    np.testing.assert_array_equal(again["prediction_masks"][0], expected.masks[0])
    questions = [("<image>\nPlease segment the dog.", ANSWER), ("And the cat?", ANSWER)]
    assert read_history(again["past_text"], "qwen_chat") == questions


def test_a_history_that_writes_every_picture_token_out_is_read_too(predictor):
    first = ask(predictor, video=CLIP, text="<image>\nPlease segment the dog.")["past_text"]
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    written_out = first.replace("<image>", "\n".join([block] * 5))
    assert written_out != first
    a, b = (ask(predictor, video=CLIP, text="And?", past_text=past) for past in (first, written_out))
    np.testing.assert_array_equal(a["prediction_masks"], b["prediction_masks"])


def test_a_seg_as_the_very_last_token_keeps_its_mask(predictor, monkeypatch):
    talker = tiny_talker("[SEG]")
    monkeypatch.setattr("sa2va_hf.model.released_api.MAX_NEW_TOKENS", 1)
    out = talker.predict_forward(image=CLIP[0], text="the dog", processor=predictor.processor)
    assert out["prediction"] == "[SEG]" and len(out["prediction_masks"]) == 1


def test_the_processor_is_found_beside_the_weights_or_made_of_the_tokenizer(predictor, tmp_path):
    usual = tiny_processor(max_tiles=12)  # a tokenizer does not say how many tiles; 12 in all releases
    expected = predictor.model.predict_forward(image=CLIP[0], text="the dog", processor=usual)
    made = predictor.model.predict_forward(image=CLIP[0], text="the dog", tokenizer=usual.tokenizer)
    np.testing.assert_array_equal(made["prediction_masks"], expected["prediction_masks"])
    expected = ask(predictor, image=CLIP[0], text="the dog")
    predictor.model.save_pretrained(tmp_path)
    predictor.processor.save_pretrained(tmp_path)
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    found = loaded.predict_forward(image=CLIP[0], text="the dog", tokenizer=None)
    assert (
        np.mean(found["prediction_masks"][0] != expected["prediction_masks"][0]) < 0.01
    )  # logits of 0, here and there
    assert not loaded.training


def test_training_mode_is_left_as_it_was(predictor):
    predictor.model.train()
    try:
        ask(predictor, video=CLIP, text="the dog")
        assert predictor.model.training
    finally:
        predictor.model.eval()


PAST = "<|im_start|>user\n<image>\nthe dog<|im_end|>\n<|im_start|>assistant\nSure.<|im_end|>\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "text: expected a question"),
        ({"text": "a", "image": CLIP[0], "video": CLIP}, "image or video, not both"),
        ({"text": "a", "video": []}, "at least one frame"),
        ({"text": "a", "video": [picture(0), picture(1, (9, 9))]}, "one size"),
        ({"text": "a", "past_text": PAST}, "give its image or video again"),
        ({"text": "<image>\na", "past_text": PAST, "image": CLIP[0]}, "belongs to the first turn"),
        ({"text": "a", "past_text": "Hello", "image": CLIP[0]}, "past_text: expected turns.*'Hello' at character 0"),
        ({"text": "a", "past_text": PAST[:-1], "image": CLIP[0]}, "past_text: expected turns"),
        ({"text": "a", "image": CLIP[0], "mask_prompts": [np.ones((60, 100), bool)]}, r"\(regions, H, W\)"),
        ({"text": "a", "image": CLIP[0], "mask_prompts": [np.ones((1, 5, 5), bool)]}, r"\(5, 5\).*\(60, 100\)"),
        ({"text": "a", "mask_prompts": [np.ones((1, 5, 5), bool)]}, "regions of an image"),
    ],
)
def test_a_mistake_is_named(predictor, arguments, message):
    with pytest.raises(ValueError, match=message):
        ask(predictor, **arguments)


def test_without_processor_and_tokenizer_the_way_out_is_named():
    with pytest.raises(ValueError, match="processor.*tokenizer"):
        tiny_model().predict_forward(text="a")
