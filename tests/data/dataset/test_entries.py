"""Repeats lose nothing and never change the counts."""

import datasets
import numpy as np
import pytest
from records import sample

from sa2va_hf.data.dataset.entries import Entry
from sa2va_hf.data.dataset.rows import Rows, scan
from sa2va_hf.data.schema import FEATURES, Sample, Turn, to_row

TEXT = Sample("text", "question", turns=[Turn("why?", "so.")])
IMAGE = sample("image", "a.png")


def entry_of(counts: dict[str, int], repeats: float, replacement: bool = False) -> Entry:
    """So many text rows and so many image rows."""
    samples = [TEXT] * counts["text"] + [IMAGE] * counts["image"]
    rows = datasets.Dataset.from_list([to_row(one) for one in samples], features=FEATURES)
    facts = scan(rows)
    spans = np.stack([np.zeros_like(facts.num_expressions), facts.num_expressions], axis=1)
    entry = Entry(Rows(rows), np.arange(len(facts)), spans, facts, np.zeros(len(facts), bool))
    entry.repeat(repeats, np.random.default_rng(0), replacement)
    return entry


@pytest.mark.parametrize("repeats", [1, 3, 2.5, 0.3, 1.07, 0.01])
def test_repeats_give_every_row_its_share_and_constant_counts(repeats):
    entry = entry_of({"text": 30, "image": 70}, repeats)
    assert len(entry) == round(100 * repeats)
    times = np.zeros(100, int)
    for epoch in range(3):
        items = entry.of_epoch(epoch)
        counts = np.bincount(items, minlength=100)
        assert counts.min() >= int(repeats) and counts.max() <= int(np.ceil(repeats))
        assert (entry.facts.modality[items] == entry.facts.modality[entry.of_epoch(0)]).all()
        assert abs((items < 30).sum() - 30 * repeats) < 1
        assert [entry.item(epoch, n) for n in range(len(entry))] == items.tolist()
        times += counts
    assert np.ptp(times[:30]) <= 1 and np.ptp(times[30:]) <= 1  # nobody waits while another has a second turn


def test_the_random_share_differs_between_epochs_and_is_a_shuffle():
    entry = entry_of({"text": 30, "image": 70}, 0.5)
    first, second = (set(entry.of_epoch(epoch).tolist()) for epoch in (0, 1))
    assert first | second == set(range(100))
    assert first not in ({*range(15), *range(30, 65)}, {*range(0, 100, 2)})


def test_a_virtual_row_beyond_the_epoch_is_an_error():
    entry = entry_of({"text": 3, "image": 5}, 1.5)
    with pytest.raises(IndexError, match="beyond the 12"):
        entry.item(0, 12)


def test_rates_sample_rows_with_replacement_at_the_stated_share():
    """10,000 items of 100 rows: as many of each kind as stated, each row as often as chance gives."""
    entry = entry_of({"text": 30, "image": 70}, 100, replacement=True)
    items = entry.of_epoch(3)
    assert len(entry) == len(items) == 10_000 and (items < 30).sum() == 3000
    times = np.bincount(items, minlength=100)
    assert times.std() == pytest.approx(10, rel=0.3)  # Poisson; in turn it would be 0
    assert (entry.of_epoch(4) != items).any(), "another epoch, other rows"


def test_rates_are_the_same_after_a_resume():
    one, other = (entry_of({"text": 3, "image": 5}, 2.5, replacement=True) for _ in range(2))
    one.of_epoch(0)  # a resumed run has not seen the epochs before
    assert one.of_epoch(1).tolist() == other.of_epoch(1).tolist()
    assert [other.item(1, n) for n in range(len(other))] == one.of_epoch(1).tolist()
