"""What a user of transformers types on the first day, each line with its right value.

Run: pytest tests/model/test_idioms.py
"""

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_talker
from transformers import TextStreamer, pipeline

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.model.configuration_sa2va import CONTROL_TOKENS
from sa2va_hf.model.modeling_sa2va import Sa2VAOutput

ANSWER = "Sure, it is [SEG]."
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8)).resize((100, 60))
PROCESSOR = tiny_processor()


@pytest.fixture(scope="module")
def model() -> Sa2VAForConditionalGeneration:
    return tiny_talker(ANSWER)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talker")
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def chat(text="What is this?", **picture):
    content = [{"type": "image", **(picture or {"image": PICTURE})}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def same(inputs, others):
    assert inputs.keys() == others.keys()
    assert all(torch.equal(inputs[name], others[name]) for name in inputs)


# ---------------------------------------------------------------- inputs


def test_a_picture_comes_under_every_key(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    wanted = PROCESSOR.apply_chat_template(chat())
    path = str(tmp_path / "a.png")
    for item in (
        {"url": path},
        {"path": path},
        {"image": path},
        {"base64": text},
        {"url": f"data:image/png;base64,{text}"},
    ):
        same(PROCESSOR.apply_chat_template(chat(**item)), wanted)
    with pytest.raises(ValueError, match="an item of type image needs one of image, url, path, base64, got"):
        PROCESSOR.apply_chat_template(chat(picture=PICTURE))


@pytest.mark.parametrize("written", ["as a tag", "as tokens", "not at all"])
def test_processor_of_text_and_images_is_the_chat_template(written):
    prompt = PROCESSOR.apply_chat_template(chat("<image>\nWhat is this?"), tokenize=False)
    wanted = PROCESSOR.apply_chat_template(chat("<image>\nWhat is this?"))
    if written == "as a tag":
        marks = PROCESSOR.pictures
        before, rest = prompt.split(marks.start, 1)
        prompt = before + "<image>" + rest.rsplit(marks.end, 1)[1]
    if written == "not at all":
        prompt = "hi"
        found = PROCESSOR(images=PICTURE, text=prompt, return_tensors="pt")
        assert torch.equal(found["pixel_values"], wanted["pixel_values"])
        assert (found["input_ids"] == PROCESSOR._ids(PROCESSOR.pictures.context)[0]).sum() > 0
        return
    same(PROCESSOR(images=PICTURE, text=prompt, return_tensors="pt"), wanted)
    same(PROCESSOR(images=[PICTURE], text=[prompt], return_tensors="pt"), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": PICTURE}, "text: expected a prompt"),
        ({"images": [PICTURE] * 2, "text": "<image> hi"}, "expected one for one prompt, got 2"),
        ({"images": [PICTURE], "text": ["<image> a", "<image> b"]}, "expected one per prompt, 2, got 1"),
        ({"images": PICTURE, "text": "<image> and <image>"}, "expected one <image>"),
        ({"images": PICTURE, "videos": [PICTURE], "text": "hi"}, "an image or a video, not both"),
    ],
)
def test_no_picture_is_dropped_in_silence(given, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(**given)


def test_a_clip_takes_num_frames():
    clip = [Image.new("RGB", (40, 30), (10 * i, 0, 0)) for i in range(7)]
    chats = [
        [{"role": "user", "content": [{"type": "video", "video": clip, **more}]}] for more in ({"num_frames": 3}, {})
    ]
    assert [PROCESSOR.apply_chat_template(one)["num_frames"].tolist() for one in chats] == [[3], [7]]
    frames = PROCESSOR.read_messages(chats[0]).frames
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [0, 30, 60]
    for wrong in (0, -1, 2.5, True):
        content = [{"type": "video", "video": clip, "num_frames": wrong}]
        with pytest.raises(ValueError, match=r"messages\[0\].num_frames: expected a whole number from 1 on"):
            PROCESSOR.apply_chat_template([{"role": "user", "content": content}])


def test_a_system_turn_comes_first_and_is_not_learned():
    turns = [{"role": "system", "content": "Be brief."}, *chat("Hi"), {"role": "assistant", "content": "Yes."}]
    found = PROCESSOR.apply_chat_template(turns, add_generation_prompt=False, return_labels=True)
    text = PROCESSOR.decode(found["input_ids"][0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert PROCESSOR.decode(found["labels"][0][found["labels"][0] >= 0]) == "Yes.<|im_end|>"
    with pytest.raises(ValueError, match="a system turn must come first"):
        PROCESSOR.apply_chat_template([*chat("Hi"), turns[0]])


def test_the_last_answer_can_be_continued():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, it"}]
    text = PROCESSOR.apply_chat_template(
        turns, tokenize=False, continue_final_message=True, add_generation_prompt=False
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSure, it"


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_the_text_of_a_user_never_becomes_a_control_token(token):
    plain, _, picture = (
        PROCESSOR.apply_chat_template(one) for one in (chat("say it"), chat("say"), chat(f"say {token}"))
    )
    special = set(PROCESSOR.tokenizer.all_special_ids) | set(PROCESSOR.tokenizer.get_added_vocab().values())

    def controls(inputs):
        return [i for i in inputs["input_ids"][0].tolist() if i in special]

    assert controls(picture) == controls(plain)
    assert f"say {token}" in PROCESSOR.decode(picture["input_ids"][0])
    turns = [(f"say {token}", f"{token} [SEG]")]
    spoken = [*chat(turns[0][0]), {"role": "assistant", "content": turns[0][1]}]
    batch = PROCESSOR.apply_chat_template(spoken, add_generation_prompt=False, return_labels=True)
    assert PROCESSOR.num_tokens(turns, image_size=PICTURE.size) == batch["input_ids"].shape[1]


# ---------------------------------------------------------------- generate


def test_generate_returns_prompt_and_new_tokens(model):
    inputs = PROCESSOR.apply_chat_template(chat())
    out = model.generate(**inputs, max_new_tokens=12)
    length = inputs["input_ids"].shape[1]
    assert model.can_generate() and torch.equal(out[:, :length], inputs["input_ids"])
    assert PROCESSOR.batch_decode(out[:, length:]) == [f"{ANSWER}<|im_end|>"]
    assert PROCESSOR.post_process_image_text_to_text(out[:, length:]) == [ANSWER]
    assert torch.equal(model.generate_new_tokens(**inputs, max_new_tokens=12), out[:, length:])
    assert len(model.generate(**inputs)[0]) == len(out[0])  # without a limit: until it stops by itself
    rich = model.generate(**inputs, max_new_tokens=12, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(rich.sequences, out) and len(rich.scores) == len(out[0]) - length
    several = model.generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert several.shape == (2, length + 3) and torch.equal(several[1, :length], inputs["input_ids"][0])


@pytest.mark.parametrize(
    ("stated", "stop"), [(None, "config"), ({}, "config"), ({"do_sample": False}, "config"), ({"eos_token_id": 7}, 7)]
)
def test_a_loaded_model_stops_with_and_without_a_generation_config(folder, tmp_path, stated, stop):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    if stated is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    wanted = loaded.config.get_text_config().eos_token_id if stop == "config" else stop
    assert wanted is not None and loaded.generation_config.eos_token_id == wanted


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_paddings_give_the_answer_of_the_row_alone(side):
    model = tiny_model(3)
    chats = [chat("What is a dog, said at some length, please?"), [{"role": "user", "content": "Hi"}]]
    batch = PROCESSOR.apply_chat_template(chats, padding=True, padding_side=side)
    assert batch["attention_mask"][1, 0 if side == "left" else -1] == 0
    options = {"max_new_tokens": 5, "eos_token_id": [], "pad_token_id": 0}
    together = model.generate_new_tokens(**batch, **options)
    alone = [model.generate_new_tokens(**PROCESSOR.apply_chat_template(one), **options)[0] for one in chats]
    assert together.tolist() == [row.tolist() for row in alone]


def test_a_streamer_gets_prompt_and_answer(model, capsys):
    inputs = PROCESSOR.apply_chat_template(chat())
    for skip, wanted in (
        (True, f"{ANSWER}<|im_end|>"),
        (False, PROCESSOR.decode(inputs["input_ids"][0]) + f"{ANSWER}<|im_end|>"),
    ):
        model.generate(**inputs, max_new_tokens=12, streamer=TextStreamer(PROCESSOR.tokenizer, skip_prompt=skip))
        assert capsys.readouterr().out.strip() == wanted


@pytest.mark.parametrize("option", [{"num_return_sequences": 2}, {"return_dict_in_generate": True}])
def test_the_predictor_refuses_options_that_change_the_output(model, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: one answer per question"):
        Sa2VAPredictor(model, PROCESSOR)(image=PICTURE, text="What?", **option)


# ---------------------------------------------------------------- post-processing


def outputs(*objects):
    """Of a picture each: (objects, 1, 32, 32) logits, a square of objects[i] cells, and scores."""
    masks = torch.full((len(objects), 1, 32, 32), -8.0)
    for mask, (start, end, _) in zip(masks, objects, strict=True):
        mask[0, start:end, start:end] = 8.0
    return Sa2VAOutput(pred_masks=[masks], pred_scores=[torch.tensor([[score] for _, _, score in objects])])


def test_masks_are_enlarged_as_the_predictor_does(model):
    predictor = Sa2VAPredictor(model, PROCESSOR)
    p = predictor.segment(image=PICTURE, text="What is this?", answer=ANSWER)
    logits = [torch.from_numpy(p.mask_logits)]
    [masks] = PROCESSOR.post_process_masks(logits, [(60, 100)])
    np.testing.assert_array_equal(masks.numpy(), p.masks)
    [soft] = PROCESSOR.post_process_masks(logits, torch.tensor([[60, 100]]), binarize=False)
    assert soft.shape == (1, 1, 60, 100) and torch.equal(soft > 0, masks)
    [none] = PROCESSOR.post_process_masks([torch.zeros(0, 1, 32, 32)], [(60, 100)])
    assert none.shape == (0, 1, 60, 100)
    with pytest.raises(ValueError, match="expected one \\(height, width\\) per sample, 1, got 2"):
        PROCESSOR.post_process_masks(logits, [(60, 100)] * 2)


def test_instance_segmentation_has_the_form_of_mask2former():
    out = outputs((4, 20, 0.9), (16, 28, 0.8), (0, 2, 0.3))
    [found] = PROCESSOR.post_process_instance_segmentation(out, target_sizes=[(64, 64)])
    assert [(row["id"], row["label_id"], row["score"]) for row in found["segments_info"]] == [(0, 0, 0.9), (1, 1, 0.8)]
    ids = found["segmentation"]
    assert ids.shape == (64, 64) and ids[20, 20] == 0 and ids[50, 50] == 1 and ids[36, 36] == 1 and ids[0, 0] == -1
    [maps] = PROCESSOR.post_process_instance_segmentation(out, target_sizes=[(64, 64)], return_binary_maps=True)
    assert maps["segmentation"].shape == (2, 64, 64) and maps["segmentation"][0, 36, 36] == 1  # they may overlap
    [runs] = PROCESSOR.post_process_instance_segmentation(out, return_coco_annotation=True)
    assert runs["segmentation"][1][0] == 16 * 32 + 16 and sum(runs["segmentation"][1]) == 32 * 32
    assert sum(runs["segmentation"][1][1::2]) == 12 * 12


# ---------------------------------------------------------------- pipelines, casts, pickles


def test_the_stock_pipeline_gives_text(folder, model):
    [found] = pipeline("image-text-to-text", model=model, processor=PROCESSOR)(text=chat(), max_new_tokens=12)
    assert found["generated_text"][-1] == {"role": "assistant", "content": ANSWER}
    [found] = pipeline("image-text-to-text", model=model, processor=PROCESSOR)(
        text=chat(), max_new_tokens=12, return_full_text=False
    )
    assert found["generated_text"] == ANSWER


def test_our_pipeline_gives_text_and_masks(folder, model):
    import sa2va_hf.pipeline

    ask = pipeline(sa2va_hf.pipeline.TASK, model=str(folder))
    wanted = Sa2VAPredictor(model, PROCESSOR)(image=PICTURE, text="What is this?")
    found = ask(image=PICTURE, text="What is this?")
    assert found["text"] == wanted.text == ANSWER
    np.testing.assert_array_equal(found["masks"], wanted.masks)
    assert [one["text"] for one in ask([{"image": PICTURE, "text": "What?"}] * 2)] == [ANSWER] * 2
    with pytest.raises(TypeError, match="unknown arguments"):
        ask(image=PICTURE, text="What?", temperatur=1)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_a_cast_after_loading_is_one_of_loading(folder, cast):
    """SAM 2 and the projection stay float32, bit for bit; the LLM is cast."""
    stored = Sa2VAForConditionalGeneration.from_pretrained(folder)
    model = cast(Sa2VAForConditionalGeneration.from_pretrained(folder))
    loaded = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype=model.dtype)
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).dtype == parameter.dtype, name
        kept = name.startswith(("grounding_encoder", "text_hidden_fcs"))
        assert (parameter.dtype == torch.float32) == kept, name
        assert not kept or torch.equal(parameter, stored.get_parameter(name))
    question = {"image": PICTURE, "text": "What is this?", "answer": ANSWER}
    found = Sa2VAPredictor(model, PROCESSOR).segment(**question).masks
    wanted = Sa2VAPredictor(stored, PROCESSOR).segment(**question).masks
    assert (found == wanted).mean() > 0.9


@pytest.mark.parametrize("disk", ["grounding_encoder", "mllm"])
def test_parts_on_the_disk_give_the_same_masks(folder, tmp_path, disk):
    places = {name: "cpu" for name in ("mllm", "grounding_encoder", "text_hidden_fcs")} | {disk: "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path), "dtype": torch.float32}
    predictor = Sa2VAPredictor.from_pretrained(folder, **options)
    question = {"image": PICTURE, "text": "What is this?"}
    wanted = Sa2VAPredictor.from_pretrained(folder)(**question)
    for _ in range(2):  # weights go back to the disk after a call, and come again
        found = predictor(**question)
        assert found.text == wanted.text
        np.testing.assert_array_equal(found.masks, wanted.masks)
    assert all(p.is_meta for p in predictor.model.get_submodule(disk).parameters())
    auto = Sa2VAPredictor.from_pretrained(folder, device_map="auto", dtype=torch.float32)
    np.testing.assert_array_equal(auto(**question).masks, wanted.masks)
    clip = predictor.segment(video=[PICTURE] * 4, text="What is this?", answer=ANSWER, num_frames=2)
    assert clip.masks.shape[:2] == (1, 4)


def test_a_predictor_that_was_used_can_be_pickled(model):
    predictor = Sa2VAPredictor(model, PROCESSOR)
    wanted = predictor(image=PICTURE, text="What is this?")
    again = pickle.loads(pickle.dumps(predictor))(image=PICTURE, text="What is this?")
    assert again.text == wanted.text
    np.testing.assert_array_equal(again.masks, wanted.masks)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantisation_leaves_sam_2_and_the_projection_alone(folder, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    predictor = Sa2VAPredictor.from_pretrained(folder, device="cpu", quantization_config=config)
    kinds = {name: type(module) for name, module in predictor.model.named_modules() if "bit" in type(module).__name__}
    assert kinds and all(name.startswith("mllm.model.language_model.") for name in kinds)
    assert any(kind in (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt) for kind in kinds.values())
    question = {"image": PICTURE, "text": "What is this?", "answer": ANSWER}
    found, wanted = predictor.segment(**question), Sa2VAPredictor.from_pretrained(folder).segment(**question)
    assert (found.masks == wanted.masks).mean() > 0.9


def test_a_saved_processor_comes_back_with_all_of_it(folder):
    again = Sa2VAProcessor.from_pretrained(folder)
    same(again.apply_chat_template(chat()), PROCESSOR.apply_chat_template(chat()))
    file = io.BytesIO()
    pickle.dump(again, file)
