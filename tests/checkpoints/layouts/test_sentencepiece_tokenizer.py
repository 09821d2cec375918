"""Laws of converting sentencepiece: the fast tokenizer cuts text as sentencepiece's own rule does, bytes included."""

import json
import random

import pytest
from released import WORDS, sentencepiece_model, sentencepiece_pieces, write_sentencepiece
from transformers import AutoTokenizer

from sa2va_hf.checkpoints.layouts.sentencepiece_tokenizer import SPACE, read_model, read_tokenizer
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT

MARKS = ["[SEG]", "<|im_end|>", IMAGE_CONTEXT, "<vp>"]


def cut(text, pieces, prefix_space):
    """Ids by sentencepiece's rule: of all neighbours that make a piece, join the best, the leftmost of equals."""
    scores = {text: score for text, score, kind in pieces if kind == "NORMAL"}
    numbers = {text: number for number, (text, _, _) in enumerate(pieces)}
    symbols = list((SPACE if prefix_space and text else "") + text.replace(" ", SPACE))
    while True:
        pairs = [(scores.get(a + b), -i) for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))]
        pairs = [pair for pair in pairs if pair[0] is not None]
        if not pairs:
            break
        place = -max(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = []
    for symbol in symbols:
        known = [numbers[symbol]] if symbol in numbers else [numbers[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        ids += known
    return ids


def texts(count=200):
    rng = random.Random(0)
    letters = [*"Sseti ran.", "caf\u00e9", "\u732b", "\n", "  ", ","]
    for _ in range(count):
        words = [rng.choice(WORDS) if rng.random() < 0.6 else "".join(rng.choices(letters, k=4)) for _ in range(8)]
        yield rng.choice(["", " "]) + " ".join(words)


@pytest.mark.parametrize("prefix_space", [False, True])
def test_text_is_cut_as_sentencepiece_cuts_it(prefix_space, tmp_path):
    write_sentencepiece(tmp_path, "InternLM2Tokenizer", prefix_space=prefix_space)
    tokenizer, pieces = read_tokenizer(tmp_path), sentencepiece_pieces()
    pieces_used = set()
    for text in texts():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == cut(text, pieces, prefix_space), text
        assert tokenizer.decode(ids) == text
        pieces_used.update(pieces[number][2] for number in ids)
    assert pieces_used == {"NORMAL", "BYTE"}


def test_special_tokens_stand_apart_at_their_ids(tmp_path):
    count = write_sentencepiece(tmp_path, "InternLM2Tokenizer")
    tokenizer, pieces = read_tokenizer(tmp_path), sentencepiece_pieces()
    assert len(tokenizer) == count
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == len(pieces)
    for mark in MARKS:
        number = tokenizer.convert_tokens_to_ids(mark)
        ids = tokenizer(f"Sure, it is {mark}. What", add_special_tokens=False)["input_ids"]
        assert ids == [*cut("Sure, it is ", pieces, False), number, *cut(". What", pieces, False)]
    assert tokenizer("it")["input_ids"] == [1, *cut("it", pieces, False)]  # <s>
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.decode([1, *ids], skip_special_tokens=True) == "Sure, it is . What"


@pytest.mark.parametrize(("legacy", "after_mark"), [(True, True), (False, False)])
def test_llamas_class_writes_its_own_spaces(legacy, after_mark, tmp_path):
    """As transformers 4: the older form puts a space in front of every stretch, the newer only of the whole text."""
    write_sentencepiece(tmp_path, "LlamaTokenizer", prefix_space=False)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": legacy}))
    tokenizer, pieces = read_tokenizer(tmp_path), sentencepiece_pieces()
    seg = tokenizer.convert_tokens_to_ids("[SEG]")
    expected = [*cut("it", pieces, True), seg, *cut("is", pieces, after_mark)]
    assert tokenizer("it[SEG]is", add_special_tokens=False)["input_ids"] == expected


def test_runs_of_spaces_are_one_where_the_model_says_so(tmp_path):
    write_sentencepiece(tmp_path, "InternLM2Tokenizer", joins_spaces=True, prefix_space=True)
    tokenizer, pieces = read_tokenizer(tmp_path), sentencepiece_pieces()
    assert tokenizer("  Sure   it ", add_special_tokens=False)["input_ids"] == cut("Sure it", pieces, True)


def test_an_added_token_may_take_the_place_of_a_piece(tmp_path):
    """InternLM2's chat tokens stand where its model has [UNUSED_TOKEN_n]."""
    pieces = [*sentencepiece_pieces(), ("[UNUSED_TOKEN_0]", 0.0, "USER_DEFINED")]
    write_sentencepiece(tmp_path, "InternLM2Tokenizer", pieces)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"][str(len(pieces) - 1)] = {"content": "<|plugin|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_tokenizer(tmp_path)
    number = len(pieces) - 1
    assert tokenizer("it<|plugin|>it", add_special_tokens=False)["input_ids"].count(number) == 1
    assert tokenizer.decode([number]) == "<|plugin|>"
    assert tokenizer.convert_tokens_to_ids("[UNUSED_TOKEN_0]") == tokenizer.unk_token_id


def test_what_was_saved_is_read_again(tmp_path):
    write_sentencepiece(tmp_path, "InternLM2Tokenizer")
    tokenizer = read_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "ours")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "ours"), read_tokenizer(tmp_path / "ours")):
        assert len(again) == len(tokenizer)
        for text in texts(20):
            assert again(f"{text}[SEG]")["input_ids"] == tokenizer(f"{text}[SEG]")["input_ids"]


def test_against_sentencepiece_itself(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece, to compare with")
    sentences = "\n".join(texts(500))
    (tmp_path / "sentences").write_text(sentences)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "sentences"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "InternLM2Tokenizer"}))
    tokenizer = read_tokenizer(tmp_path)
    for text in [*texts(300), "\u2460 \ufb01ne  caf\u00e9 \U0001f642"]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text), text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[: len(data) // 2], "it ends in the middle of a field"),
        (lambda data: b"\x0f" + data, "wire type"),
        (lambda data: b"", "there are no pieces"),
        (lambda data: sentencepiece_model(sentencepiece_pieces(), model_type=1), "model_type is 1, only 2"),
        (lambda data: sentencepiece_model([("a", 0.0, "UNUSED")]), "unused pieces.*'a'"),
    ],
)
def test_a_model_that_cannot_be_read_is_named(spoil, said, tmp_path):
    write_sentencepiece(tmp_path, "InternLM2Tokenizer")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"tokenizer.model.*{said}"):
        read_model(path)


def test_files_that_are_missing_or_disagree_are_named(tmp_path):
    write_sentencepiece(tmp_path, "InternLM2Tokenizer")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    last = max(settings["added_tokens_decoder"], key=int)
    settings["added_tokens_decoder"]["9999"] = settings["added_tokens_decoder"].pop(last)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"'</vp>' the id 9999, but {last} comes next"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="neither tokenizer.json nor tokenizer.model"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer_config.json"):
        read_tokenizer(tmp_path)
