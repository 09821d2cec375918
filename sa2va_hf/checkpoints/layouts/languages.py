"""The language models of the InternVL family: released `llm_config` and names <-> transformers' native classes."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from ..rules import Rule
from .common import needed

logger = logging.getLogger(__name__)

# Of llm_config: what must be there, since a default would be a guess, and what is taken over where it is.
NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings",
)  # fmt: skip
TAKEN = (
    "hidden_act", "head_dim", "attention_bias", "attention_dropout", "mlp_bias", "initializer_range",
    "use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class Language(NamedTuple):
    """A released LLM class: `model_type` of the native one, and of itself where it has another."""

    model_type: str
    released_type: str


LANGUAGES = {  # by llm_config.architectures[0]
    "Qwen2ForCausalLM": Language("qwen2", "qwen2"),
    "Qwen3ForCausalLM": Language("qwen3", "qwen3"),
    "LlamaForCausalLM": Language("llama", "llama"),
}


def read_language(released: dict[str, Any]) -> PreTrainedConfig:
    """`llm_config` -> the native config, which remembers the released class as its `architectures`.

    Errors: ValueError naming an unknown architecture, or fields that are missing.
    """
    llm = released["llm_config"]
    architecture = (llm.get("architectures") or [None])[0]
    if architecture not in LANGUAGES:
        raise ValueError(
            f"config.json: llm_config.architectures[0]: expected one of {sorted(LANGUAGES)}, got {architecture!r}, "
            "which this converter does not know"
        )
    fields = needed(llm, NEEDED, "llm_config") | {k: llm[k] for k in TAKEN if k in llm}
    scaling = {k: v for k, v in (llm.get("rope_scaling") or {}).items() if k != "type"}
    kind = (llm.get("rope_scaling") or {}).get("type", "default")  # its name before it was called rope_type
    fields["rope_parameters"] = {"rope_type": kind} | scaling | {"rope_theta": fields.pop("rope_theta")}
    left = sorted(set(llm) - set(fields) - {"rope_theta", "rope_scaling"})
    logger.info("fields of llm_config that shape no weight and are not taken over: %s", ", ".join(left))
    config = AutoConfig.for_model(LANGUAGES[architecture].model_type, tie_word_embeddings=False, **fields)
    config.architectures = [architecture]
    return config


def write_language(config: PreTrainedConfig) -> dict[str, Any]:
    """The native config -> `llm_config`. Errors: ValueError for a native class that no release has."""
    architecture = released_architecture(config)
    given = config.to_dict()
    fields = {name: given[name] for name in (*NEEDED, *TAKEN) if name in given}
    rope = dict(given["rope_parameters"])
    fields["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    fields["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    return {
        "architectures": [architecture],
        "model_type": LANGUAGES[architecture].released_type,
        "tie_word_embeddings": False,
        "use_cache": True,
        **fields,
    }


def released_architecture(config: PreTrainedConfig) -> str:
    """The class it was released as, or, for a model that never was, the first with that native class."""
    remembered = (config.architectures or [None])[0]
    if remembered in LANGUAGES and LANGUAGES[remembered].model_type == config.model_type:
        return remembered
    for architecture, language in LANGUAGES.items():
        if language.model_type == config.model_type:
            return architecture
    raise ValueError(f"config.json: no release has a language model of type {config.model_type!r}")


def language_rules(config: PreTrainedConfig) -> list[Rule]:
    return [
        Rule("mllm.model.language_model.{rest}", "language_model.model.{rest}"),
        Rule("mllm.lm_head.{rest}", "language_model.lm_head.{rest}"),
    ]
