"""Tokens counted word by word are those of the whole text, whether or not a tokenizer splits at spaces.

Run: pytest tests/data/dataset/test_token_counts.py
"""

import numpy as np
import pytest
from tiny import CORPUS, tiny_processor, tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sa2va_hf.data.dataset.generators import generator, generators
from sa2va_hf.data.dataset.processes import in_processes
from sa2va_hf.data.dataset.token_counts import SPLITS, TokenCounter, Words

PARTS = [
    "dog", "do not", "don't", "42", "1234567", "ünïcödé", "狗", "e\u0301", "\u0301", ".", "?!", "--", "[SEG]",
    "<|im_end|>", " ", "  ", "\n", " \n", "\t", "\u00a0", "\u3000", "\u200b", "'ll", "🦆", "a", " a",
    "the dog", "red circle",
]  # fmt: skip


def texts(count: int = 300) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(PARTS[n] for n in rng.integers(len(PARTS), size=rng.integers(1, 12))) for _ in range(count)]


def bpe(pre_tokenizer, normalizer=None, added=()) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>")
    fast.add_tokens(["[SEG]", "<|im_end|>", *added], special_tokens=True)
    return fast


def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), byte_level])


TOKENIZERS = {
    "GPT-2": (True, lambda: tiny_tokenizer()),
    "Qwen2": (True, lambda: bpe(split(SPLITS[0]), normalizers.NFC())),
    "Llama 3": (True, lambda: bpe(split(SPLITS[1]))),
    "another expression": (False, lambda: bpe(split(r"\p{L}+ \p{L}+|."))),
    "other behaviour": (False, lambda: bpe(split(SPLITS[0], "removed"))),
    "a prefix space": (False, lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))),
    "sentencepiece": (False, lambda: bpe(pre_tokenizers.Metaspace(split=False))),
    "text rewritten": (False, lambda: bpe(split(SPLITS[0]), normalizers.Replace(Regex(r" +"), " "))),
    "a token with a space": (False, lambda: bpe(split(SPLITS[0]), added=["dog a"])),
    "a token that takes spaces": (False, lambda: bpe(split(SPLITS[0]), added=[AddedToken("dog", rstrip=True)])),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_add_up_to_the_text(name):
    by_words, make = TOKENIZERS[name]
    tokenizer = make()
    words = Words(tokenizer)
    assert (words._starts is not None) == by_words
    for text in texts():
        assert words.count(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"]), text


@pytest.mark.parametrize("backbone", ["internvl", "qwen3_vl"])
def test_turns_are_counted_as_the_processor_counts_them(backbone):
    processor = tiny_processor(backbone)
    counter, drawn = TokenCounter(processor), texts(60)
    for question, answer in zip(drawn, drawn[::-1], strict=True):
        expected = processor.num_tokens(turns=[(question, answer)])
        assert counter.count([(question, answer)], None) == expected, (question, answer)


@pytest.mark.parametrize("first", [(0,), (7, 3), (0, 2**32 - 1), (2**32, 1), (1, 2, 3), (1, 2, 3, 4)])
def test_generators_are_those_of_numpy(first):
    numbers = np.array([0, 1, 5, 999_999, 2**32 - 1])
    for number, rng in zip(numbers.tolist(), generators(first, numbers), strict=True):
        expected = np.random.default_rng((*first, number))
        state = expected.bit_generator.state
        assert rng.bit_generator.state == generator(*first, number).bit_generator.state == state
        expected.permutation(1)  # which the planner leaves out where there is one expression
        assert expected.bit_generator.state == state


def test_processes_give_what_one_gives():
    offset = 3
    pieces = [np.arange(n) for n in range(1, 4)]
    found = in_processes(lambda piece: piece + offset, pieces)
    assert [piece.tolist() for piece in found] == [(piece + offset).tolist() for piece in pieces]
