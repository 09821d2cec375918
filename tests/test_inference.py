"""What the predictor promises: the same masks however they are asked for, one at a time or many, short clip or long.

Run: pytest tests/test_inference.py
"""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_talker

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.inference import boxes_of
from sa2va_hf.model.video_modes import VIDEO_MODES

ANSWER = "Sure, it is [SEG]."
TWO = "The dog [SEG] and the cat [SEG]."


def picture(seed: int, size: tuple[int, int] = (100, 60)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


CLIP = [picture(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    """Says ANSWER to everything; its SAM 2 is random, so that masks are no better than noise but all different."""
    return Sa2VAPredictor(tiny_talker(ANSWER), tiny_processor())


def assert_same(a, b, **tolerance):
    assert a.text == b.text
    np.testing.assert_allclose(a.mask_logits, b.mask_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)
    assert a.masks.shape == b.masks.shape
    assert (a.masks != b.masks).mean() < 1e-3 if a.masks.size else True


# ---------------------------------------------------------------- what comes back


def test_answer_and_masks_of_a_picture(predictor):
    p = predictor(image=picture(0), text="Please segment the dog.")
    assert p.text == ANSWER  # the stop word is gone, [SEG] is not
    assert p.masks.dtype == np.bool_ and p.masks.shape == (1, 1, 60, 100)
    assert p.mask_logits.dtype == np.float32 and p.mask_logits.shape == (1, 1, 32, 32)
    assert p.boxes.shape == (1, 1, 4) and p.scores.shape == (1,)
    assert 0 <= p.scores[0] <= 1


def test_generating_and_being_given_the_answer_draw_the_same(predictor):
    for visual in ({"image": picture(0)}, {"video": CLIP}):
        said = predictor(**visual, text="the dog?")
        assert_same(said, predictor.segment(**visual, text="the dog?", answer=said.text))


def test_the_llm_reads_prompt_and_answer_once(predictor):
    lengths: list[int] = []
    hook = predictor.model.watch_states(lambda states: lengths.append(states.shape[1]))
    p = predictor(image=picture(0), text="the dog?")
    hook.remove()
    answer = len(predictor.processor.tokenizer(p.text + "<|im_end|>")["input_ids"])
    assert len(p.masks) == 1
    assert lengths[1:] == [1] * (answer - 1)  # the prompt, then every token but the last: nothing asks for its state


def test_beams_find_the_same_states(predictor):
    """Beams change places while they grow, so their states are found by one more pass."""
    one, two = (predictor(image=picture(0), text="the dog?", num_beams=n) for n in (1, 2))
    assert_same(one, two)


def test_masks_are_the_enlarged_logits_by_way_of_the_input_size(predictor):
    p = predictor.segment(image=picture(1), text="the dog", answer=TWO)
    square = F.interpolate(torch.from_numpy(p.mask_logits), size=(128, 128), mode="bilinear", align_corners=False)
    full = F.interpolate(square, size=(60, 100), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(p.masks, full > 0)


def test_a_seg_that_is_the_very_last_token_has_a_mask():
    predictor = Sa2VAPredictor(tiny_talker("[SEG]"), tiny_processor())
    p = predictor(image=picture(0), text="the dog", max_new_tokens=1)  # no room for the stop token
    assert p.text == "[SEG]"
    assert_same(p, predictor.segment(image=picture(0), text="the dog", answer="[SEG]"))


def test_without_seg_nothing_is_drawn_and_sam_2_rests(predictor):
    calls = count_encoded(predictor)
    p = predictor.segment(video=CLIP, text="Is there a cow?", answer="There is no cow.")
    assert not calls
    assert p.masks.shape == (0, 7, 60, 100) and p.mask_logits.shape == (0, 7, 32, 32)
    assert p.boxes.shape == (0, 7, 4) and p.scores.shape == (0,)


def test_boxes_fit_the_masks_and_are_nan_where_nothing_is():
    masks = np.random.default_rng(0).random((3, 4, 20, 30)) < 0.01
    masks[1, 2] = False
    masks[2, 3] = True
    boxes = boxes_of(masks)
    for i, j in np.ndindex(3, 4):
        y, x = np.nonzero(masks[i, j])
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [np.nan] * 4
        np.testing.assert_array_equal(boxes[i, j], np.float32(expected))
    assert boxes_of(np.zeros((0, 4, 20, 30), bool)).shape == (0, 4, 4)


def test_stop_words_of_several_tokens_end_the_answer_too():
    processor = tiny_processor(template="phi3_chat")
    assert processor.stop_strings == ["<|end|>"]  # the tokenizer knows it as letters only
    predictor = Sa2VAPredictor(tiny_talker(ANSWER, template="phi3_chat"), processor)
    alone = predictor(image=picture(0), text="the dog")
    assert alone.text == ANSWER
    together = predictor(image=[None, picture(0)], text=["What is this?", "the dog"])
    assert [p.text for p in together] == [ANSWER, ANSWER]
    assert_same(together[1], alone)


# ---------------------------------------------------------------- batches and follow-ups


def test_a_batch_is_its_questions_one_by_one(predictor):
    region = np.zeros((60, 100), bool)
    region[:40, :50] = True
    questions = [
        {"image": picture(0), "text": "the dog"},
        {"text": "What is a dog? Say it in many words, so that this question is the longest of them all."},
        {"video": CLIP, "text": "the left one?"},
        {"image": picture(2, (40, 130)), "text": "Segment region1.", "regions": [region.T.repeat(2, 0)[:130, :40]]},
        {"image": picture(3), "text": "And region1?", "regions": [region]},
    ]
    names = ("image", "video", "text", "regions")
    together = predictor(**{name: [question.get(name) for question in questions] for name in names})
    for question, p in zip(questions, together, strict=True):
        assert_same(p, predictor(**question))


def test_a_follow_up_sees_the_picture_and_the_earlier_turns(predictor):
    image, first = picture(0), "Please segment the dog."
    p = predictor(image=image, text=first)
    again = predictor(text="And the cat?", history=p.history)
    assert again.history.turns == ((first, ANSWER), ("And the cat?", ANSWER))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": first}]},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And the cat?"},
        {"role": "assistant", "content": ANSWER},
    ]
    inputs = predictor.processor.apply_chat_template(messages, add_generation_prompt=False)
    with torch.no_grad():
        both = predictor.model(**inputs).pred_masks[0]
    assert len(both) == 2  # the whole conversation has two [SEG]; the answer owns the second
    np.testing.assert_allclose(again.mask_logits, both[1:].numpy(), atol=1e-4)
    alone = predictor(image=image, text="And the cat?")
    assert np.abs(alone.mask_logits - again.mask_logits).max() > 5e-3  # the earlier turn was read


def test_regions_of_a_follow_up_are_counted_on(predictor):
    masks = [np.zeros((60, 100), bool) for _ in range(2)]
    masks[0][:30], masks[1][:, 50:] = True, True
    p = predictor(image=picture(0), text="region1?", regions=masks[:1])
    again = predictor(text="region2?", history=p.history, regions=masks[1:])
    at_once = predictor(image=picture(0), text="region1?", regions=masks)
    assert_same(again, predictor(text="region2?", history=at_once.history))


# ---------------------------------------------------------------- clips


def count_encoded(predictor) -> list[int]:
    """Batch sizes of the image encoder's calls from now on; emptied when the list dies."""
    calls: list[int] = []
    encoder = predictor.model.grounding_encoder.sam2_model.image_encoder
    encoder._forward_pre_hooks.clear()
    encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    return calls


def test_every_frame_is_encoded_once_for_all_objects(predictor):
    calls = count_encoded(predictor)
    p = predictor.segment(video=CLIP, text="all", answer=TWO)
    assert p.masks.shape == (2, 7, 60, 100)
    assert calls == [1] * 7


@pytest.mark.parametrize("video_mode", VIDEO_MODES)
def test_what_several_questions_look_at_is_encoded_once(predictor, video_mode, tmp_path):
    shown, file = picture(4), tmp_path / "a.png"
    picture(5).save(file)
    videos = [CLIP, None, None, CLIP, None, None, CLIP[:4]]
    images = [None, shown, str(file), None, shown, str(file), None]
    answers = [ANSWER, TWO, ANSWER, TWO, ANSWER, "Nothing.", ANSWER]
    questions = [{"text": f"question {number}", "answer": answer} for number, answer in enumerate(answers)]
    calls = count_encoded(predictor)
    together = predictor.segment(
        image=images,
        video=videos,
        text=[question["text"] for question in questions],
        answer=answers,
        video_mode=video_mode,
    )
    assert sum(calls) == 7 + 4 + 2  # two clips and two pictures, of seven questions
    for p, image, video, question in zip(together, images, videos, questions, strict=True):
        assert_same(p, predictor.segment(image=image, video=video, video_mode=video_mode, **question))


def test_a_clip_is_drawn_as_in_training(predictor):
    clip = CLIP[:3]  # as many as the LLM reads, so that one forward pass sees the same
    p = predictor.segment(video=clip, text="all", answer=TWO)
    user = {"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "all"}]}
    chat = [user, {"role": "assistant", "content": TWO}]
    inputs = predictor.processor.apply_chat_template(chat, add_generation_prompt=False)
    with torch.no_grad():
        expected = predictor.model(**inputs)
        counts, frames = torch.tensor([TWO.count("[SEG]")]), torch.tensor([len(clip)])
        prediction, _ = predictor.model.predict_masks(
            expected.seg_embeddings, counts, inputs["grounding_pixel_values"], frames
        )
    np.testing.assert_allclose(p.mask_logits, expected.pred_masks[0].numpy(), atol=1e-4)
    ious, present = (scores.view(-1, len(clip)).mean(1) for scores in prediction.scores.T)
    np.testing.assert_allclose(p.scores, ious.numpy(), atol=1e-4)
    np.testing.assert_allclose(p.object_scores, present.numpy(), atol=1e-4)


def test_the_llm_reads_a_few_frames_evenly(predictor):
    def reads(number_of_frames):
        return predictor.segment(video=CLIP, text="all", answer=ANSWER, num_frames=number_of_frames)

    chosen = [CLIP[number] for number in (0, 3, 6)]
    user = {"role": "user", "content": [{"type": "video", "video": chosen}, {"type": "text", "text": "all"}]}
    chat = [user, {"role": "assistant", "content": ANSWER}]
    inputs = predictor.processor.apply_chat_template(chat, add_generation_prompt=False)
    with torch.no_grad():
        expected = predictor.model(**inputs).pred_masks[0]  # on frames 0, 3 and 6
    np.testing.assert_allclose(reads(3).mask_logits[:, ::3], expected.numpy(), atol=1e-4)
    assert np.abs(reads(3).mask_logits - reads(5).mask_logits).max() > 5e-3
    assert_same(reads(7), reads(50))  # a short clip is read whole


class Watched(Sequence):
    """A long clip that makes its frames when they are asked for and notes how many live at once."""

    def __init__(self, length: int) -> None:
        self.length, self.frames, self.most = length, [], 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < self.length:
            raise IndexError(number)
        frame = picture(number, (50, 40))
        self.frames.append(weakref.ref(frame))
        self.most = max(self.most, sum(frame() is not None for frame in self.frames))
        return frame


def test_frames_of_a_long_clip_are_not_kept(predictor):
    clip = Watched(40)
    p = predictor(video=clip, text="the dog")
    assert p.masks.shape == (1, 40, 40, 50)
    assert clip.most <= 8, f"{clip.most} frames at once; the LLM reads 5"


def test_frames_as_list_folder_and_file_are_one(predictor, tmp_path):
    for number, frame in enumerate(CLIP):
        frame.save(tmp_path / f"{number}.png")
    from_list = predictor(video=CLIP, text="the dog")
    assert_same(predictor(video=tmp_path, text="the dog"), from_list)
    assert_same(predictor(video=[tmp_path / f"{number}.png" for number in range(7)], text="the dog"), from_list)


# ---------------------------------------------------------------- loading


def test_loading_picks_the_precision(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    loaded = Sa2VAPredictor.from_pretrained(tmp_path, device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    half = Sa2VAPredictor.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in half.model.grounding_encoder.parameters()} == {torch.float32}
    a, b = (p.segment(image=picture(0), text="the dog", answer=ANSWER) for p in (loaded, half))
    assert np.isfinite(b.mask_logits).all()
    assert np.abs(a.mask_logits - b.mask_logits).mean() < 0.2 * a.mask_logits.std() + 0.05


@pytest.mark.slow
def test_compiling_changes_nothing_but_the_speed(predictor):
    compiled = Sa2VAPredictor(tiny_talker(ANSWER), tiny_processor()).compile(backend="aot_eager")
    for visual in ({"image": picture(0)}, {"video": CLIP[:3]}):
        question = visual | {"text": "the dog", "answer": TWO}
        assert_same(compiled.segment(**question), predictor.segment(**question))
    names = [set(p.model.state_dict()) for p in (compiled, predictor)]
    assert names[0] == names[1]  # it still saves as it was


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": picture(0), "video": CLIP, "text": "a"}, "one of image, video"),
        ({"image": picture(0)}, "text: expected a text that is not empty"),
        ({"image": picture(0), "text": "  "}, "text: expected a text that is not empty"),
        ({"text": []}, "text: expected"),
        ({"text": ["a", "b"], "image": picture(0)}, "image: text is a list of 2, .* got Image"),
        ({"text": ["a", "b"], "image": [picture(0)]}, "image: text is a list of 2, .* got a list of 1"),
        ({"text": "a", "video": []}, "expected at least one frame"),
        ({"text": "a", "video": [picture(0), picture(1, (9, 9))]}, "one size"),
        ({"text": "a", "image": "nowhere.png"}, "nowhere.png"),
        ({"text": "a", "image": picture(0), "regions": np.ones((60, 100), bool)}, r"regions: .*\(H, W\)"),
        ({"text": "a", "image": picture(0), "regions": [np.ones((5, 5), bool)]}, r"\(5, 5\).*\(60, 100\)"),
        ({"text": "a", "regions": [np.ones((5, 5), bool)]}, "region needs one image"),
        ({"text": "a", "video": CLIP, "video_mode": "psychic"}, "video_mode: expected one of .*'per_frame'.*psychic"),
    ],
)
def test_a_mistake_is_named(predictor, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor(**arguments)


def test_a_follow_up_brings_its_picture(predictor):
    p = predictor(image=picture(0), text="the dog")
    with pytest.raises(ValueError, match="brings its own along"):
        predictor(image=picture(0), text="the cat", history=p.history)


def test_segment_needs_an_answer_per_question(predictor):
    with pytest.raises(ValueError, match="answer: text is a list of 2"):
        predictor.segment(image=[picture(0)] * 2, text=["a", "b"], answer=[ANSWER])
    with pytest.raises(ValueError, match="answer: expected a text"):
        predictor.segment(image=picture(0), text="a")


# ---------------------------------------------------------------- arguments, limits, streams, regions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *[({"num_frames": value}, "num_frames: expected a whole number from 1 on") for value in (0, -1, 2.5, True)],
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number from 1 on"),
        ({"max_objects": 0}, "max_objects: expected a whole number from 1 on"),
    ],
)
def test_numbers_are_checked_by_name(predictor, given, message):
    with pytest.raises(ValueError, match=message):
        predictor(video=CLIP, text="the dog", **given)
    if "num_frames" in given:
        with pytest.raises(ValueError, match=message):
            Sa2VAPredictor(predictor.model, predictor.processor, **given)


def test_a_device_that_is_not_there_is_one_line():
    for device in ("gpu", "cuda" if not torch.cuda.is_available() else "cuda:x"):
        with pytest.raises(ValueError, match="^device: ") as caught:
            Sa2VAPredictor.from_pretrained("shapes-tiny", device=device)
        assert "\n" not in str(caught.value)


def test_only_the_first_objects_get_masks(predictor, caplog, monkeypatch):
    answer = " ".join(["[SEG]"] * 4)
    question = {"image": picture(0), "text": "all of them", "answer": answer}
    every = predictor.segment(**question)
    two = predictor.segment(**question, max_objects=2)
    assert every.masks.shape[0] == 4 and two.masks.shape[0] == 2 and not caplog.records
    np.testing.assert_array_equal(two.masks, every.masks[:2])
    monkeypatch.setattr("sa2va_hf.inference.MAX_OBJECTS", 3)
    assert predictor.segment(**question).masks.shape[0] == 3
    assert "an answer has 4 [SEG]; the first 3 get masks (max_objects)" in caplog.text


@pytest.mark.parametrize("mode", sorted(VIDEO_MODES))
def test_a_stream_gives_the_masks_of_the_whole_clip_in_order(predictor, mode):
    asked = {"video": CLIP, "text": "Please segment the dog.", "num_frames": 3, "video_mode": mode}
    whole = predictor(**asked)
    steps = list(predictor.stream(**asked))
    assert [index for index, _, _ in steps] == list(range(7))
    np.testing.assert_array_equal(np.stack([masks for _, masks, _ in steps], axis=1), whole.masks)
    np.testing.assert_allclose(np.mean([scores for _, _, scores in steps], axis=0), whole.scores, rtol=1e-5)
    forced = next(predictor.stream(**asked, answer=ANSWER))
    np.testing.assert_array_equal(forced[1], whole.frame(0))
    assert list(predictor.stream(**asked, answer="There is none.")) == []


def test_regions_are_described_one_by_one(predictor):
    regions = [np.zeros((60, 100), bool) for _ in range(3)]
    for mask, (rows, columns) in zip(regions, ((60, 100), (20, 100), (60, 40)), strict=True):
        mask[:rows, :columns] = True
    captions = predictor.describe(image=picture(0), regions=regions, batch_size=2)
    assert captions == ["Sure, it is ."] * 3  # what this model says of everything, without [SEG]
    seen = []
    answer = predictor.model.answer
    predictor.model.answer = lambda processor, inputs, **options: (
        seen.append(inputs) or answer(processor, inputs, **options)
    )
    try:
        predictor.describe(image=picture(0), regions=regions, batch_size=2)
        for wrong, message in (
            ([], "regions: expected at least one mask"),
            ([*regions, regions[0][:50]], r"regions\[3\]: expected .*, \(60, 100\), got \(50, 100\)"),
            ([*regions, np.zeros((60, 100), bool)], r"regions\[3\]: the region mask covers no cell"),
        ):
            with pytest.raises(ValueError, match=message):
                predictor.describe(image=picture(0), regions=wrong, batch_size=2)
    finally:
        del predictor.model.answer
    assert [len(inputs["region_masks"]) for inputs in seen] == [2, 1], "all are checked before any is described"
