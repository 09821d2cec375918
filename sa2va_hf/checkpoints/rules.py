"""How tensors of ours are called in a released checkpoint: a table of rules, read once, good for both directions.

A rule names a tensor of ours and the released one that holds it. `{layer}` stands for one part of a name (no dot),
`{rest}` for everything to come; what they match is carried over. Where one released tensor holds several of ours, the
rule names all of them and a `Fusion` describes their layout in it. The first rule that matches a name is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Fusion(NamedTuple):
    """Several tensors in one. Both functions cut, view and concatenate only: they run on meta tensors, which gives
    the shapes, and keep every bit; `split` undoes `join`."""

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


# Prefixes of SAM 2 and of Sa2VA-i's second mask decoder in a model of ours.
SAM2, TRACKER = "grounding_encoder.sam2_model.", "grounding_encoder.tracking_decoder."

# One under another, in equal parts: the qkv of InternViT and of Qwen's vision towers.
STACKED_QKV = Fusion(join=torch.cat, split=lambda fused: fused.chunk(3))


class Rule(NamedTuple):
    """`ours` is a name, or several that `released` holds as `fusion` describes."""

    ours: str | tuple[str, ...]
    released: str
    fusion: Fusion | None = None


class Move(NamedTuple):
    """A rule applied: these tensors of ours are that released tensor."""

    ours: tuple[str, ...]
    released: str
    fusion: Fusion | None

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] if self.fusion is None else self.fusion.join(tensors)

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        return [tensor] if self.fusion is None else self.fusion.split(tensor)


def moves(names: Iterable[str], rules: Sequence[Rule]) -> list[Move]:
    """Where each of our tensors goes.

    Raises:
        ValueError: a name without a rule, for a part of a fused tensor that is not there, and for two tensors that
            would get the same name.
    """
    known, done = set(names), set()
    found: dict[str, Move] = {}
    patterns = [(_pattern(ours), rule) for rule in rules for ours in _several(rule.ours)]
    for name in names:
        if name in done:
            continue
        fitting = ((pattern.fullmatch(name), rule) for pattern, rule in patterns)
        match, rule = next(((match, rule) for match, rule in fitting if match), (None, None))
        if rule is None:
            raise ValueError(f"{name}: the released layout has no such tensor")
        ours = tuple(template.format_map(match.groupdict()) for template in _several(rule.ours))
        move = Move(ours, rule.released.format_map(match.groupdict()), rule.fusion)
        missing = [part for part in ours if part not in known]
        if missing:
            raise ValueError(f"{move.released} holds {', '.join(ours)}, but {', '.join(missing)} is missing")
        if move.released in found:
            raise ValueError(f"{name} and {found[move.released].ours[0]} would both be called {move.released}")
        found[move.released] = move
        done.update(ours)
    return list(found.values())


def common_rules(*, tracking_decoder: bool) -> list[Rule]:
    """Rules of the parts that all layouts share: SAM 2 and `text_hidden_fcs`.

    tracking_decoder: two mask decoders, as in Sa2VA-i. There the fine-tuned one was given the new name, and SAM 2's
    own kept its name; ours is the reverse, so that one name means the same decoder in all checkpoints.
    """
    two = [
        Rule(SAM2 + "sam_mask_decoder.{rest}", SAM2 + "sam_mask_decoder_modified.{rest}"),
        Rule(TRACKER + "{rest}", SAM2 + "sam_mask_decoder.{rest}"),
    ]
    fuser = SAM2 + "memory_encoder.fuser.layers.{layer}."  # renamed there: old transformers renamed "gamma" on loading
    return (two if tracking_decoder else []) + [
        Rule(fuser + "gamma", fuser + "g_weight"),
        Rule(SAM2 + "{rest}", SAM2 + "{rest}"),
        Rule("text_hidden_fcs.{rest}", "text_hidden_fcs.{rest}"),
    ]


def _several(ours: str | tuple[str, ...]) -> tuple[str, ...]:
    return (ours,) if isinstance(ours, str) else ours


def _pattern(name: str) -> re.Pattern:
    pieces = re.split(r"\{(\w+)\}", name)  # text, field, text, field, ..., text
    fields = [f"(?P<{field}>{'.+' if field == 'rest' else '[^.]+'})" for field in pieces[1::2]]
    texts = [re.escape(text) for text in pieces[::2]]
    return re.compile("".join(text + field for text, field in zip(texts, [*fields, ""], strict=True)))
