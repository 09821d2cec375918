"""A whole Sa2VA in a second: real classes, small numbers, a byte-level tokenizer trained on a few lines.

Not a stand-in: InternVL and SAM 2 are the real ones, only narrow. `tiny_model()` has random weights from a fixed seed.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLConfig, PreTrainedTokenizerFast

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SPECIAL_TOKENS

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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    marks = ["<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_CONTEXT, IMAGE_END, *SPECIAL_TOKENS]
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def tiny_config(**overrides: object) -> Sa2VAConfig:
    """ViT and LLM of width 64, SAM 2 at 128 px; `overrides` are fields of `Sa2VAConfig`."""
    tokenizer = tiny_tokenizer()
    mllm = InternVLConfig(
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config={
            "model_type": "qwen2",
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
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=4,
        tie_word_embeddings=False,
    ).to_dict()
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


def tiny_processor(**overrides: object) -> Sa2VAProcessor:
    fields = {"tile_size": 56, "patch_size": 14, "max_tiles": 4, "grounding_image_size": 128}
    return Sa2VAProcessor(tiny_tokenizer(), **(fields | overrides))


def tiny_model(seed: int = 0, **overrides: object) -> Sa2VAForConditionalGeneration:
    """Random weights that depend on the seed alone, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sa2VAForConditionalGeneration(tiny_config(**overrides)).eval()


def tiny_talker(answer: str = "Sure, it is [SEG].", template: str = "qwen_chat") -> Sa2VAForConditionalGeneration:
    """A tiny model that has learned to say `answer` to whatever it is asked, with or without a picture."""
    model = tiny_model(template=template)
    model.load_state_dict(dict(_talker_weights(answer, template)))
    return loud(model)


def loud(model: Sa2VAForConditionalGeneration) -> Sa2VAForConditionalGeneration:
    """Strengthen the [SEG] embeddings, in place: random masks hardly depend on them and would hide a wrong one."""
    with torch.no_grad():
        model.text_hidden_fcs[2].weight.mul_(100)
    return model


@lru_cache
def _talker_weights(answer: str, template: str) -> tuple[tuple[str, torch.Tensor], ...]:
    processor = tiny_processor(template=template)
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
        model = tiny_model(template=template).requires_grad_(False)
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
