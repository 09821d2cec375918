"""Options as a command line gives them: numbers are numbers, and a text stays the text that was typed.

Run: pytest tests/data/sources/test_options.py
"""

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest

from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.options import parse_options


def source(
    root, split, *, count: int = 1, share: float = 0.5, text: str = "", name: str | None = None,
    file: Path | str | None = None, folders: Path | str | Sequence[Path | str] | None = None,
    kinds: tuple[str, ...] = (), looks=None,
):  # fmt: skip
    """Declares an option of every kind that sources have."""


@pytest.mark.parametrize(("pair", "value"), [
    ("count=96", 96),
    ("share=.25", 0.25),
    ("kinds=[left, right]", ["left", "right"]),
    ("looks={a: 1}", {"a": 1}),
    ("text=the lesion", "the lesion"),
    ("text='the lesion: left'", "the lesion: left"),
    ("text={part}", "{part}"),
    ("text={part} of the {object}", "{part} of the {object}"),
    ("text=every {}", "every {}"),
    ("text={}", "{}"),
    ("text=a=b: c", "a=b: c"),
    ("text=2017", "2017"),
    ("text=no", "no"),
    ("text=", ""),
    ("name=null", None),
    ("name=07", "07"),
    ("file=2017", "2017"),
    ("file=[a].json", "[a].json"),
    ("folders=2017", "2017"),
    ("folders=[a, b]", ["a", "b"]),
])  # fmt: skip
def test_values_are_what_the_source_declares(pair, value):
    assert parse_options([pair], source) == {pair.partition("=")[0]: value}


@pytest.mark.parametrize(("pairs", "message"), [
    (["size"], "--option expects KEY=VALUE, got 'size'"),
    (["=3"], "--option expects KEY=VALUE"),
    (["count=[1"], r"--option count=\[1: "),
    (["count=1", "count=2"], "--option count is given twice"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(pairs, message):
    with pytest.raises(ValueError, match=message):
        parse_options(pairs, source)


@pytest.mark.parametrize("key", ["folder_parts", "paco_lvis", "coco_json"])
def test_texts_that_are_defaults_may_be_typed(key):
    parameters = inspect.signature(SOURCES[key]).parameters.values()
    texts = {one.name: one.default for one in parameters if isinstance(one.default, str)}
    assert texts and parse_options([f"{name}={text}" for name, text in texts.items()], SOURCES[key]) == texts
