"""Rows of tokens that are put together while a step runs, since captions and regions have no length before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...model.configuration_sa2va import IGNORE_INDEX


@dataclass(frozen=True)
class Vocabulary:
    """size: of the tokenizer. stops: ids that end a caption. special: ids that are no words."""

    size: int
    stops: tuple[int, ...]
    special: tuple[int, ...]
    context: int
    pad: int


@dataclass
class Rows:
    """Rows of pieces, padded with 0 on the right: ids and attention mask, (B, L). places: bool (B, L), where the piece
    is that was asked for."""

    input_ids: Tensor
    attention_mask: Tensor
    places: Tensor

    def states(self, hidden: Tensor) -> Tensor:
        """What the LLM says at the position before each place, row by row: (B, L, D) -> (places, D)."""
        return hidden[:, :-1][self.places[:, 1:]]


def rows_of(pieces: Sequence[Sequence[Tensor]], place: int) -> Rows:
    """Rows of the ids in `pieces`. place: the index of the piece that `places` marks."""
    lengths = [sum(map(len, row)) for row in pieces]
    device = pieces[0][0].device
    ids = torch.zeros(len(pieces), max(lengths), dtype=torch.long, device=device)
    mask, places = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, (row, length) in enumerate(zip(pieces, lengths, strict=True)):
        ids[number, :length] = torch.cat(list(row))
        mask[number, :length] = 1
        start = sum(map(len, row[:place]))
        places[number, start : start + len(row[place])] = True
    return Rows(ids, mask, places)


def labels_at(rows: Rows) -> Tensor:
    """Labels (B, L) that ask for the marked piece alone."""
    return torch.where(rows.places, rows.input_ids, IGNORE_INDEX)


@contextmanager
def embedded(embedding: nn.Module, places: Tensor, values: Tensor):
    """While this lasts, `embedding` of ids (B, L) gives `values` (places, D) at `places`, with their gradient."""

    def put(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.masked_scatter(places.unsqueeze(-1), values.to(output.dtype))

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def write(
    llm: nn.Module,
    head: nn.Module,
    embeddings: Tensor,
    attention_mask: Tensor,
    length: int,
    *,
    stops: Collection[int],
    banned: Collection[int],
    may_end_early: bool = True,
) -> list[Tensor]:
    """Greedy captions, at least one token each, without what ends them.

    Args:
        llm: takes inputs_embeds, attention_mask, position_ids and a cache; head: its states -> logits.
        embeddings: (B, L, D) of the prompts, padded on the left where attention_mask (B, L) is 0.
        length: tokens that are written; every rank makes as many calls, unless `may_end_early`.
        banned: ids that are never written.
    """
    ends = torch.tensor(sorted(stops), device=embeddings.device)
    never = torch.tensor(sorted(set(banned) - set(stops)), device=embeddings.device)
    places = (attention_mask.cumsum(1) - 1).clamp(min=0)
    written = torch.zeros(len(embeddings), 0, dtype=torch.long, device=embeddings.device)
    done = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
    cache, embed = DynamicCache(config=llm.config), llm.get_input_embeddings()
    given = "cache" if "cache" in inspect.signature(llm.forward).parameters else "past_key_values"  # before 5.2x
    lengths = torch.zeros_like(done, dtype=torch.long)
    for step in range(length):
        output = llm(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=places,
            use_cache=True,
            **{given: cache},
        )
        logits = head(output.last_hidden_state[:, -1]).float()
        logits[:, never] = -torch.inf
        if not step:
            logits[:, ends] = -torch.inf
        picked = logits.argmax(-1)
        done = done | torch.isin(picked, ends)
        lengths += ~done
        written = torch.cat([written, picked[:, None]], 1)
        if may_end_early and bool(done.all()):
            break
        embeddings, places = embed(picked[:, None]), places[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], 1)
    return [row[:count] for row, count in zip(written, lengths.tolist(), strict=True)]


def seeded(seeds: Sequence[int], draw: Callable[[int, torch.Generator], Tensor]) -> list[Tensor]:
    """What `draw` makes of a generator for each seed: random numbers that depend on the sample alone, not on its batch
    or rank."""
    return [draw(number, torch.Generator().manual_seed(seed % 2**63)) for number, seed in enumerate(seeds)]
