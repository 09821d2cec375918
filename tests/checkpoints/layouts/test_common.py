"""Laws of the small files: an exported tokenizer says everything that transformers 4 asks for, and means the same."""

import json

import pytest
from tiny import CORPUS, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, Qwen2Tokenizer

from sa2va_hf.checkpoints.layouts.common import ONLY_IN_5, check_fixed, needed, template_of, write_tokenizer

SENTENCES = [*CORPUS, "Sure, it is [SEG].<|im_end|>\n", "  caf\u00e9 \u732b  <vp><IMG_CONTEXT></vp>"]


def qwen_tokenizer():
    """tiny.py's pairs in the class of Qwen's, which transformers 4 also has in a slow form."""
    plain = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in plain["model"]["merges"]]
    marks = [entry["content"] for entry in plain["added_tokens"]]
    vocabulary = {text: number for text, number in plain["model"]["vocab"].items() if text not in marks}
    vocabulary = {text: number for number, text in enumerate(sorted(vocabulary, key=vocabulary.get))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=pairs, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("build", [tiny_tokenizer, qwen_tokenizer])
def test_an_exported_tokenizer_cuts_text_as_before(build, tmp_path):
    tokenizer = build()
    write_tokenizer(tokenizer, tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(again) == len(tokenizer)
    for sentence in SENTENCES:
        assert again(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]


def test_its_settings_hold_what_transformers_4_reads(tmp_path):
    tokenizer = tiny_tokenizer()
    write_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and not set(ONLY_IN_5) & set(settings)
    added = {int(number): entry["content"] for number, entry in settings["added_tokens_decoder"].items()}
    assert added == {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    assert set(settings["additional_special_tokens"]) == set(added.values()) - {"<|im_end|>", "<|endoftext|>"}


def test_the_two_files_of_the_slow_class_are_the_same_pairs(tmp_path):
    tokenizer = qwen_tokenizer()
    write_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "Qwen2Tokenizer"
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    first, *lines = (tmp_path / "merges.txt").read_text().splitlines()
    assert first.startswith("#version")
    other = Tokenizer(models.BPE(vocabulary, [tuple(line.split(" ")) for line in lines]))
    other.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    for number, entry in sorted(settings["added_tokens_decoder"].items(), key=lambda item: int(item[0])):
        other.add_tokens([AddedToken(**entry)])
        assert other.token_to_id(entry["content"]) == int(number)
    for sentence in SENTENCES[:3]:
        assert other.encode(sentence).ids == tokenizer(sentence)["input_ids"]


def test_fields_are_asked_for_and_never_guessed():
    assert needed({"a": 0, "b": False, "c": 3}, ["a", "b"], "llm_config") == {"a": 0, "b": False}
    with pytest.raises(ValueError, match="llm_config lacks b, c; these are not guessed"):
        needed({"a": 0, "b": None}, ["a", "b", "c"], "llm_config")
    with pytest.raises(ValueError, match="not supported: x 3 .only 1."):
        check_fixed({"x": 3}, {"x": 1, "y": 2})
    assert template_of({"template": "phi3-chat"}) == "phi3_chat"
    with pytest.raises(ValueError, match="no template"):
        template_of({"template": ""})
