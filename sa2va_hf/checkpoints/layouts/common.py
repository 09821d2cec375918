"""What every layout does with config fields and tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...model.configuration_sa2va import SPECIAL_TOKENS


def needed(section: dict[str, Any], fields: Iterable[str], where: str) -> dict[str, Any]:
    """Those fields of the section. Errors: ValueError listing the ones that are missing or null."""
    missing = [field for field in fields if section.get(field) is None]
    if missing:
        raise ValueError(f"config.json: {where} lacks {', '.join(missing)}; these are not guessed")
    return {field: section[field] for field in fields}


def check_fixed(section: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Errors: ValueError where a field has another value than the only one that is implemented."""
    wrong = [f"{k} {section[k]!r} (only {v!r})" for k, v in fixed.items() if section.get(k, v) != v]
    if wrong:
        raise ValueError(f"config.json: not supported: {', '.join(wrong)}")


def template_of(released: dict[str, Any]) -> str:
    """The chat template's name; never guessed. Errors: ValueError where it is missing."""
    if not released.get("template"):
        raise ValueError('config.json: no template; add the chat template it was trained with, e.g. "phi3_chat"')
    return released["template"].replace("-", "_")


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, marks: Iterable[str], source: Path, where: str
) -> None:
    """Errors: ValueError when the tokenizer has another size than the config's `where`, or lacks Sa2VA's tokens or
    the family's `marks`."""
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"config.json: {where} is {vocab_size}, but the tokenizer has {len(tokenizer)} entries; do they belong "
            "together?"
        )
    missing = sorted({*marks, *SPECIAL_TOKENS} - set(tokenizer.get_vocab()))
    if missing:
        raise ValueError(f"{source}: the tokenizer lacks {', '.join(missing)}; is it the base model's?")
