"""Sa2VA on LLaVA-1.5 as released: the native model of transformers 4 under `model.`, its config with the template.

Since transformers 5 the CLIP tower's tensors may be one level up; the rules fit both.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig

from ...model.configuration_sa2va import PLACEHOLDER, SEG_TOKEN, Sa2VAConfig, Sa2VAGroundingConfig
from ...model.pictures import LlavaPictures
from ...model.processing_sa2va import Sa2VAProcessor
from ..grounding_rules import grounding_rules
from ..rules import Rule
from .common import check_fixed, check_tokenizer_files, check_vocabulary, needed, section, template_of, write_tokenizer
from .sentencepiece_tokenizer import read_tokenizer

logger = logging.getLogger(__name__)

FAMILY = "LLaVA"
# Buffers that old versions of transformers stored and that follow from the config.
DROPPED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")
SAVED_NAMES: tuple[tuple[str, str], ...] = ()
TOWER = "model.vision_tower."

VISION_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip
VISION_TAKEN = ("projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout", "vocab_size")
# A released text_config has what differs from LlamaConfig's own values, which are those of the 7B model.
TEXT_TAKEN = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "rms_norm_eps", "max_position_embeddings", "initializer_range", "attention_bias", "mlp_bias",
    "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
TOP_TAKEN = ("projector_hidden_act", "multimodal_projector_bias", "image_seq_length")
# What only one value of is implemented.
TOP_FIXED = {"vision_feature_select_strategy": "default"}
AUTO_MAP = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigLlava",
    "AutoModel": "modeling_sa2va_llava.Sa2VAChatModelLlava",
    "AutoModelForCausalLM": "modeling_sa2va_llava.Sa2VAChatModelLlava",
}


def recognises(released: dict[str, Any]) -> bool:
    vision = released.get("vision_config")
    return isinstance(vision, dict) and vision.get("model_type") == "clip_vision_model" and "text_config" in released


def fits(config: Sa2VAConfig) -> bool:
    return config.mllm_config.model_type == "llava"


def rules(config: Sa2VAConfig) -> list[Rule]:
    stored = f"model.{TOWER}vision_model.{{rest}}"
    return [
        Rule(f"mllm.{TOWER}vision_model.{{rest}}", stored),
        Rule(f"mllm.{TOWER}{{rest}}", stored),
        Rule("mllm.{rest}", "model.{rest}"),
        *grounding_rules(config.grounding_config),
    ]


# -------------------------------------------------------------------- released -> ours
def read(
    source: Path, released: dict[str, Any], grounding: Sa2VAGroundingConfig
) -> tuple[Sa2VAConfig, Sa2VAProcessor]:
    mllm = to_mllm(released)
    check_tokenizer_files(source)
    tokenizer = read_tokenizer(source)
    check_vocabulary(tokenizer, mllm.text_config.vocab_size, [PLACEHOLDER], source, "text_config.vocab_size")
    if (number := tokenizer.convert_tokens_to_ids(PLACEHOLDER)) != mllm.image_token_id:
        raise ValueError(
            f"config.json: image_token_index is {mllm.image_token_id}, but the tokenizer's {PLACEHOLDER} is {number}"
        )
    config = Sa2VAConfig(
        mllm_config=mllm.to_dict(),
        grounding_config=grounding.to_dict(),
        template=template_of(released),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )
    return config, Sa2VAProcessor.for_model(config, tokenizer)


def to_mllm(released: dict[str, Any]) -> LlavaConfig:
    """The native config inside a released one.

    Raises:
        ValueError: listing fields that are missing or have another value than the one that is implemented.
    """
    check_fixed(released, TOP_FIXED)
    text, vision = released["text_config"], released["vision_config"]
    needed(vision, VISION_NEEDED, "vision_config")
    top = needed(released, ("vision_feature_layer",), "the top level")
    vocabulary = needed(text, ("vocab_size",), "text_config")
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    rope = {"rope_type": rope.pop("type", "default"), "rope_theta": text.get("rope_theta", 10000.0)} | rope
    fields = {name: text[name] for name in TEXT_TAKEN if name in text} | vocabulary
    left = sorted(set(text) - set(fields) - {"rope_theta", "rope_scaling", "rope_parameters"})
    logger.info("fields of text_config that are not taken over: %s", ", ".join(left))
    tower = {name: vision[name] for name in (*VISION_NEEDED, *VISION_TAKEN) if name in vision}
    index = released.get("image_token_index", released.get("image_token_id"))
    if index is None:
        raise ValueError("config.json: the top level lacks image_token_index; it is not guessed")
    with section("text_config or vision_config"):
        return AutoConfig.for_model(
            "llava",
            text_config={"model_type": "llama", "tie_word_embeddings": False, "rope_parameters": rope, **fields},
            vision_config={"model_type": "clip_vision_model", **tower},
            image_token_index=index,
            tie_word_embeddings=False,
            **top,
            **{name: released[name] for name in TOP_TAKEN if name in released},
        )


# -------------------------------------------------------------------- ours -> released
def released_config(config: Sa2VAConfig, processor: Sa2VAProcessor, dtype: torch.dtype) -> dict[str, Any]:
    """With the field set of the published ones."""
    mllm, usual = config.mllm_config, LlavaPictures()
    for name in ("pixel_mean", "pixel_std"):
        if list(getattr(processor, name)) != list(getattr(usual, name)):
            raise ValueError(
                f"processor_config.json: {name} is {list(getattr(processor, name))}, but the released code knows "
                f"{list(getattr(usual, name))} only"
            )
    text, vision = mllm.text_config.to_dict(), mllm.vision_config.to_dict()
    rope = dict(text["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type", "default")
    return {
        "architectures": ["Sa2VAChatModelLlava"],
        "auto_map": AUTO_MAP,
        "image_token_index": mllm.image_token_id,
        "model_type": "sa2va_chat",
        "template": config.template,
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{name: text[name] for name in (*TEXT_TAKEN, "vocab_size") if text.get(name) is not None},
            "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
            "rope_theta": theta,
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {
            "model_type": "clip_vision_model",
            **{name: vision[name] for name in (*VISION_NEEDED, *VISION_TAKEN) if vision.get(name) is not None},
        },
        "vision_feature_layer": mllm.vision_feature_layer,
        **{name: getattr(mllm, name) for name in TOP_TAKEN},
        **TOP_FIXED,
    }


def write_processor(processor: Sa2VAProcessor, output: Path) -> None:
    """The tokenizer; a release has no image processor."""
    write_tokenizer(processor.tokenizer, output)
