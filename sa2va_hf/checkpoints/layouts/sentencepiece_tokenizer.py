"""A released tokenizer that is sentencepiece's (`tokenizer.model`; InternLM2, Phi-3, Llama) -> a fast one.

No code of the folder is run, and neither the sentencepiece package nor protobuf is needed: the file is a list of
pieces with scores and a few settings, in protobuf's plain encoding
(github.com/google/sentencepiece, src/sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ..files import read_json

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_PAIRS = 2  # of trainer_spec.model_type


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """What a `tokenizer.model` says. The three booleans: a space in front of every text; runs of spaces are one; bytes
    for what no piece spells. `characters`: its table of equal characters, empty where there is none."""

    pieces: list[Piece]
    prefix_space: bool
    joins_spaces: bool
    byte_fallback: bool
    characters: bytes


def read_tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a released folder, from `tokenizer.json` if it is there, else from `tokenizer.model`.

    Raises:
        ValueError: naming the file that is missing or damaged, or holds another kind of tokenizer.
    """
    settings = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else None
    if settings is None:
        raise ValueError(f"{source}: no tokenizer_config.json, which names the added tokens")
    if (source / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    elif (source / "tokenizer.model").is_file():
        model = read_model(source / "tokenizer.model")
        tokenizer = to_fast(model, settings, source)
    else:
        raise ValueError(f"{source}: neither tokenizer.json nor tokenizer.model")
    named = {f"{role}_token": _content(settings.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    if settings.get("add_bos_token", True) and named["bos_token"]:
        bos, number = named["bos_token"], tokenizer.token_to_id(named["bos_token"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, number)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=settings.get("model_max_length"),
        **{role: token for role, token in named.items() if token},
    )


def to_fast(model: SentencePieceModel, settings: dict[str, Any], source: Path) -> Tokenizer:
    """Pieces, merges, and the added tokens of tokenizer_config.json at their ids.

    A piece is merged before all with lower scores, as sentencepiece does it. Where one piece can be put together from
    overlapping pairs ("aaa" from "a" "aa" "a") the choice may differ, as in every such conversion.
    """
    added = {int(number): _added_token(entry) for number, entry in settings.get("added_tokens_decoder", {}).items()}
    renamed = {number: token.content for number, token in added.items() if number < len(model.pieces)}
    names = [renamed.get(number, piece.text) for number, piece in enumerate(model.pieces)]
    vocabulary = {name: number for number, name in enumerate(names)}
    if len(vocabulary) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{source}: pieces of tokenizer.model and added tokens are called the same: {twice[:5]}")
    unknown = next((names[i] for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        BPE(vocabulary, merges(model, renamed), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    )
    _set_spaces(tokenizer, model, settings)
    fixed = [
        (number, AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL))
        for number, piece in enumerate(model.pieces)
        if piece.kind in (CONTROL, USER_DEFINED) and number not in added
    ]
    for number, token in sorted([*fixed, *added.items()], key=lambda item: item[0]):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (got := tokenizer.token_to_id(token.content)) != number:
            raise ValueError(
                f"{source}: tokenizer_config.json gives {token.content!r} the id {number}, but {got} comes next; do "
                "tokenizer.model and it belong together?"
            )
    return tokenizer


def merges(model: SentencePieceModel, renamed: dict[int, str]) -> list[tuple[str, str]]:
    """All pairs of pieces that are a piece together, the best piece first."""
    scores = {p.text: p.score for i, p in enumerate(model.pieces) if p.kind == NORMAL and i not in renamed}
    pairs = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    pairs.sort(key=lambda pair: (-pair[0], -len(pair[1])))
    return [(left, right) for _, left, right in pairs]


def _set_spaces(tokenizer: Tokenizer, model: SentencePieceModel, settings: dict[str, Any]) -> None:
    """How spaces are written. InternLM2's class hands each stretch between special tokens to sentencepiece, which
    does what its model says; Llama's decides itself."""
    llama = settings.get("tokenizer_class", "").startswith("Llama")
    prefix = (settings.get("add_prefix_space") is not False) if llama else model.prefix_space
    if llama and not settings.get("legacy", True):  # a space in front of the text alone, not after special tokens
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    else:
        steps: list[Any] = [normalizers.Precompiled(model.characters)] if model.characters and not llama else []
        if model.joins_spaces and not llama:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        steps += [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _added_token(entry: dict[str, Any]) -> AddedToken:
    # not normalized: the slow classes look for these in the text as it stands
    flags = {flag: entry.get(flag, False) for flag in ("lstrip", "rstrip", "single_word", "special")}
    return AddedToken(entry["content"], normalized=False, **flags)


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


# -------------------------------------------------------------------- the file
def read_model(path: Path) -> SentencePieceModel:
    """The model in a `tokenizer.model`.

    Raises:
        ValueError: naming the file: it is damaged or not of the byte-pair kind.
    """
    try:
        return _model(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a byte-pair model of sentencepiece ({error})") from error


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append(Piece(piece[1].decode(), _float(piece.get(2, bytes(4))), piece.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("there are no pieces in it")
    if trainer.get(3, 1) != BYTE_PAIRS:
        raise ValueError(f"model_type is {trainer.get(3, 1)}, only {BYTE_PAIRS} (BPE) is supported")
    if unused := [piece.text for piece in pieces if piece.kind == UNUSED]:
        raise ValueError(f"it has unused pieces, which a fast tokenizer has not: {unused[:5]}")
    if not normalizer.get(5, 1):
        raise ValueError("escape_whitespaces is off, which is not supported")
    return SentencePieceModel(
        pieces,
        prefix_space=bool(normalizer.get(3, 1)),
        joins_spaces=bool(normalizer.get(4, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
        characters=normalizer.get(2, b""),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message; value: an int, or bytes of the length it has."""
    position = 0

    def varint() -> int:
        nonlocal position
        value, shift = 0, 0
        while True:
            byte = data[position]
            position, value, shift = position + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"no protobuf message: wire type {kind}")
        length = varint() if kind == 2 else 8 if kind == 1 else 4
        if position + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, data[position : position + length]
        position += length


def _float(data: bytes) -> float:
    return struct.unpack("<f", data)[0]
