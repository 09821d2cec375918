"""Lengths that are kept are the lengths: whatever changes them changes the key, and a broken file is counted again.

Run: pytest tests/data/dataset/test_length_cache.py
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import tiny_processor

from sa2va_hf.data.dataset import length_cache
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.dataset.length_cache import cached
from sa2va_hf.data.prepare.run import prepare


@pytest.fixture
def rows(tmp_path):
    from datasets import load_from_disk

    def rows(count=12):
        prepare("shapes", None, "train", tmp_path / f"{count}", options={"count": count, "size": 48}, overwrite=True)
        return load_from_disk(str(tmp_path / f"{count}"))

    return rows


def test_kept_lengths_are_not_counted_again(rows, tmp_path, monkeypatch):
    def dataset(**options):
        return Sa2VADataset([(rows(), 2)], tiny_processor(), length_cache=tmp_path / "kept", **options)

    fresh = dataset()
    expected = [fresh.lengths(epoch).tolist() for epoch in (0, 1)]
    assert expected[0] != expected[1]  # other questions are drawn
    monkeypatch.setattr(Sa2VADataset, "_lengths_of", lambda *arguments: pytest.fail("counted again"))
    again = dataset()
    assert [again.lengths(epoch).tolist() for epoch in (0, 1)] == expected
    assert again.lengths(0).dtype == np.int64


def test_whatever_changes_the_lengths_is_counted_anew(rows, tmp_path):
    base = {"seed": 0, "max_expressions": 5, "train": True}
    variants = [({}, 2, 12), ({"seed": 1}, 2, 12), ({"max_expressions": 2}, 2, 12), ({}, 3, 12), ({}, 2, 13)]
    variants += [({"train": False}, 1, 12)]
    for number, (changes, repeats, count) in enumerate(variants, start=1):
        arguments = ([(rows(count), repeats)], tiny_processor())
        kept = Sa2VADataset(*arguments, **base | changes, length_cache=tmp_path / "kept").lengths(0)
        assert kept.tolist() == Sa2VADataset(*arguments, **base | changes).lengths(0).tolist()
        assert len(list((tmp_path / "kept").glob("*.npy"))) == number
    other = tiny_processor()
    other.max_tiles = 1
    Sa2VADataset([(rows(), 2)], other, **base, length_cache=tmp_path / "kept").lengths(0)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == len(variants) + 1


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_broken_file_costs_time_and_nothing_else(tmp_path, content, caplog):
    lengths = np.array([5, 7, 9])
    if content is None:
        np.save(tmp_path / "key.npy", np.array([1, 2]))
    else:
        (tmp_path / "key.npy").write_bytes(content)
    assert cached(tmp_path, "key", 3, lambda: lengths).tolist() == [5, 7, 9]
    assert "counting again" in caplog.text
    assert cached(tmp_path, "key", 3, lambda: pytest.fail("counted again")).tolist() == [5, 7, 9]


def test_one_process_counts_and_the_others_wait(tmp_path):
    counted = []

    def count():
        counted.append(1)
        time.sleep(0.2)
        return np.array([5, 7])

    with ThreadPoolExecutor(3) as pool:  # each opens the lock anew, as processes do
        found = list(pool.map(lambda _: cached(tmp_path, "key", 2, count).tolist(), range(3)))
    assert found == [[5, 7]] * 3 and len(counted) == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "kept", "key", 1, lambda: np.array([5])).tolist() == [5]
    assert "cannot be" in caplog.text
    assert cached(None, "", 1, lambda: np.array([5])).tolist() == [5]


def test_old_files_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(length_cache, "KEPT", 3)
    for number in range(6):
        cached(tmp_path, f"key{number}", 1, lambda: np.array([5]))
    assert len(list(tmp_path.glob("*.npy"))) == 3 and (tmp_path / "key5.npy").exists()
