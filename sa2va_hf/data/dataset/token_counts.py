"""How many tokens a conversation has, counted word by word: a million questions are made of a few thousand words."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sa2va_hf.data.schema import IMAGE_TAG
from sa2va_hf.model.configuration_sa2va import CONTROL_BREAK, break_control_tokens

Turn = tuple[str, str]  # question, answer

SLACK = 16  # tokens per turn that merges across the seams of text and template may cost, generously
REMEMBERED = 200_000  # texts or words whose counts are kept, some 30 MB
QUESTION, ANSWER = "\0question\0", "\0answer\0"  # where the texts stand in the template

# Pre-tokenizers that begin a new piece at a space behind a visible ASCII character, whatever follows: the regular
# expressions of Qwen2 and of Llama 3 (which takes digits in threes). GPT-2's is built into `ByteLevel`.
SPLITS = tuple(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)
WORD_START = re.compile(r"(?<=[!-~])(?= )")


class Words:
    """Counts the tokens of texts as the sum over their words, where the tokenizer splits texts there itself, and of
    whole texts where it does not. What is counted once is remembered."""

    def __init__(self, tokenizer: Any):
        self._backend = tokenizer.backend_tokenizer
        self._starts = WORD_START if splits_at_spaces(self._backend) else None
        self._counts: dict[str, int] = {}

    def count(self, text: str) -> int:
        """The tokens of a text whose control tokens are broken: its parts are tokenised alone."""
        if CONTROL_BREAK in text:
            return sum(map(self.count, text.split(CONTROL_BREAK)))
        counts = self._counts
        words = [text] if self._starts is None else self._starts.split(text)
        try:
            return sum([counts[word] for word in words])
        except KeyError:
            return sum(map(self._count, words))

    def _count(self, word: str) -> int:
        if word not in self._counts:
            if len(self._counts) >= REMEMBERED:
                self._counts.clear()
            self._counts[word] = len(self._backend.encode(word, add_special_tokens=False))
        return self._counts[word]


def splits_at_spaces(backend: Any) -> bool:
    """Whether no token of this fast tokenizer reaches over a `WORD_START`, nor depends on what is behind it.

    So it is with byte-level BPE, split by one of the known regular expressions, unless the text is rewritten before
    (NFC does not touch spaces), or an added token holds or takes white space.
    """
    normalizer, pre_tokenizer = (_state(part) for part in (backend.normalizer, backend.pre_tokenizer))
    added = backend.get_added_tokens_decoder().values()
    return (
        type(backend.model).__name__ == "BPE"
        and not backend.model.dropout
        and normalizer.get("type") in (None, "NFC")
        and not any(token.lstrip or token.rstrip or re.search(r"\s", token.content) for token in added)
        and _is_known(pre_tokenizer)
    )


def _is_known(pre_tokenizer: dict[str, Any]) -> bool:
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if steps[-1].get("type") != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if len(steps) == 1:
        return steps[0]["use_regex"]
    split = steps[0]
    return (
        len(steps) == 2
        and split.get("type") == "Split"
        and split["pattern"].get("Regex") in SPLITS
        and split["behavior"] == "Isolated"
        and not split["invert"]
    )


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else json.loads(part.__getstate__())


class TokenCounter:
    """Counts as `processor.num_tokens` does; the counts of words, of single turns and of the visuals are remembered.

    The processor tokenises the question and the answer of every turn alone (as the released models were trained), so
    the count of a conversation is the sum of its pieces. A test holds the two equal.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self._probe = ("?", "!")
        self._one = processor.num_tokens(turns=[self._probe])
        self._start = 2 * self._one - processor.num_tokens(turns=[self._probe, self._probe])  # bos comes once
        self._texts: dict[Turn, int] = {}
        self._visuals: dict[tuple, int] = {}
        self._answers: dict[str, int] = {}
        self._words: Words | None = None
        tokenizer = getattr(processor, "tokenizer", None)
        if getattr(tokenizer, "backend_tokenizer", None) is not None:  # a slow tokenizer has none
            self._words = Words(tokenizer)
            question, answer, separator = processor.turn_pieces((QUESTION, ANSWER))
            self._around = *question.split(QUESTION), answer.removeprefix(ANSWER)
            self._separator = self._words.count(separator)

    def count(
        self,
        turns: Sequence[Turn],
        size: tuple[int, int] | None,
        num_frames: int = 1,
        video: bool = False,
        regions: Sequence[np.ndarray] = (),
    ) -> int:
        """Tokens of turns about a picture or clip of this size (width, height); None: about none."""
        question = turns[0][0]
        if size is not None and (IMAGE_TAG in question or not question[:1].strip()):
            # the visuals stand within the text, or the text may merge with the newline behind them
            first = self._ask(turns[:1], size, num_frames, video, regions)
            return first + sum(map(self.turn, turns[1:]))
        return self._start + sum(map(self.turn, turns)) + self.visuals(size, num_frames, video, regions)

    def turn(self, turn: Turn) -> int:
        """Tokens that a turn adds to a conversation."""
        question, answer = turn
        if self._words is None:
            return self._text((question, "!")) + self._text(("?", answer)) - self._one - self._start
        before, behind, _ = self._around
        return self._words.count(before + break_control_tokens(question) + behind) + self._answer(answer)

    def visuals(
        self,
        size: tuple[int, int] | None,
        num_frames: int = 1,
        video: bool = False,
        regions: Sequence[np.ndarray] = (),
    ) -> int:
        """Tokens that the visuals add to a conversation."""
        if size is None:
            return 0
        if len(regions):
            return self._ask([self._probe], size, num_frames, video, regions) - self._one
        key = (size, num_frames, video)
        if key not in self._visuals:
            self._visuals[key] = self._ask([self._probe], size, num_frames, video, ()) - self._one
        return self._visuals[key]

    def bound(self, text_bytes: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Upper bound of a conversation's tokens without its visuals: a token is at least one utf-8 byte of text."""
        return text_bytes + turns * (self._one + SLACK)

    def _answer(self, answer: str) -> int:
        """Tokens of an answer and what follows it; most answers are one of a few."""
        if answer not in self._answers:
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            ended = break_control_tokens(answer).strip() + self._around[2]
            self._answers[answer] = self._words.count(ended) + self._separator
        return self._answers[answer]

    def _text(self, turn: Turn) -> int:
        if turn not in self._texts:
            if len(self._texts) >= REMEMBERED:
                self._texts.clear()
            self._texts[turn] = self.processor.num_tokens(turns=[turn])
        return self._texts[turn]

    def _ask(self, turns: Sequence[Turn], size: tuple, num_frames: int, video: bool, regions: Sequence) -> int:
        return self.processor.num_tokens(
            turns=turns, image_size=size, num_frames=num_frames, video=video, region_masks=list(regions) or None
        )
