"""Qwen2.5-VL and Qwen3-VL under Sa2VA: they read as the native models do, and keep what InternVL's tests promise.

Run: pytest tests/model/test_backbones.py
"""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import loud, tiny_config, tiny_model, tiny_processor, tiny_talker, tiny_tokenizer
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.arguments import ModelArguments
from sa2va_hf.model import released_api
from sa2va_hf.model.backbones import BACKBONES, backbone_of
from sa2va_hf.model.pictures import PICTURES
from sa2va_hf.training.sa2va.trainable import make_trainable

QWEN = ["qwen2_5_vl", "qwen3_vl"]
ONE, TWO = "Sure, it is [SEG].", "The dog [SEG] and the cat [SEG]."
START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


def picture(seed: int = 0, size: tuple[int, int] = (100, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def chat(answer: str | None, image=None, video=None, text: str = "Segment it.") -> list[dict]:
    content = [{"type": "image", "image": image}] if image is not None else []
    content += [{"type": "video", "video": video}] if video is not None else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    return messages + ([] if answer is None else [{"role": "assistant", "content": answer}])


def inputs(processor, *chats: list[dict], **options) -> dict:
    answered = chats[0][-1]["role"] == "assistant"
    options = {"padding": True, "return_labels": answered, "add_generation_prompt": not answered} | options
    return dict(processor.apply_chat_template(list(chats), **options))


def masks(objects: int, frames: int = 1) -> torch.Tensor:
    coarse = torch.rand(objects, frames, 4, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(60, 100)) > 0.6


def attentive(model: Sa2VAForConditionalGeneration) -> Sa2VAForConditionalGeneration:
    """Strengthen attention and pictures, in place: at its start a model hardly minds where a token stands."""
    with torch.no_grad():
        for name, weight in model.mllm.named_parameters():
            if weight.ndim > 1 and any(part in name for part in ("q_proj", "k_proj", "o_proj", "merger", "qkv")):
                weight.mul_(8)
    return loud(model)


@pytest.fixture(scope="module", params=QWEN)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processor(name) -> Sa2VAProcessor:
    return tiny_processor(name)


@pytest.fixture(scope="module")
def model(name) -> Sa2VAForConditionalGeneration:
    """Shared: tests that change it take their own."""
    return attentive(tiny_model(backbone=name)).requires_grad_(False)


@pytest.fixture(scope="module")
def chats() -> list[list[dict]]:
    return [
        chat(ONE, picture(0)),
        chat("A dog is an animal; there is none.", text="What is a dog, said at some length?"),
        chat(TWO, video=[picture(1), picture(2), picture(3)]),
        chat(TWO, picture(4, (60, 200))),
        chat("No.", picture(6, (333, 250))),
    ]


# ---------------------------------------------------------------- reading


def native(name: str, processor: Sa2VAProcessor):
    """The processor of transformers, made of the same tokenizer and numbers."""
    tokenizer = tiny_tokenizer(name)
    tokenizer.add_tokens(["<|video_pad|>"], special_tokens=True)
    marks = {"image_token": PAD, "video_token": "<|video_pad|>", "vision_bos_token": START, "vision_eos_token": END}
    for mark, token in marks.items():
        setattr(tokenizer, mark, token)
    images = processor.pictures.processor(is_video=False)
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLProcessor(images, tokenizer, transformers.Qwen2VLVideoProcessor())
    return transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor())


@torch.no_grad()
def test_a_picture_is_read_as_the_native_processor_and_model_read_it(name, processor, model):
    image = picture(0, (130, 90))
    kind = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}[name]
    plain = getattr(transformers, kind)(tiny_config(name).mllm_config).eval()
    plain.load_state_dict(model.mllm.state_dict())
    text = f"<|im_start|>user\n{START}{PAD}{END}\nSegment it.<|im_end|>\n<|im_start|>assistant\n"
    expected = native(name, processor)(images=[image], text=[text], return_tensors="pt")
    ours = inputs(processor, chat(None, image))
    for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(ours[key], expected[key]), key
    logits = model(**ours).logits
    assert torch.equal(logits, plain(**expected).logits)
    # the picture's rows and columns do matter to it
    flat = model.mllm.model.language_model
    embeddings = model.mllm.get_input_embeddings()(ours["input_ids"])
    image_at = ours["input_ids"] == model.config.mllm_config.image_token_id
    features = model.mllm.get_image_features(ours["pixel_values"], ours["image_grid_thw"], return_dict=True)
    embeddings[image_at] = torch.cat(list(features.pooler_output))
    naive = model.mllm.lm_head(flat(inputs_embeds=embeddings).last_hidden_state)
    assert (naive - logits).abs().max() > 1e-2


@torch.no_grad()
def test_text_alone_is_read_as_by_the_native_model(model, processor):
    batch = inputs(processor, chat(None, text="What is a dog?"))
    expected = model.mllm(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(model(**batch).logits, expected)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbours(model, processor, chats):
    together = model(**inputs(processor, *chats))
    hidden = together.seg_hidden_states
    for i, one in enumerate(chats):
        batch = inputs(processor, one)
        alone, length = model(**batch), batch["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[i, :length], alone.logits[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(together.pred_masks[i], alone.pred_masks[0], rtol=1e-3, atol=1e-2)
        n = len(alone.seg_hidden_states)
        torch.testing.assert_close(hidden[:n], alone.seg_hidden_states, rtol=1e-3, atol=1e-3)
        hidden = hidden[n:]
    assert not len(hidden)
    assert [len(m) for m in together.pred_masks] == [1, 0, 2, 2, 0]


@torch.no_grad()
def test_the_seg_state_is_where_seg_is_the_input(model, processor):
    batch = inputs(processor, chat(TWO, picture()))
    out = model(**batch)
    keys = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    hidden = model.hidden_states(**{key: batch[key] for key in keys})
    torch.testing.assert_close(out.logits, model.mllm.lm_head(hidden))
    assert torch.equal(out.seg_hidden_states, hidden[batch["input_ids"] == processor.seg_token_id])
    torch.testing.assert_close(out.seg_embeddings, model.text_hidden_fcs(out.seg_hidden_states))


@torch.no_grad()
def test_seg_may_be_read_before_the_last_norm(name, model, processor, chats):
    """As in the released training on Qwen3-VL."""
    early = attentive(tiny_model(backbone=name, seg_before_norm=True))
    early.load_state_dict(model.state_dict())
    norm = early.mllm.model.language_model.norm
    early_norm, norm.weight.data = norm.weight.data, norm.weight.data * 3
    batch = inputs(processor, *chats)
    out = early(**batch)
    norm.weight.data = early_norm
    expected = model(**batch)
    torch.testing.assert_close(norm(out.seg_hidden_states), expected.seg_hidden_states)
    torch.testing.assert_close(out.logits, 3 * expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.seg_embeddings, early.project(out.seg_hidden_states))
    predictor, question = Sa2VAPredictor(early, processor), {"image": picture(), "text": "Segment it."}
    alone = early(**inputs(processor, chat(ONE, picture()))).pred_masks[0]
    drawn = predictor.segment(**question, answer=ONE).mask_logits
    np.testing.assert_allclose(drawn, alone.numpy(), rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- writing


@torch.no_grad()
def test_generation_is_the_likeliest_token_after_another(model, processor):
    batch = inputs(processor, chat(None, video=[picture(1), picture(2)]))
    new = model.generate_new_tokens(**batch, max_new_tokens=5, eos_token_id=[], pad_token_id=0)
    assert new.shape == (1, 5)
    ids, pixels = batch["input_ids"], {key: batch[key] for key in ("pixel_values", "image_grid_thw")}
    for token in new[0]:
        assert token == model(ids, torch.ones_like(ids), **pixels).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)


@torch.no_grad()
def test_generation_does_not_depend_on_padding(model, processor, chats):
    asked = [one[:1] for one in chats]
    options = {"max_new_tokens": 6, "eos_token_id": [], "pad_token_id": 0}
    together = model.generate_new_tokens(**inputs(processor, *asked), **options)
    for row, one in zip(together, asked, strict=True):
        assert torch.equal(row, model.generate_new_tokens(**inputs(processor, one), **options)[0])
    assert len({tuple(row.tolist()) for row in together}) > 1, "the pictures must matter"


@torch.no_grad()
def test_beams_have_their_pictures(model, processor, chats):
    asked = [one[:1] for one in chats]
    options = {"max_new_tokens": 4, "num_beams": 3, "eos_token_id": 1, "pad_token_id": 0}
    together = model.generate_new_tokens(**inputs(processor, *asked), **options)
    for row, one in zip(together, asked, strict=True):
        alone = model.generate_new_tokens(**inputs(processor, one), **options)[0]
        assert torch.equal(row[: len(alone)], alone)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("auto", [Sa2VAForConditionalGeneration, AutoModel, AutoModelForImageTextToText])
def test_saved_and_loaded_is_the_same_to_the_last_bit(model, processor, auto, tmp_path):
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    old, new = model.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    assert again.get_input_embeddings().weight is not again.get_output_embeddings().weight
    batch = inputs(processor, chat(ONE, picture()), chat(TWO, video=[picture(1), picture(2)]))
    assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_half_precision_keeps_sam_2_whole_and_runs(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    half = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.grounding_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in half.mllm.parameters()} == {torch.bfloat16}
    out = half(**inputs(processor, chat(TWO, picture())), mask_labels=[masks(2)])
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


def test_a_saved_processor_comes_back(name, processor, chats, tmp_path):
    processor.save_pretrained(tmp_path)
    for again in (Sa2VAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert again.backbone == name and list(again.frame_pixels) == list(processor.frame_pixels)
        a, b = inputs(processor, *chats), inputs(again, *chats)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


# ---------------------------------------------------------------- prompts and lengths


def test_pictures_are_written_as_the_released_models_read_them(processor):
    said = processor.apply_chat_template(chat(ONE, picture()), tokenize=False, add_generation_prompt=False)
    n = processor.pictures.block(100, 60, False)
    begin, answer = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert said == f"{begin}{START}{PAD * n}{END}\nSegment it.{answer}{ONE}<|im_end|>\n"
    clip = processor.apply_chat_template(chat(None, video=[picture()] * 3), tokenize=False)
    frame = f"{START}{PAD * processor.pictures.block(100, 60, True)}{END}"
    assert clip == f"{begin}{frame}\n{frame}\n{frame}\nSegment it.{answer}"


def test_the_released_limits_on_pixels(name):
    pictures, side = PICTURES[name](), {"qwen2_5_vl": 28, "qwen3_vl": 32}[name]
    for is_video, least, most in ((False, 512, 2048), (True, 128, 512)):
        small, large = (pictures.block(*size, is_video) * side**2 / 28**2 for size in ((90, 60), (6000, 4000)))
        assert least <= small < 1.2 * least and 0.9 * most < large <= most
    middle = pictures.block(28 * 30, 28 * 30, False)
    assert middle == round(28 * 30 / side) ** 2
    assert pictures.pixel_mean[0] == {"qwen2_5_vl": 0.48145466, "qwen3_vl": 0.5}[name]


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (56, 56), (300, 40), (31, 29), (999, 777)])
@pytest.mark.parametrize("frames", [0, 1, 3])
def test_the_length_is_known_without_pixels(processor, size, frames):
    visual = {"video": [picture(0, size)] * frames} if frames else {"image": picture(0, size)}
    batch = inputs(processor, chat(ONE, **visual))
    turns = [("Segment it.", ONE)]
    expected = processor.num_tokens(turns, image_size=size, num_frames=frames or 1, video=bool(frames))
    assert batch["input_ids"].shape == (1, expected)
    grids = batch["image_grid_thw"]
    assert len(grids) == (frames or 1) and int(grids.prod(1).sum()) == len(batch["pixel_values"])


def test_a_batch_has_the_pictures_of_its_conversations_in_order(processor, chats):
    batch, alone = inputs(processor, *chats), [inputs(processor, one) for one in chats]
    for key in ("pixel_values", "image_grid_thw", "grounding_pixel_values"):
        assert torch.equal(batch[key], torch.cat([one[key] for one in alone if key in one])), key
    assert batch["num_frames"].tolist() == [1, 0, 3, 1, 1]


def test_a_processor_is_made_for_a_model(name, processor):
    made = Sa2VAProcessor.for_model(tiny_config(name, template="phi3_chat"), tiny_tokenizer(name), max_tiles=None)
    assert (made.backbone, made.template, made.grounding_image_size) == (name, "phi3_chat", 128)
    assert (made.patch_size, made.pictures.merge_size) == (processor.patch_size, 2)
    assert made.tile_size is None and list(made.image_pixels) == [512 * 28 * 28, 2048 * 28 * 28]


# ---------------------------------------------------------------- training


def test_what_is_trained_is_what_the_recipe_says(name):
    model = tiny_model(backbone=name)
    model.freeze_for_training()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith(("text_hidden_fcs.", "grounding_encoder.")) for n in trained)
    model.freeze_for_training(projector=True)
    merger = {n for n, p in model.mllm.named_parameters() if p.requires_grad}
    assert merger == {n for n, _ in model.mllm.named_parameters() if "merger" in n}
    model.freeze_for_training(projector=False, vision=True)
    tower = {n for n, p in model.mllm.named_parameters() if p.requires_grad}
    assert tower == {n for n, _ in model.mllm.named_parameters() if ".visual." in n} - merger


@pytest.mark.parametrize(
    "batch",
    [
        [chat(TWO, picture()), chat(ONE, video=[picture(1), picture(2)])],
        [chat("No.", picture())],
        [chat("Hello.", text="Hi."), chat("Bye.", text="Good night.")],
    ],
    ids=["masks", "no masks", "no picture"],
)
def test_every_trainable_parameter_gets_a_gradient_from_every_batch(name, processor, batch):
    model = tiny_model(backbone=name).train()
    model.freeze_for_training(projector=True, vision=True)
    model.mllm.model.language_model.requires_grad_(True)
    wanted = [masks(2), masks(1, 2)] if "[SEG]" in str(batch) else [masks(0)] * len(batch)
    out = model(**inputs(processor, *batch), mask_labels=wanted)
    assert torch.isfinite(out.loss)
    out.loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in trained.items() if grad is None] == []
    moved = trained["text_hidden_fcs.0.weight"].any()
    assert bool(moved) == ("[SEG]" in str(batch))
    seen = any(grad.any() for name, grad in trained.items() if ".visual.merger." in name)
    assert bool(seen) == ("image" in str(batch))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_checkpointing_changes_memory_not_gradients(name, processor):
    batch = inputs(processor, chat(TWO, picture()), chat(ONE, picture(1)))
    results = []
    for checkpointing in (False, True):
        model = tiny_model(backbone=name).train()
        model.freeze_for_training(projector=True)
        model.mllm.model.language_model.requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        model(**batch, mask_labels=[masks(2), masks(1)]).loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = results
    for key, grad in plain.items():
        torch.testing.assert_close(checkpointed[key], grad, rtol=1e-4, atol=1e-6, msg=key)


def test_lora_is_on_the_language_model_alone(name, processor):
    arguments = ModelArguments(model_name_or_path="tiny", lora_rank=2, train_projector=True)
    wrapped = make_trainable(tiny_model(backbone=name), arguments)
    lora = [n for n, _ in wrapped.named_parameters() if "lora_" in n]
    assert lora and all(".mllm.model.language_model.layers." in n for n in lora)
    assert len(lora) == 2 * 2 * 7  # A and B, of two layers with seven linears each
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    for part in (".visual.merger.", "embed_tokens", "lm_head", "text_hidden_fcs", "sam_mask_decoder"):
        assert any(part in n for n in trained), part
    assert not [n for n in trained if ".visual.blocks." in n]
    wrapped.train()
    wrapped(**inputs(processor, chat(ONE, picture())), mask_labels=[masks(1)]).loss.backward()
    grads = {n: p.grad for n, p in wrapped.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_blank_picture_goes_through_all_of_the_vision_part(name):
    model = tiny_model(backbone=name)
    model.backbone.blank(model.mllm, torch.device("cpu")).backward()
    unread = {id(p) for module in model.backbone.unread(model.mllm) for p in module.parameters()}
    vision = [p for module in model.backbone.vision(model.mllm) for p in module.parameters()]
    assert vision and all((p.grad is None) == (id(p) in unread) for p in vision)
    projector = {id(p) for module in model.backbone.projector(model.mllm) for p in module.parameters()}
    assert projector and projector < {id(p) for p in vision}


# ---------------------------------------------------------------- questions


def test_a_predictor_draws_on_pictures_and_clips(model, processor):
    predictor = Sa2VAPredictor(model, processor)
    image, clip = picture(0, (90, 50)), [picture(n, (90, 50)) for n in range(7)]
    one = predictor.segment(image=image, text="Segment both.", answer=TWO)
    assert one.masks.shape == (2, 1, 50, 90)
    two = predictor.segment(video=clip, text="Segment it.", answer=ONE)
    assert two.masks.shape == (1, 7, 50, 90) and np.isfinite(two.mask_logits).all()
    batch = inputs(processor, chat(TWO, image, text="Segment both."))
    with torch.no_grad():
        expected = model(**batch).pred_masks[0]
    np.testing.assert_allclose(one.mask_logits, expected.numpy(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("seg_before_norm", [False, True])
def test_what_is_generated_is_drawn(name, seg_before_norm):
    predictor = Sa2VAPredictor(tiny_talker(backbone=name), tiny_processor(name))
    predictor.model.config.seg_before_norm = seg_before_norm
    image = picture(0, (110, 60))
    told = predictor(image=image, text="Please segment the red circle.")
    assert told.text == ONE and told.masks.shape == (1, 1, 60, 110)
    forced = predictor.segment(image=image, text="Please segment the red circle.", answer=ONE)
    np.testing.assert_allclose(told.mask_logits, forced.mask_logits, rtol=1e-3, atol=1e-2)
    batch = predictor(image=[image, None], text=["Please segment the red circle.", "What is this?"])
    np.testing.assert_allclose(batch[0].mask_logits, told.mask_logits, rtol=1e-3, atol=1e-2)
    assert batch[1].text == ONE and batch[1].masks.shape[1] == 0
    again = predictor(text="the right one", history=told.history)
    assert again.text == ONE and again.masks.shape == (1, 1, 60, 110)


def test_predict_forward_takes_the_processor_that_callers_of_the_releases_give(name, processor, model, monkeypatch):
    monkeypatch.setattr(released_api, "MAX_NEW_TOKENS", 6)
    tokenizer = tiny_tokenizer(name)
    made = Sa2VAProcessor.for_model(model.config, tokenizer)
    question = {"image": picture(0, (640, 430)), "text": "<image>Segment it."}
    expected = Sa2VAPredictor(model, made)(**question, max_new_tokens=6)
    for given in ({"processor": made}, {"tokenizer": tokenizer}, {"processor": native(name, processor)}):
        answer = model.predict_forward(**question, **given)
        assert answer["prediction"] == expected.text and answer["past_text"]
    with pytest.raises(ValueError, match="give a Sa2VAProcessor as processor, or the checkpoint's tokenizer"):
        model.predict_forward(**question)


# ---------------------------------------------------------------- mistakes


def test_regions_need_internvl(processor):
    region = {"type": "region", "mask": np.ones((60, 100), bool)}
    content = [{"type": "image", "image": picture()}, region, {"type": "text", "text": "What is region1?"}]
    with pytest.raises(ValueError, match="no form for regions; use a model on InternVL"):
        processor.apply_chat_template([{"role": "user", "content": content}])
    with pytest.raises(ValueError, match="no form for them"):
        processor.num_tokens([("a", "b")], (100, 60), region_masks=[region["mask"]])
    assert not processor.takes_regions and tiny_processor().takes_regions


def test_inputs_of_another_model_are_refused(name, model, processor):
    batch = inputs(processor, chat(ONE, picture()))
    with pytest.raises(ValueError, match=rf"{name} comes as \['image_grid_thw', 'pixel_values'\], got"):
        model(**{key: value for key, value in batch.items() if key != "image_grid_thw"})
    tokens = int(batch["image_grid_thw"].prod()) // 4
    twice = {key: torch.cat([batch[key]] * 2) for key in ("pixel_values", "image_grid_thw")}
    with pytest.raises(ValueError, match=f"{tokens} tokens in input_ids, {2 * tokens} features from 2 pictures"):
        model(**(batch | twice))
    with pytest.raises(ValueError, match=f"{tokens} image tokens, but there are no pixel_values"):
        model(batch["input_ids"], batch["attention_mask"])
    other = inputs(tiny_processor(), chat(ONE, picture()))
    with pytest.raises(ValueError, match="internvl comes as .* and may have .*region_masks"):
        tiny_model()(**other, image_grid_thw=batch["image_grid_thw"])


def test_an_unknown_backbone_lists_those_there_are():
    with pytest.raises(ValueError, match="expected one of .*internvl.*qwen2_5_vl.*qwen3_vl.*got 'llama'"):
        backbone_of(LlamaConfig())
    with pytest.raises(ValueError, match="backbone: expected one of .*qwen3_vl.*got 'qwen'"):
        Sa2VAProcessor(tiny_tokenizer(), backbone="qwen")
    assert BACKBONES.keys() == PICTURES.keys()


def test_settings_of_another_backbone_are_refused(name):
    with pytest.raises(ValueError, match=f"max_tiles, tile_size: {name} has no such field"):
        tiny_processor(name, tile_size=448, max_tiles=12)
    with pytest.raises(ValueError, match=r"image_pixels: internvl has no such field"):
        tiny_processor(image_pixels=[1, 2])
    with pytest.raises(ValueError, match=r"frame_pixels: expected \[least, most\] pixels, got \[5, 4\]"):
        tiny_processor(name, frame_pixels=[5, 4])
    with pytest.raises(ValueError, match=r"image_pad.*single tokens"):
        Sa2VAProcessor(tiny_tokenizer("internvl"), backbone=name)


def test_a_picture_of_an_absurd_shape_is_an_error(processor):
    with pytest.raises(ValueError, match="aspect ratio"):
        processor.apply_chat_template(chat(None, picture(0, (900, 2))))
