"""A whole Sa2VA in a second: real classes, small numbers, a byte-level tokenizer trained on a few lines.

Not a stand-in: InternVL, Qwen-VL and SAM 2 are the real ones, only narrow. `tiny_model()` has random weights from a
fixed seed. `backbone` is a name of `BACKBONES`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLConfig, LlavaConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen3VLConfig

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.model.configuration_sa2va import SPECIAL_TOKENS
from sa2va_hf.model.pictures import PICTURES

CORPUS = [
    "Can you segment the red circle in this image? Please segment the blue square.",
    "Sure, it is [SEG]. The person riding a horse. There are 2 part regions in the picture: region1, region2.",
    "user assistant What is this? a dog, a cat, the left one, the right one.",
]


@lru_cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(backbone: str = "internvl") -> PreTrainedTokenizerFast:
    ends = {"eos_token": "<|im_end|>"} if backbone != "llava" else {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), pad_token="<|endoftext|>", **ends
    )
    pictures = PICTURES[backbone]
    marks = ["<|im_start|>", "<|im_end|>", pictures.start, pictures.context, pictures.end, *SPECIAL_TOKENS]
    tokenizer.add_tokens([mark for mark in marks if mark], special_tokens=True)
    return tokenizer


def _internvl(text: dict, ids: dict) -> InternVLConfig:
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    text = {"model_type": "qwen2", **text}
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["context"],
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _llava(text: dict, ids: dict) -> LlavaConfig:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 64,
    }
    return LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text},
        image_token_index=ids["context"],
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def _qwen2_5_vl(text: dict, ids: dict) -> Qwen2_5_VLConfig:
    vision = {
        "hidden_size": 64,
        "depth": 2,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,  # 2 tokens a side: pictures have several windows
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**text, "rope_parameters": rope},
        image_token_id=ids["context"],
        vision_start_token_id=ids["start"],
        vision_end_token_id=ids["end"],
        video_token_id=ids["unused"],
        tie_word_embeddings=False,
    )


def _qwen3_vl(text: dict, ids: dict) -> Qwen3VLConfig:
    vision = {
        "hidden_size": 64,
        "depth": 3,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return Qwen3VLConfig(
        vision_config=vision,
        text_config={**text, "head_dim": 16, "rope_parameters": rope},
        image_token_id=ids["context"],
        vision_start_token_id=ids["start"],
        vision_end_token_id=ids["end"],
        video_token_id=ids["unused"],
        tie_word_embeddings=False,
    )


def tiny_config(backbone: str = "internvl", **overrides: object) -> Sa2VAConfig:
    """Vision part and LLM of width 64, SAM 2 at 128 px; `overrides` are fields of `Sa2VAConfig`."""
    tokenizer, pictures = tiny_tokenizer(backbone), PICTURES[backbone]
    marks = {"start": pictures.start, "context": pictures.context, "end": pictures.end}
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items() if mark}
    ids["unused"] = len(tokenizer)
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    build = {"internvl": _internvl, "llava": _llava, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}[backbone]
    mllm = build(text, ids).to_dict()
    grounding = {
        "size": "tiny",
        "image_size": 128,
        "hidden_dim": 64,
        "embed_dim": 16,
        "stages": [1, 1, 2, 1],
        "global_att_blocks": [3],
        "window_spec": [8, 4, 8, 4],
        "memory_dim": 32,
        "memory_layers": 1,
        "memory_feedforward": 64,
    }
    fields = {"seg_token_id": tokenizer.convert_tokens_to_ids("[SEG]"), "num_points": 256}
    return Sa2VAConfig(mllm_config=mllm, grounding_config=grounding, **(fields | overrides))


def tiny_processor(backbone: str = "internvl", **overrides: object) -> Sa2VAProcessor:
    """Pictures of a few tokens: InternVL's tiles of 4, Qwen-VL's 6 to 16 per image and 2 to 6 per frame."""
    tiles = {"tile_size": 56, "patch_size": 14, "max_tiles": 4}
    side = 2 * PICTURES[backbone].patch_size
    patches = {"image_pixels": [6 * side**2, 16 * side**2], "frame_pixels": [2 * side**2, 6 * side**2]}
    sizes = {"internvl": tiles, "llava": {"tile_size": 56, "patch_size": 14}}.get(backbone, patches)
    fields = {"backbone": backbone, "grounding_image_size": 128} | sizes
    return Sa2VAProcessor(tiny_tokenizer(backbone), **(fields | overrides))


def tiny_model(seed: int = 0, backbone: str = "internvl", **overrides: object) -> Sa2VAForConditionalGeneration:
    """Random weights that depend on the seed alone, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sa2VAForConditionalGeneration(tiny_config(backbone, **overrides)).eval()


def tiny_talker(
    answer: str = "Sure, it is [SEG].", template: str = "qwen_chat", backbone: str = "internvl"
) -> Sa2VAForConditionalGeneration:
    """A tiny model that has learned to say `answer` to whatever it is asked, with or without a picture."""
    model = tiny_model(backbone=backbone, template=template)
    model.load_state_dict(dict(_talker_weights(answer, template, backbone)))
    return loud(model)


def loud(model: Sa2VAForConditionalGeneration) -> Sa2VAForConditionalGeneration:
    """Strengthen the [SEG] embeddings, in place: random masks hardly depend on them and would hide a wrong one."""
    with torch.no_grad():
        model.text_hidden_fcs[2].weight.mul_(100)
    return model


@lru_cache
def _talker_weights(answer: str, template: str, backbone: str) -> tuple[tuple[str, torch.Tensor], ...]:
    processor = tiny_processor(backbone, template=template)
    questions = ["What is this?", "Please segment the red circle.", "<image>\nthe left one?", "And the blue square?"]
    chats = []
    for number, question in enumerate(questions * 2):
        color = (40 * number % 256, 255 - 30 * number, 90)
        picture = {"type": "image", "image": Image.new("RGB", (70 + 20 * number, 60), color)}
        text = {"type": "text", "text": question if number < 4 else question.replace("<image>", "")}
        reply = {"role": "assistant", "content": answer}
        chat = [{"role": "user", "content": [picture, text] if number < 4 else [text]}, reply]
        if number % 2:  # also as a later turn
            chat += [{"role": "user", "content": "the right one"}, reply]
        chats.append(chat)
    batch = processor.apply_chat_template(chats, add_generation_prompt=False, padding=True, return_labels=True)
    inputs = {k: v for k, v in batch.items() if k not in ("grounding_pixel_values", "num_frames")}
    with torch.random.fork_rng(devices=[]):
        model = tiny_model(backbone=backbone, template=template).requires_grad_(False)
        for module in (model.mllm.model.language_model, model.mllm.lm_head):
            module.requires_grad_(True)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        for _ in range(70):
            loss = model(**inputs).lm_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.05, f"the talker has not learned its answer: loss {loss:.3f}"
    return tuple((name, tensor.clone()) for name, tensor in model.state_dict().items())
