"""What every layout does with config fields and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase

from ...model.configuration_sa2va import SPECIAL_TOKENS
from ..files import read_json

# Of tokenizer_config.json: what only transformers 5 writes, and 4 stumbles over or has another name for.
ONLY_IN_5 = ("backend", "is_local", "local_files_only", "processor_class", "extra_special_tokens")

# Rows of an embedding beyond the tokenizer's entries that are taken for padding (Qwen2.5-VL 7B has 399).
MAX_PADDING = 512

# Checked here, since the configs of transformers 5.3 take any type.
WHOLE = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "depth", "num_attention_heads", "num_heads"),
    *("num_key_value_heads", "head_dim", "out_hidden_size", "patch_size", "spatial_merge_size", "vocab_size"),
}


def needed(section: dict[str, Any], fields: Collection[str], where: str) -> dict[str, Any]:
    """Those fields of the section.

    Raises:
        ValueError: listing the ones that are missing or null, or naming a size that is no whole number.
    """
    missing = [field for field in fields if section.get(field) is None]
    if missing:
        raise ValueError(f"config.json: {where} lacks {', '.join(missing)}; these are not guessed")
    for field in fields:
        if field in WHOLE and type(section[field]) is not int:
            raise ValueError(f"config.json: {where}.{field}: expected a whole number, got {section[field]!r}")
    return {field: section[field] for field in fields}


def check_fixed(section: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Refuse values that are not implemented.

    Raises:
        ValueError: a field has a value other than the one that is implemented.
    """
    wrong = [f"{k} {section[k]!r} (only {v!r})" for k, v in fixed.items() if section.get(k, v) != v]
    if wrong:
        raise ValueError(f"config.json: not supported: {', '.join(wrong)}")


@contextmanager
def section(where: str) -> Iterator[None]:
    """Report what the native config inside does not accept as an error in `where`.

    Raises:
        ValueError: naming `where`.
    """
    try:
        yield
    except (StrictDataclassError, TypeError, KeyError) as error:
        raise ValueError(f"config.json: {where} cannot be followed: {error}") from error


def check_tokenizer_files(source: Path) -> None:
    """Refuse a folder without a readable tokenizer.

    Raises:
        ValueError: naming the files that are missing or damaged.
    """
    if not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"{source}: no tokenizer: neither tokenizer.json, vocab.json nor tokenizer.model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json"):
        if (source / name).is_file():
            read_json(source / name)


def template_of(released: dict[str, Any]) -> str:
    """The chat template's name; never guessed.

    Raises:
        ValueError: it is missing.
    """
    if not released.get("template"):
        raise ValueError('config.json: no template; add the chat template it was trained with, e.g. "phi3_chat"')
    return released["template"].replace("-", "_")


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, marks: Iterable[str], source: Path, where: str
) -> None:
    """Compare tokenizer and config.

    Raises:
        ValueError: the tokenizer has more entries than the config's `where`, or over `MAX_PADDING` fewer, or lacks
            Sa2VA's tokens or the family's `marks`.
    """
    if not 0 <= vocab_size - len(tokenizer) <= MAX_PADDING:
        raise ValueError(
            f"config.json: {where} is {vocab_size}, but the tokenizer has {len(tokenizer)} entries; do they belong "
            "together?"
        )
    missing = sorted({*marks, *SPECIAL_TOKENS} - set(tokenizer.get_vocab()))
    if missing:
        raise ValueError(f"{source}: the tokenizer lacks {', '.join(missing)}; is it the base model's?")


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """The tokenizer's files in a form that transformers 4, which the released code needs, reads as well, with its slow
    classes too: the added tokens are in tokenizer_config.json, and byte-level pairs in vocab.json and merges.txt."""
    tokenizer.save_pretrained(output)
    path = output / "tokenizer_config.json"
    settings = {name: value for name, value in read_json(path).items() if name not in ONLY_IN_5}
    added = sorted(tokenizer.added_tokens_decoder.items())
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    settings["added_tokens_decoder"] = {str(i): {flag: getattr(t, flag) for flag in flags} for i, t in added}
    named = {settings.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")}
    settings["additional_special_tokens"] = [t.content for _, t in added if t.special and t.content not in named]
    if settings["tokenizer_class"] == "TokenizersBackend":  # its name in 5
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    model = read_json(output / "tokenizer.json")["model"]
    if settings["tokenizer_class"].startswith("Qwen2Tokenizer"):
        (output / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        (output / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
