"""Sa2VA on LLaVA-1.5: every released name has its place, values come back bit by bit, and the native model agrees.

Run: pytest tests/checkpoints/layouts/test_llava.py
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model, tiny_processor

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.convert import convert, expected_shapes
from sa2va_hf.checkpoints.layouts import llava
from sa2va_hf.checkpoints.moving import moved_shapes
from sa2va_hf.checkpoints.rules import moves
from sa2va_hf.checkpoints.weights import WEIGHTS

GROUNDING = tiny_config().grounding_config
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8))
PUBLISHED = {  # fields of the release that shape its weights
    "image_token_index": 32000,
    "template": "vicuna",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {"model_type": "llama", "vocab_size": 32007, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}


def question(text: str, answer: str | None = None) -> list[dict]:
    user = [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}]
    return [{"role": "user", "content": user}] + ([{"role": "assistant", "content": answer}] if answer else [])


@pytest.mark.slow
def test_the_published_layout_has_1590_tensors_and_its_number_of_parameters():
    config = Sa2VAConfig(mllm_config=llava.to_mllm(PUBLISHED).to_dict())
    assert (config.hidden_size, config.vocab_size) == (4096, 32007)
    expected = expected_shapes(config)
    names = moved_shapes(moves(expected, llava.rules(config)), expected)
    groups = {"model.": 686, "text_hidden_fcs.": 4, "grounding_encoder.sam2_model.": 900}
    for prefix, count in groups.items():
        assert sum(name.startswith(prefix) for name in names) == count
    assert len(names) == 1590
    assert sum(torch.Size(shape).numel() for shape in names.values()) == 7_305_220_402 + 256  # and a random matrix
    tower = [name for name in names if name.startswith("model.model.vision_tower.vision_model.")]
    assert len(tower) == 391 and "model.lm_head.weight" in names
    assert "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight" in names


def test_a_release_comes_back_bit_by_bit(tmp_path):
    model = tiny_model(backbone="llava", template="vicuna")
    model.save_pretrained(tmp_path / "ours")
    processor = tiny_processor("llava", template="vicuna", add_bos=True)
    processor.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "released", "sa2va", grounding_config=GROUNDING)
    released = json.loads((tmp_path / "released" / "config.json").read_text())
    assert llava.recognises(released) and released["template"] == "vicuna"
    convert(tmp_path / "released", tmp_path / "again", grounding_config=GROUNDING)
    old, new = (load_file(tmp_path / name / WEIGHTS) for name in ("ours", "again"))
    assert set(old) == set(new) and all(torch.equal(old[name], new[name]) for name in old)
    again, reader = (c.from_pretrained(tmp_path / "again") for c in (Sa2VAForConditionalGeneration, Sa2VAProcessor))
    assert reader.add_bos and reader.tile_size == 56
    inputs = reader.apply_chat_template(question("the left one?"))
    assert torch.equal(inputs["input_ids"], processor.apply_chat_template(question("the left one?"))["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, model(**inputs).logits)
    tensors = load_file(tmp_path / "released" / WEIGHTS)
    del tensors["grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight"]
    save_file(tensors, tmp_path / "released" / WEIGHTS)
    with pytest.raises(
        ValueError, match="missing: grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight"
    ):
        convert(tmp_path / "released", tmp_path / "spoilt", grounding_config=GROUNDING)


def test_the_text_and_the_pixels_are_those_of_the_release():
    processor = tiny_processor("llava", template="vicuna", add_bos=True)
    tokens = "<image>" * 16
    text = processor.apply_chat_template(
        question("<image>\nWhat?", "A dog."), tokenize=False, add_generation_prompt=False
    )
    assert text == f"USER: {tokens}\nWhat? ASSISTANT:A dog.</s>\n"
    assert text == processor.apply_chat_template(
        question("What?", "A dog."), tokenize=False, add_generation_prompt=False
    )
    inputs = processor.apply_chat_template(question("What?"))
    ids, pixels = inputs["input_ids"][0], inputs["pixel_values"]
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert ids[0] == processor.tokenizer.bos_token_id and (ids == image).sum() == 16
    small = np.asarray(PICTURE.resize((56, 56)), np.float32) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), (small - mean) / std, rtol=1e-4, atol=1e-5)
    spoken = processor.apply_chat_template(question("What?", "It says <image>."), add_generation_prompt=False)
    assert (spoken["input_ids"] == image).sum() == 16, "in an answer it is text"
    with pytest.raises(ValueError, match="there is no picture for it"):
        processor.apply_chat_template(question("<image> and <image>"))
    prompt = processor(text="USER: <image>\nWhat? ASSISTANT:", images=PICTURE)
    assert torch.equal(prompt["input_ids"][0], ids)


def test_the_native_model_says_the_same_and_what_is_not_read_is_not_trained():
    model, processor = tiny_model(backbone="llava", template="vicuna"), tiny_processor("llava", template="vicuna")
    chats = [question("What is this?"), [{"role": "user", "content": "What is this?"}]]
    for chat in chats:
        inputs = processor.apply_chat_template(chat)
        native = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in inputs}
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, model.mllm(**native).logits)
    model.freeze_for_training(vision=True)
    batch = processor.apply_chat_template(
        [question("the left one?", "Sure, it is [SEG].")], add_generation_prompt=False, return_labels=True
    )
    model.train()(**batch, mask_labels=[torch.rand(1, 1, 50, 90) > 0.5]).loss.backward()
    vision = [one for part in model.backbone.vision(model.mllm) for one in part.parameters()]
    assert all((one.grad is not None) == one.requires_grad for one in vision)
    assert any(one.requires_grad for one in vision) and not all(one.requires_grad for one in vision)
    assert not any(one.requires_grad for one in model.mllm.model.multi_modal_projector.parameters())
