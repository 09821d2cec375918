"""The language models of the InternVL family: released `llm_config` and names <-> transformers' native classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..rules import Fusion, Rule
from .common import needed, section

logger = logging.getLogger(__name__)

# Of llm_config: what must be there, since a default would be a guess, and what is taken over where it is.
NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings",
)  # fmt: skip
TAKEN = ("hidden_act", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
SLIDING = ("use_sliding_window", "sliding_window", "max_window_layers")

OURS, THEIRS, HEAD = "mllm.model.language_model.", "language_model.model.", "mllm.lm_head."


def same_names(config: PreTrainedConfig) -> list[Rule]:
    """The released class is the native one, or has its names (and its fused tensors, as Phi-3)."""
    return [Rule(OURS + "{rest}", THEIRS + "{rest}"), Rule(HEAD + "{rest}", "language_model.lm_head.{rest}")]


def internlm2_names(config: PreTrainedConfig) -> list[Rule]:
    """A Llama under other names; q, k and v of a group of heads lie together."""
    ours, theirs = OURS + "layers.{layer}.", THEIRS + "layers.{layer}."
    qkv = grouped_qkv(config.num_attention_heads, config.num_key_value_heads)
    projections = tuple(f"{ours}self_attn.{letter}_proj.{{rest}}" for letter in "qkv")
    return [
        Rule(OURS + "embed_tokens.{rest}", THEIRS + "tok_embeddings.{rest}"),
        Rule(projections, theirs + "attention.wqkv.{rest}", qkv),
        Rule(ours + "self_attn.o_proj.{rest}", theirs + "attention.wo.{rest}"),
        Rule(ours + "mlp.gate_proj.{rest}", theirs + "feed_forward.w1.{rest}"),
        Rule(ours + "mlp.up_proj.{rest}", theirs + "feed_forward.w3.{rest}"),
        Rule(ours + "mlp.down_proj.{rest}", theirs + "feed_forward.w2.{rest}"),
        Rule(ours + "input_layernorm.{rest}", theirs + "attention_norm.{rest}"),
        Rule(ours + "post_attention_layernorm.{rest}", theirs + "ffn_norm.{rest}"),
        Rule(OURS + "norm.{rest}", THEIRS + "norm.{rest}"),
        Rule(HEAD + "{rest}", "language_model.output.{rest}"),
    ]


def grouped_qkv(heads: int, kv_heads: int) -> Fusion:
    """Rows in the order: for every key-value head the queries that share it, its key, its value."""
    shared = heads // kv_heads

    def join(parts: Sequence[Tensor]) -> Tensor:
        counts = (shared, 1, 1)
        grouped = [x.reshape(kv_heads, n, -1, *x.shape[1:]) for x, n in zip(parts, counts, strict=True)]
        return torch.cat(grouped, dim=1).flatten(0, 2)

    def split(fused: Tensor) -> Sequence[Tensor]:
        grouped = fused.reshape(kv_heads, shared + 2, -1, *fused.shape[1:])
        return [grouped[:, :shared].flatten(0, 2), grouped[:, shared].flatten(0, 1), grouped[:, -1].flatten(0, 1)]

    return Fusion(join, split)


class Language(NamedTuple):
    """A released LLM class.

    model_type: of the native class.
    released_type: its own.
    taken: fields of llm_config beside `TAKEN`, by the same name in the native config.
    renamed: fields that must be there -> their native names.
    bos: conversations were trained with the tokenizer's bos in front.
    sentencepiece: the tokenizer is one of these, see `sentencepiece_tokenizer`.
    """

    model_type: str
    released_type: str
    taken: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    names: Callable[[PreTrainedConfig], list[Rule]] = same_names
    bos: bool = True
    sentencepiece: bool = True


_LLAMA = ("attention_dropout", "head_dim", "attention_bias", "mlp_bias")
_PHI = ("attention_dropout", "resid_pdrop", "embd_pdrop", "sliding_window", "original_max_position_embeddings")
LANGUAGES = {  # by llm_config.architectures[0]
    "Qwen2ForCausalLM": Language(
        "qwen2", "qwen2", ("attention_dropout", "head_dim", *SLIDING), bos=False, sentencepiece=False
    ),
    "Qwen3ForCausalLM": Language(
        "qwen3", "qwen3", ("attention_dropout", "head_dim", "attention_bias", *SLIDING), bos=False, sentencepiece=False
    ),
    "LlamaForCausalLM": Language("llama", "llama", _LLAMA),
    "InternLM2ForCausalLM": Language("llama", "internlm2", (), {"bias": "attention_bias"}, internlm2_names),
    "Phi3ForCausalLM": Language("phi3", "phi3", _PHI),
}


def read_language(released: dict[str, Any]) -> PreTrainedConfig:
    """`llm_config` -> the native config, which remembers the released class as its `architectures`.

    Raises:
        ValueError: naming an unknown architecture, or fields that are missing.
    """
    llm = released["llm_config"]
    architecture = (llm.get("architectures") or [None])[0]
    if architecture not in LANGUAGES:
        raise ValueError(
            f"config.json: llm_config.architectures[0]: expected one of {sorted(LANGUAGES)}, got {architecture!r}, "
            "which this converter does not know"
        )
    language = LANGUAGES[architecture]
    fields = needed(llm, [*NEEDED, *language.renamed], "llm_config")
    fields |= {k: llm[k] for k in (*TAKEN, *language.taken) if k in llm}
    left = sorted(set(llm) - set(fields) - {"rope_scaling"})
    logger.info("fields of llm_config that shape no weight and are not taken over: %s", ", ".join(left))
    fields = {language.renamed.get(k, k): v for k, v in fields.items()}
    scaling = dict(llm.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")  # its name before it was called rope_type
    if language.model_type == "phi3" and kind == "su":  # the same thing, before it had a public name
        kind = "longrope"
    fields["rope_parameters"] = {"rope_type": kind} | scaling | {"rope_theta": fields.pop("rope_theta")}
    if fields["rope_parameters"]["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        raise ValueError(f"config.json: llm_config.rope_scaling: type {kind!r} is not known")
    with section("llm_config"):
        config = AutoConfig.for_model(language.model_type, tie_word_embeddings=False, **fields)
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if heads % shared:
        raise ValueError(f"config.json: llm_config: {heads} attention heads do not share {shared} key-value heads")
    config.architectures = [architecture]
    return config


def write_language(config: PreTrainedConfig) -> dict[str, Any]:
    """The native config -> `llm_config`.

    Raises:
        ValueError: a native class that no release has.
    """
    architecture = released_architecture(config)
    language = LANGUAGES[architecture]
    given = config.to_dict()
    rope = dict(given["rope_parameters"])
    given["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    if language.model_type == "phi3":
        kind = "su" if kind == "longrope" else kind
        rope = {k: v for k, v in rope.items() if k in ("short_factor", "long_factor")}  # all that class takes
    fields = {name: given[name] for name in (*NEEDED, *TAKEN, *language.taken) if name in given}
    return {
        "architectures": [architecture],
        "model_type": language.released_type,
        **fields,
        **{name: given[ours] for name, ours in language.renamed.items()},
        "rope_scaling": None if kind == "default" else {"type": kind} | rope,
        "tie_word_embeddings": False,
        "use_cache": True,
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
    return LANGUAGES[released_architecture(config)].names(config)
