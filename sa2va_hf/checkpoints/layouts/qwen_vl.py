"""Sa2VA on Qwen2.5-VL and Qwen3-VL as released: the native model under `model.`, its config with a few words more.

Names of the released tensors and fields: `bytedance/Sa2VA`, projects/sa2va/hf/models_qwen*, which need transformers
4.57. Its configs differ from 5's in how they write the rotary embedding, and Qwen2.5-VL's there has no place for the
chat template's name nor, at the top, for the architecture.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ...model.configuration_sa2va import SEG_TOKEN, Sa2VAConfig, Sa2VAGroundingConfig
from ...model.pictures import PICTURES
from ...model.processing_sa2va import Sa2VAProcessor
from ..files import read_json
from ..grounding_rules import grounding_rules
from ..rules import Rule
from .common import check_tokenizer_files, check_vocabulary, needed, template_of, write_tokenizer

logger = logging.getLogger(__name__)

FAMILY = "Qwen-VL"
# Buffers that old versions of transformers stored and that follow from the config.
DROPPED = re.compile(r"\.(rotary_emb|rotary_pos_emb)\.inv_freq$")
SAVED_NAMES = (  # of Qwen2.5-VL; Qwen3-VL's are told apart by their second part
    ("mllm.visual.", "mllm.model.visual."),
    ("mllm.model.embed_tokens.", "mllm.model.language_model.embed_tokens."),
    ("mllm.model.layers.", "mllm.model.language_model.layers."),
    ("mllm.model.norm.", "mllm.model.language_model.norm."),
)
KINDS = ("qwen2_5_vl", "qwen3_vl")
NATIVE = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}  # beginnings of transformers' class names

TOP_NEEDED = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# What shapes a weight or the computation, and so is not left to a default.
TEXT_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps",
)  # fmt: skip
VISION_NEEDED = (
    "hidden_size", "intermediate_size", "depth", "num_heads", "out_hidden_size", "patch_size", "spatial_merge_size",
)  # fmt: skip
ONLY_IN_TEXT = {"qwen2_5_vl": (), "qwen3_vl": ("head_dim",)}
ONLY_IN_VISION = {
    "qwen2_5_vl": ("window_size", "fullatt_block_indexes"),
    "qwen3_vl": ("num_position_embeddings", "deepstack_visual_indexes"),
}
AUTO_MAP = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigQwen",
    "AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
    "AutoModelForCausalLM": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
}


def _kind(released: dict[str, Any]) -> str | None:
    """ "qwen2_5_vl" or "qwen3_vl", or neither."""
    sections = (released.get("vision_config") or {}, released.get("text_config") or {}, released)
    types = [re.sub("_(vision|text)$", "", str(section.get("model_type"))) for section in sections]
    return next((kind for kind in KINDS if kind in types), None)


def recognises(released: dict[str, Any]) -> bool:
    return "text_config" in released and _kind(released) is not None


def fits(config: Sa2VAConfig) -> bool:
    return config.mllm_config.model_type in KINDS


def rules(config: Sa2VAConfig) -> list[Rule]:
    return [
        Rule("mllm.{rest}", "model.{rest}"),
        *grounding_rules(config.grounding_config),
    ]


# -------------------------------------------------------------------- released -> ours
def read(
    source: Path, released: dict[str, Any], grounding: Sa2VAGroundingConfig
) -> tuple[Sa2VAConfig, Sa2VAProcessor]:
    mllm = to_mllm(released)
    check_tokenizer_files(source)
    tokenizer = AutoTokenizer.from_pretrained(source, config=mllm, trust_remote_code=False)
    pictures, text = PICTURES[mllm.model_type], mllm.get_text_config()
    marks = {"vision_start_token_id": pictures.start, "image_token_id": pictures.context}
    check_vocabulary(tokenizer, text.vocab_size, [*marks.values(), pictures.end], source, "text_config.vocab_size")
    for field, mark in marks.items():
        if (number := tokenizer.convert_tokens_to_ids(mark)) != released[field]:
            raise ValueError(f"config.json: {field} is {released[field]}, but the tokenizer's {mark} is {number}")
    config = Sa2VAConfig(
        mllm_config=mllm.to_dict(),
        grounding_config=grounding.to_dict(),
        template=_template(released, tokenizer),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        seg_before_norm=_seg_before_norm(mllm.model_type),
    )
    return config, Sa2VAProcessor.for_model(config, tokenizer, **_normalisation(source, mllm))


def to_mllm(released: dict[str, Any]) -> PreTrainedConfig:
    """The native config inside a released one.

    Raises:
        ValueError: listing fields that are missing.
    """
    kind, text, vision = _kind(released), released["text_config"], released["vision_config"]
    top = needed(released, TOP_NEEDED, "the top level")
    needed(text, TEXT_NEEDED + ONLY_IN_TEXT[kind], "text_config")
    needed(vision, VISION_NEEDED + ONLY_IN_VISION[kind], "vision_config")
    native = AutoConfig.for_model(kind)
    return AutoConfig.for_model(
        kind,
        text_config=_known(text, native.text_config) | {"rope_parameters": _rope(text), "tie_word_embeddings": False},
        vision_config=_known(vision, native.vision_config),
        tie_word_embeddings=False,
        **top,
    )


def _known(section: dict[str, Any], native: PreTrainedConfig) -> dict[str, Any]:
    """Those fields that the native class has of its own."""
    names = set(native.to_dict()) - set(PreTrainedConfig().to_dict()) - {"rope_parameters"}
    names |= {"bos_token_id", "eos_token_id", "pad_token_id"}
    left = sorted(set(section) - names - {"rope_theta", "rope_scaling", "rope_parameters"})
    logger.info("fields of %s that are not taken over: %s", native.model_type, ", ".join(left))
    return {name: value for name, value in section.items() if name in names}


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding in 5's words, from 4's or 5's.

    Raises:
        ValueError: a picture's share is not told.
    """
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    theta = rope.pop("rope_theta", text.get("rope_theta"))
    if theta is None or "mrope_section" not in rope:
        raise ValueError("config.json: text_config lacks rope_theta or rope_scaling.mrope_section; not guessed")
    return {"rope_type": "default" if kind == "mrope" else kind, "rope_theta": theta, **rope}


def _template(released: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Released configs of Qwen2.5-VL have lost it; then the folder's own chat template says which it is."""
    if not released.get("template") and "<|im_start|>" in str(tokenizer.chat_template):
        logger.info("config.json has no template, the chat template beside it is ChatML: taking qwen_chat")
        return "qwen_chat"
    return template_of(released)


def _seg_before_norm(kind: str) -> bool:
    """transformers 4.57 makes the last `hidden_states` of Qwen3-VL (only) the ones before the norm, and the release
    was trained so."""
    return kind == "qwen3_vl"


def _normalisation(source: Path, mllm: PreTrainedConfig) -> dict[str, Any]:
    """Mean and deviation that the folder's image processor has, where there is one. The limits on an image's pixels
    are not read from it: the released code sets its own."""
    path = source / "preprocessor_config.json"
    if not path.is_file():
        return {}
    settings, vision = read_json(path), mllm.vision_config
    for name, expected in (("patch_size", vision.patch_size), ("merge_size", vision.spatial_merge_size)):
        if settings.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} is {settings[name]}, but config.json's vision_config says {expected}")
    names = {"image_mean": "pixel_mean", "image_std": "pixel_std"}
    return {ours: settings[name] for name, ours in names.items() if settings.get(name) is not None}


# -------------------------------------------------------------------- ours -> released
def released_config(config: Sa2VAConfig, processor: Sa2VAProcessor, dtype: torch.dtype) -> dict[str, Any]:
    """With the field set of the published ones, and the chat template's name for both."""
    mllm, kind = config.mllm_config, config.mllm_config.model_type
    if config.seg_before_norm != _seg_before_norm(kind):
        raise ValueError(
            f"config.json: seg_before_norm is {config.seg_before_norm}, but the released code reads {kind}'s [SEG] "
            f"{'before' if _seg_before_norm(kind) else 'after'} the norm: its masks would be wrong"
        )
    pictures = PICTURES[kind]
    for name in ("image_pixels", "frame_pixels"):
        if list(getattr(processor, name)) != list(getattr(pictures, name)):
            raise ValueError(
                f"processor_config.json: {name} is {list(getattr(processor, name))}, but the released code knows "
                f"{list(getattr(pictures, name))} only"
            )
    text, vision = mllm.get_text_config(), mllm.vision_config
    rope = dict(text.rope_parameters)
    theta = rope.pop("rope_theta")
    scaling = rope | ({"type": rope["rope_type"]} if kind == "qwen2_5_vl" else {})
    return {
        "architectures": ["Sa2VAChatModelQwen"],
        "auto_map": AUTO_MAP,
        **{field: getattr(mllm, field) for field in TOP_NEEDED},
        "model_type": "sa2va_chat",
        "template": config.template,
        "text_config": {
            **_own(text),
            "model_type": f"{kind}_text",
            "rope_scaling": scaling,
            "rope_theta": theta,
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {**_own(vision), "model_type": kind},
    }


def _own(native: PreTrainedConfig) -> dict[str, Any]:
    given = native.to_dict()
    return {name: given[name] for name in _known(given, type(native)())}


def write_processor(processor: Sa2VAProcessor, output: Path) -> None:
    """Tokenizer and image processor, as transformers 4's processor of the native model reads them."""
    write_tokenizer(processor.tokenizer, output)
    path = output / "tokenizer_config.json"
    name = f"{NATIVE[processor.backbone]}Processor"
    path.write_text(json.dumps(read_json(path) | {"processor_class": name}, indent=2, ensure_ascii=False) + "\n")
    pictures = processor.pictures
    least, most = processor.image_pixels
    common = {
        "image_mean": list(processor.pixel_mean),
        "image_std": list(processor.pixel_std),
        "patch_size": pictures.patch_size,
        "merge_size": pictures.merge_size,
        "temporal_patch_size": 2,
        "processor_class": name,
        "size": {"shortest_edge": least, "longest_edge": most},
    }
    images = {"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": least, "max_pixels": most, **common}
    videos = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[processor.backbone]
    for file, settings in (
        ("preprocessor_config.json", images),
        ("video_preprocessor_config.json", {"video_processor_type": videos, **common}),
    ):
        (output / file).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
