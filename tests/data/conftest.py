"""Sources that a test makes up."""

import pytest
from records import picture, sample

from sa2va_hf.data.schema import Reject
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import read_json


@pytest.fixture
def source(monkeypatch):
    """Makes a list of records the source "given"."""

    def give(*records):
        monkeypatch.setitem(SOURCES, "given", lambda root, split: iter(records))

    return give


@pytest.fixture
def annotated_source(tmp_path, monkeypatch):
    """A source "given" of 200 records that reads an annotation file; 3 of them are bad."""
    frame = picture(tmp_path / "a.png")
    (tmp_path / "annotations.json").write_text("[]")

    def give(root, split):
        read_json(root / "annotations.json", list)
        for number in range(200):
            yield Reject(f"r{number}", "broken") if number % 70 == 5 else sample(f"s{number}", frame)

    monkeypatch.setitem(SOURCES, "given", give)
