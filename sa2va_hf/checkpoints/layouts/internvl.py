"""Sa2VA on InternVL 2, 2.5 and 3 as released: InternViT, a projector called `mlp1`, and one of several LLMs.

Names of the released tensors and fields: `bytedance/Sa2VA`, projects/sa2va/hf; names of ours: transformers' InternVL.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, InternVLConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ...model.configuration_sa2va import IMAGE_CONTEXT, SEG_TOKEN, Sa2VAConfig, Sa2VAGroundingConfig
from ...model.processing_sa2va import Sa2VAProcessor
from ..grounding_rules import grounding_rules
from ..rules import STACKED_QKV, Rule
from .common import (
    check_fixed,
    check_tokenizer_files,
    check_vocabulary,
    needed,
    section,
    template_of,
    write_tokenizer,
)
from .languages import LANGUAGES, language_rules, read_language, released_architecture, write_language
from .sentencepiece_tokenizer import read_tokenizer

logger = logging.getLogger(__name__)

FAMILY = "InternVL"
# Buffers that old versions of transformers stored and that follow from the config.
DROPPED = re.compile(r"\.rotary_emb\.inv_freq$")
SAVED_NAMES = (
    ("mllm.language_model.lm_head.", "mllm.lm_head."),
    ("mllm.language_model.model.", "mllm.model.language_model."),
    ("mllm.vision_tower.", "mllm.model.vision_tower."),
    ("mllm.multi_modal_projector.", "mllm.model.multi_modal_projector."),
)

# vision_config's field -> InternVLVisionConfig's
VISION_NEEDED = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "image_size": "image_size", "patch_size": "patch_size",
    "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
VISION_TAKEN = {
    "norm_type": "norm_type", "hidden_act": "hidden_act", "num_channels": "num_channels",
    "attention_dropout": "attention_dropout", "dropout": "projection_dropout",
    "initializer_range": "initializer_range",
}  # fmt: skip
TOP_NEEDED = ("force_image_size", "downsample_ratio", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail")
# What only one value of is implemented.
TOP_FIXED = {"select_layer": -1, "ps_version": "v2", "pad2square": False, "use_backbone_lora": 0, "use_llm_lora": 0}
AUTO_MAP = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig",
    "AutoModel": "modeling_sa2va_chat.Sa2VAChatModel",
    "AutoModelForCausalLM": "modeling_sa2va_chat.Sa2VAChatModel",
}

_TOWER, _LAYER = "mllm.model.vision_tower.", "mllm.model.vision_tower.encoder.layer.{layer}."
_BLOCK, _PROJECTOR = "vision_model.encoder.layers.{layer}.", "mllm.model.multi_modal_projector."
VISION_RULES = [
    Rule(_TOWER + "embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    Rule(_TOWER + "embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    Rule(_TOWER + "embeddings.patch_embeddings.projection.{rest}", "vision_model.embeddings.patch_embedding.{rest}"),
    Rule(_LAYER + "layernorm_before.{rest}", _BLOCK + "norm1.{rest}"),
    Rule(_LAYER + "layernorm_after.{rest}", _BLOCK + "norm2.{rest}"),
    Rule(_LAYER + "lambda_1", _BLOCK + "ls1"),
    Rule(_LAYER + "lambda_2", _BLOCK + "ls2"),
    Rule(
        tuple(_LAYER + f"attention.{letter}_proj.{{rest}}" for letter in "qkv"),
        _BLOCK + "attn.qkv.{rest}",
        STACKED_QKV,
    ),
    Rule(_LAYER + "attention.projection_layer.{rest}", _BLOCK + "attn.proj.{rest}"),
    Rule(_LAYER + "attention.q_norm.{rest}", _BLOCK + "attn.q_norm.{rest}"),
    Rule(_LAYER + "attention.k_norm.{rest}", _BLOCK + "attn.k_norm.{rest}"),
    Rule(_LAYER + "mlp.{rest}", _BLOCK + "mlp.{rest}"),
    Rule(_PROJECTOR + "layer_norm.{rest}", "mlp1.0.{rest}"),
    Rule(_PROJECTOR + "linear_1.{rest}", "mlp1.1.{rest}"),
    Rule(_PROJECTOR + "linear_2.{rest}", "mlp1.3.{rest}"),
]


def recognises(released: dict[str, Any]) -> bool:
    return all(isinstance(released.get(part), dict) for part in ("llm_config", "vision_config"))


def fits(config: Sa2VAConfig) -> bool:
    return config.mllm_config.model_type == "internvl"


def rules(config: Sa2VAConfig) -> list[Rule]:
    common = grounding_rules(config.grounding_config)
    return [*VISION_RULES, *language_rules(config.get_text_config()), *common]


# -------------------------------------------------------------------- released -> ours
def read(
    source: Path, released: dict[str, Any], grounding: Sa2VAGroundingConfig
) -> tuple[Sa2VAConfig, Sa2VAProcessor]:
    text_config = read_language(released)
    tokenizer = load_tokenizer(source, text_config)
    check_vocabulary(tokenizer, text_config.vocab_size, [IMAGE_CONTEXT], source, "llm_config.vocab_size")
    config = to_config(released, text_config, tokenizer, grounding)
    return config, to_processor(released, config, tokenizer)


def load_tokenizer(source: Path, text_config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, of a class of transformers'."""
    check_tokenizer_files(source)
    if LANGUAGES[released_architecture(text_config)].sentencepiece:
        return read_tokenizer(source)
    return AutoTokenizer.from_pretrained(source, config=text_config, trust_remote_code=False)


def to_config(
    released: dict[str, Any],
    text_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    grounding: Sa2VAGroundingConfig,
) -> Sa2VAConfig:
    """The released config in our words.

    Raises:
        ValueError: naming fields that are missing or not supported.
    """
    template = template_of(released)
    check_fixed(released, TOP_FIXED)
    top, vision = needed(released, TOP_NEEDED, "the top level"), released["vision_config"]
    taken = needed(vision, VISION_NEEDED, "vision_config") | {k: vision[k] for k in VISION_TAKEN if k in vision}
    side, patch, ratio = top["force_image_size"], vision["patch_size"], top["downsample_ratio"]
    if side != vision["image_size"]:
        raise ValueError(
            f"config.json: force_image_size is {side}, vision_config.image_size {vision['image_size']}; only equal "
            "ones are supported"
        )
    if vision.get("drop_path_rate"):
        logger.info("vision_config.drop_path_rate %s: native InternVL has none", vision["drop_path_rate"])
    names = VISION_NEEDED | VISION_TAKEN
    with section("vision_config"):
        mllm = InternVLConfig(
            vision_config={names[field]: value for field, value in taken.items()},
            text_config=text_config.to_dict(),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
            image_seq_length=int(side // patch * ratio) ** 2,
            downsample_ratio=ratio,
            tie_word_embeddings=False,
        )
    return Sa2VAConfig(
        mllm_config=mllm.to_dict(),
        grounding_config=grounding.to_dict(),
        template=template,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )


def to_processor(released: dict[str, Any], config: Sa2VAConfig, tokenizer: PreTrainedTokenizerBase) -> Sa2VAProcessor:
    """The processor that the released config describes.

    Raises:
        ValueError: an unknown template.
    """
    dynamic, language = (
        released.get("dynamic_image_size", True),
        LANGUAGES[released_architecture(config.get_text_config())],
    )
    return Sa2VAProcessor(
        tokenizer,
        template=config.template,
        tile_size=released["force_image_size"],
        patch_size=released["vision_config"]["patch_size"],
        downsample_ratio=released["downsample_ratio"],
        min_tiles=released["min_dynamic_patch"] if dynamic else 1,
        max_tiles=released["max_dynamic_patch"] if dynamic else 1,
        use_thumbnail=released["use_thumbnail"],
        grounding_image_size=config.grounding_config.image_size,
        add_bos=language.bos and tokenizer.bos_token_id is not None,
    )


# -------------------------------------------------------------------- ours -> released
def write_processor(processor: Sa2VAProcessor, output: Path) -> None:
    write_tokenizer(processor.tokenizer, output)


def released_config(config: Sa2VAConfig, processor: Sa2VAProcessor, dtype: torch.dtype) -> dict[str, Any]:
    """With the field set of the published ones."""
    stored = str(dtype).removeprefix("torch.")
    vision = config.mllm_config.vision_config.to_dict()
    for field in ("image_size", "patch_size"):  # (height, width) in the native config
        height, width = vision[field]
        if height != width:
            raise ValueError(f"config.json: vision_config.{field}: releases know squares only, got {vision[field]}")
        vision[field] = height
    names = VISION_NEEDED | VISION_TAKEN
    return {
        "architectures": ["Sa2VAChatModel"],
        "auto_map": AUTO_MAP,
        "downsample_ratio": processor.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": processor.tile_size,
        "hidden_size": config.hidden_size,
        "llm_config": write_language(config.get_text_config()) | {"torch_dtype": stored},
        "max_dynamic_patch": processor.max_tiles,
        "min_dynamic_patch": processor.min_tiles,
        "model_type": "sa2va_chat",
        **TOP_FIXED,
        "template": config.template,
        "tie_word_embeddings": False,
        "torch_dtype": stored,
        "use_thumbnail": processor.use_thumbnail,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "drop_path_rate": 0.0,
            "initializer_factor": 1.0,
            **{field: vision[ours] for field, ours in names.items()},
            "torch_dtype": stored,
            "use_flash_attn": True,
        },
    }
