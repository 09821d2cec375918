"""Conversations about one image as a single row of the LLM: each reads the image and itself, none reads another.

The image's tokens are computed once for all questions about it, and every question is at the positions that it would
have alone. Visual tokens are given, not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.configuration_sa2va import IGNORE_INDEX
from ...model.conversations import get_template
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .chats import Chat


@dataclass
class Thread:
    """One conversation after the image. ids, labels: of its tokens. sources: index of the visual token in place of the
    embedding, or -1. starts: per turn the index of the token that predicts the answer's first one. segs: indices of
    the [SEG] tokens, seg_turns: the turn of each."""

    ids: list[int]
    labels: list[int]
    sources: list[int]
    starts: list[int]
    segs: list[int]
    seg_turns: list[int]


@dataclass
class Rows:
    """B rows of L tokens; `allowed` (B, 1, L, L) says what attends to what. starts, segs: (row, index) pairs of all
    turns and of all [SEG], in the order of the conversations; sink: index of a token that no question asks for; head:
    that of the first conversation's first token."""

    ids: Tensor
    labels: Tensor
    sources: Tensor
    positions: Tensor
    allowed: Tensor
    starts: Tensor
    segs: Tensor
    seg_turns: list[int]  # index into `starts`
    visual: Tensor
    sink: int
    head: int


class ThreadWriter:
    """Writes rows with a processor's tokenizer and template."""

    def __init__(self, processor: Sa2VAProcessor) -> None:
        self.processor, self.template = processor, get_template(processor.template)
        self.cells = processor.tokens_per_tile
        self.context = processor.tokenizer.convert_tokens_to_ids(processor.pictures.context)
        self.prefixes: dict[int, list[int]] = {}

    def prefix(self, frames: int) -> list[int]:
        """Ids of everything up to the first question."""
        if frames not in self.prefixes:
            text = self.template.instruction.split("{input}")[0]
            text += self.processor._visual_text([self.cells] * frames, []) + "\n"
            self.prefixes[frames] = self._ids(text)
        return self.prefixes[frames]

    def thread(self, chat: Chat, region_cells: list[list[int]]) -> Thread:
        """A conversation; region_cells: of each marked shape the indices of its visual tokens."""
        found = Thread([], [], [], [], [], [])
        opening, closing = self.template.instruction.split("{input}")
        for number, (question, answer) in enumerate(chat.turns):
            start = opening if number else ""
            if not number and region_cells:
                marks = self.processor._visual_text([], [len(cells) for cells in region_cells])
                question = marks.lstrip("\n") + question
            said = self._ids(answer.strip() + self.template.suffix)
            asked = (self._ids(self.template.separator) if number else []) + self._ids(start + question + closing)
            found.starts.append(len(found.ids) + len(asked) - 1)
            first = len(found.ids) + len(asked)
            segs = [first + i for i, token in enumerate(said) if token == self.processor.seg_token_id]
            found.segs += segs
            found.seg_turns += [number] * len(segs)
            found.ids += asked + said
            found.labels += [IGNORE_INDEX] * len(asked) + said
        places = iter([cell for cells in region_cells for cell in cells])
        found.sources = [next(places) if token == self.context else -1 for token in found.ids]
        return found

    def rows(self, threads: list[list[Thread]], frames: int) -> Rows:
        """threads: of each row; every row has `frames` images."""
        prefix = self.prefix(frames)
        head, length = len(prefix), max(sum(len(t.ids) for t in row) for row in threads) + len(prefix)
        count = len(threads)
        ids = torch.zeros(count, length, dtype=torch.long)
        labels, sources = torch.full_like(ids, IGNORE_INDEX), torch.full_like(ids, -1)
        positions, owner = torch.zeros_like(ids), torch.full_like(ids, -1)
        ids[:, :head] = torch.tensor(prefix)
        visual = (ids[0, :head] == self.context).nonzero()[:, 0]
        sources[:, visual] = torch.arange(len(visual))
        positions[:, :head], owner[:, :head] = torch.arange(head), 0
        starts, segs, seg_turns = [], [], []
        for row, of_row in enumerate(threads):
            at = head
            for number, thread in enumerate(of_row, start=1):
                part = slice(at, at + len(thread.ids))
                ids[row, part], labels[row, part] = torch.tensor(thread.ids), torch.tensor(thread.labels)
                sources[row, part], owner[row, part] = torch.tensor(thread.sources), number
                positions[row, part] = torch.arange(head, head + len(thread.ids))
                seg_turns += [len(starts) + turn for turn in thread.seg_turns]
                starts += [(row, at + index) for index in thread.starts]
                segs += [(row, at + index) for index in thread.segs]
                at += len(thread.ids)
        same = (owner.unsqueeze(1) == 0) | (owner.unsqueeze(1) == owner.unsqueeze(2))
        allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
        pairs = [torch.tensor(found, dtype=torch.long).view(-1, 2) for found in (starts, segs)]
        sink = int(visual[0]) - 1
        return Rows(ids, labels, sources, positions, allowed.unsqueeze(1), *pairs, seg_turns, visual, sink, head)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def read(model: Sa2VAForConditionalGeneration, tokens: Sequence[Tensor], rows: Rows) -> Tensor:
    """Hidden states (B, L, D). tokens: the visual tokens of every row, (frames, cells, D)."""
    words = model.get_input_embeddings()(rows.ids)
    visual = torch.stack([one.flatten(0, 1) for one in tokens]).to(words.dtype)
    index = rows.sources.clamp(min=0).unsqueeze(-1).expand(-1, -1, words.shape[-1])
    states = torch.where(rows.sources.unsqueeze(-1) >= 0, visual.gather(1, index), words)
    mask = {"full_attention": rows.allowed}
    language = model.mllm.model.language_model
    output = language(inputs_embeds=states, attention_mask=mask, position_ids=rows.positions, use_cache=False)
    return output.last_hidden_state
