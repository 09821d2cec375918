"""The laws of a source, for every key of SOURCES: what it gives, what it refuses, and how that goes through Arrow.

A new source needs a `Fixture` in one of the tables that fixtures.py joins. Its own test file tells its particulars.

Run: pytest tests/data/sources/test_every_source.py
"""

import random
from itertools import product

import numpy as np
import pytest
from fixtures import FIXTURES
from on_disk import load, put, save
from records import contents, read

from sa2va_hf.data.media import load_frames
from sa2va_hf.data.prepare import checking
from sa2va_hf.data.prepare.run import check, prepare
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

EVERY = pytest.mark.parametrize("key", FIXTURES)
BAD_RECORDS = [(key, message) for key, fixture in FIXTURES.items() for message in fixture.records]
BAD_FILES = [(key, message) for key, fixture in FIXTURES.items() for message in fixture.files]


@pytest.fixture
def root(tmp_path, key):
    (tmp_path / "raw").mkdir()
    FIXTURES[key].make(tmp_path / "raw")
    return tmp_path / "raw"


def records(key, root, **options):
    return list(SOURCES[key](root, FIXTURES[key].split, **FIXTURES[key].options | options))


def written(key, root, output, **how):
    """The manifest of the source's prepared folder `output`, beside the root."""
    options = FIXTURES[key].options | how.pop("options", {})
    return prepare(key, root, FIXTURES[key].split, root.parent / output, options=options, **how)


def test_every_source_has_its_fixture():
    assert set(FIXTURES) == set(SOURCES)


@EVERY
def test_a_fixture_has_two_samples_and_three_malformed_inputs(key, tmp_path):
    fixture = FIXTURES[key]
    assert len(fixture.records) + len(fixture.files) >= 3 and fixture.files
    assert len(fixture.expected(tmp_path)) >= 2


@EVERY
def test_the_exact_samples_each_time(key, root):
    expected = FIXTURES[key].expected(root)
    assert records(key, root) == expected
    assert records(key, root) == expected


@EVERY
def test_samples_are_valid_and_know_their_source(key, root):
    samples = records(key, root)
    for sample in samples:
        validate(sample)
    assert {sample.source for sample in samples} == {FIXTURES[key].source or key}
    assert len({sample.id for sample in samples}) == len(samples)


def pixels(sample):
    return [np.asarray(frame) for frame in load_frames(sample, range(sample.num_frames))] if sample.num_frames else []


@EVERY
def test_through_arrow_and_back_is_the_identity_in_any_number_of_processes(key, root, monkeypatch):
    monkeypatch.setattr(checking, "UNIT", 1)  # or one process would do it all
    for num_proc in (1, 2):
        written(key, root, str(num_proc), num_proc=num_proc)
    assert read(root.parent / "1") == FIXTURES[key].expected(root)
    assert contents(root.parent / "1") == contents(root.parent / "2")


@EVERY
def test_embedded_media_have_the_same_pixels(key, root):
    expected = FIXTURES[key].expected(root)
    written(key, root, "embedded", embed_media=True)
    embedded = read(root.parent / "embedded")
    for sample, one in zip(expected, embedded, strict=True):
        assert all(isinstance(frame, bytes) for frame in one.frames) and not isinstance(one.video, str)
        for frame, other in zip(pixels(sample), pixels(one), strict=True):
            assert np.array_equal(frame, other) and frame.shape == (sample.height, sample.width, 3)
        one.frames, one.video = sample.frames, sample.video
    assert embedded == expected


@pytest.mark.parametrize(("key", "message"), BAD_RECORDS)
def test_a_damaged_record_is_a_reject_and_takes_no_other_with_it(key, root, message):
    expected = FIXTURES[key].expected(root)
    options = FIXTURES[key].records[message](root) or {}
    found = records(key, root, **options)
    rejects = [record for record in found if isinstance(record, Reject)]
    assert message in "\n".join(reject.reason for reject in rejects)
    assert all(reject.id and reject.file for reject in rejects)
    lost = [sample for sample in expected if sample not in found]
    assert len(lost) <= 1 < len(expected), [sample.id for sample in lost]

    manifest = written(key, root, "lenient", options=options, skip_bad=True)
    assert manifest.rejects == rejects
    assert read(root.parent / "lenient") == [record for record in found if isinstance(record, Sample)]


def places(content, at=()):
    """Keys and indices that lead to each value of a JSON."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


VALUES = (None, True, -1, 2.5, 10**20, float("inf"), float("nan"), "x", "", [], {}, [[]], [None], ["x"], {"x": 1})
DRAWN = 8  # values that are put into each file


@EVERY
def test_whatever_stands_in_a_file_is_a_sample_a_reject_or_a_value_error(key, root):
    rng = random.Random(key)
    for path in sorted(file for file in root.rglob("*") if file.suffix in (".json", ".p", ".pkl")):
        intact = path.read_bytes()
        content = load(path)
        for where, value in rng.sample(list(product(places(content), VALUES)), DRAWN):
            if where:
                put(path.relative_to(root), *where, value)(root)
            else:
                save(path, value)
            try:
                check(key, root, FIXTURES[key].split, options=FIXTURES[key].options)
            except ValueError:
                pass
            path.write_bytes(intact)


@pytest.mark.parametrize(("key", "message"), BAD_FILES)
def test_a_damaged_file_is_an_error_that_says_so(key, root, message):
    options = FIXTURES[key].files[message](root) or {}
    with pytest.raises(ValueError) as error:
        records(key, root, **options)
    assert message in str(error.value)
    with pytest.raises(ValueError) as error:
        written(key, root, "out", options=options, skip_bad=True)
    assert message in str(error.value) and not (root.parent / "out").exists()
