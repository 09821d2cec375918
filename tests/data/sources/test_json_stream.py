"""What comes of a JSON object in pieces is what `json` makes of it as a whole, however small the pieces.

Run: pytest tests/data/sources/test_json_stream.py
"""

import io
import json
import random
import tracemalloc

import pytest

from sa2va_hf.data.sources.json_stream import read_list, read_object

CHUNKS = (1, 2, 3, 7, 64, 2**20)
TEXTS = ("", "a", 'q"\\/\b\n\t', "häuser", "日本", "\U0001f642", "\ud800", "]}", "1e5", "\u0000")
NUMBERS = (0, -1, 12345678901234567890, 1.5, -2e-7, 1e300, float("inf"), float("-inf"), True, False, None)


def draw(rng, depth):
    kind = rng.randrange(5 if depth else 3)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return [draw(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {f"{rng.choice(TEXTS)}{n}": draw(rng, depth - 1) for n in range(rng.randrange(4))}


def documents(count=60):
    rng = random.Random(0)
    for _ in range(count):
        content = {f"{rng.choice(TEXTS)}{n}": draw(rng, 4) for n in range(rng.randrange(5))}
        indent, compact = rng.choice((None, 1, "\t")), rng.choice((None, (",", ":"), (" ,  ", " :\r\n")))
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=indent, separators=compact)
        yield rng.choice(("", "\n ")) + text + rng.choice(("", " \n"))


def read(data, chunk):
    """The object, and the bytes that its elements say they are."""
    content, pieces = {}, []
    for key, value in read_object(io.BytesIO(data), "a.json", chunk):
        if hasattr(value, "__next__"):
            found = list(value)
            pieces += [(one.value, data[one.start : one.end]) for one in found]
            value = [one.value for one in found]
        content[key] = value
    return content, pieces


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_content_is_that_of_json_and_each_element_knows_its_bytes(chunk):
    for text in documents():
        data = text.encode("utf-8", "surrogatepass")
        content, pieces = read(data, chunk)
        assert content == json.loads(text) and list(content) == list(json.loads(text))
        for value, piece in pieces:
            assert json.loads(piece) == value and piece == piece.strip()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_so_it_is_with_a_list(chunk):
    for text in list(documents(20)):
        data = f"[{text}, {text}, 1.5]".encode("utf-8", "surrogatepass")
        values = [element.value for element in read_list(io.BytesIO(data), "a.json", chunk)]
        assert values == json.loads(data.decode("utf-8", "surrogatepass"))
    for data in (b"[1, 2", b"[1] 2", b"[1,]", b"{}", b""):
        with pytest.raises(ValueError, match="a.json is not JSON: .* at byte"):
            list(read_list(io.BytesIO(data), "a.json", chunk))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_wherever_a_document_is_cut_it_is_an_error(chunk):
    data = json.dumps({"a": [1.5, {"b": "hä"}, -2e-7], "c": True, "d": "x"}, ensure_ascii=False).encode()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"a.json is not JSON: .* at byte \d+$") as error:
            read(data[:length], chunk)
        assert int(str(error.value).split()[-1]) <= length


BAD = [
    (b'{"a": [1, 2,], "b": 1}', "Expecting value at byte 12"),
    (b'{"a": [1 2]}', "expected , or ], got 2 at byte 9"),
    (b'{"a": 1.}', "expected , or }, got . at byte 7"),
    (b'{"a": 01}', "expected , or }, got 1 at byte 7"),
    (b'{"a": nul}', "Expecting value at byte 6"),
    (b'{a: 1}', "expected a key in double quotes at byte 1"),
    (b'{"a" 1}', "expected :, got 1 at byte 5"),
    (b'{"a": 1,}', "expected a key in double quotes at byte 8"),
    (b'{"a": 1} {"b": 2}', "more than one value at byte 9"),
    (b'{"\xc3\xa4": [{"b": "\xc3\xa4" 1}]}', "Expecting ',' delimiter at byte 19"),
    (b'{"a": ["\xff"]}', "no UTF-8 (invalid start byte) at byte"),
    (b"[1]", "expected {, got [ at byte 0"),
    (b"", "expected {, got the end of the file at byte 0"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_wrong_is_named_with_its_byte(data, message, chunk):
    with pytest.raises(ValueError) as error:
        read(data, chunk)
    assert f"a.json is not JSON: {message}" in str(error.value)


def test_of_a_list_that_nobody_reads_nothing_is_lost():
    data = json.dumps({"a": [1, [2], {"b": []}], "c": [3], "d": 4}).encode()
    keys = []
    for key, value in read_object(io.BytesIO(data), "a.json", 2):
        keys.append(key)
        if key == "a":
            assert next(value).value == 1
    assert keys == ["a", "c", "d"]


def test_memory_does_not_grow_with_the_list():
    data = b'{"a": [' + b",".join([b'{"id": 1, "bbox": [1.5, 2.5, 3.5, 4.5]}'] * 10_000) + b"]}"
    tracemalloc.start()
    ((_, elements),) = ((key, sum(1 for _ in value)) for key, value in read_object(io.BytesIO(data), "a.json", 2**12))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elements == 10_000 and peak - len(data) < 2**16  # BytesIO has its copy of the data, or shares ours
