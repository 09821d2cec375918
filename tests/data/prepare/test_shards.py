"""Writing in portions: a killed run goes on where it was, machines share the work, and nothing shows of either.

Run: pytest tests/data/prepare/test_shards.py
"""

from functools import partial

import pytest
from records import contents, given, picture, read, sample

from sa2va_hf.data.prepare import shards
from sa2va_hf.data.prepare.manifest import Manifest
from sa2va_hf.data.prepare.run import PrepareError, prepare
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import read_json
from sa2va_hf.data.sources.portions import in_portions


def interrupt_after(units):
    """Progress that ends the run with the unit of this number, as Ctrl-C does."""
    done = []

    def progress(count):
        done.append(count)
        if len(done) == units:
            raise KeyboardInterrupt

    return progress


def test_a_run_that_is_interrupted_at_once_leaves_nothing(tmp_path, source):
    source(sample("a", picture(tmp_path / "a.png")))
    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, progress=interrupt_after(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("units", [3, 4, 5, 6])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(tmp_path, annotated_source, monkeypatch, units):
    monkeypatch.setattr(shards, "SHARD_FRAMES", 60)  # an Arrow file ends with every second unit
    whole = prepare("given", tmp_path, "train", tmp_path / "whole", skip_bad=True)
    assert len(whole.shards) == 4 and whole.samples == 197
    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, skip_bad=True, progress=interrupt_after(units))
    assert not (tmp_path / "out").exists()
    seen = []
    resumed = given(tmp_path, skip_bad=True, progress=seen.append)
    assert len(seen) == 7 - units // 2 * 2  # 7 units: the finished ones are not checked again
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and resumed == whole
    assert not (tmp_path / ".out.partial").exists()


def test_a_run_that_fails_starts_anew(tmp_path, annotated_source, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_FRAMES", 60)
    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, skip_bad=True, progress=interrupt_after(3))
    with pytest.raises(ValueError, match="3 records cannot be used"):
        given(tmp_path)
    assert not (tmp_path / ".out.partial").exists() and not (tmp_path / "out").exists()


def test_what_was_changed_in_between_is_not_mixed(tmp_path, annotated_source, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_FRAMES", 60)
    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, skip_bad=True, progress=interrupt_after(3))
    (tmp_path / "annotations.json").write_text("[1]")
    with pytest.raises(ValueError, match="annotations.json changed since the run that was interrupted: run it again"):
        given(tmp_path, skip_bad=True)
    assert given(tmp_path, skip_bad=True).samples == 197
    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, skip_bad=True, overwrite=True, progress=interrupt_after(3))
    seen = []  # another call than the one that was interrupted starts anew
    given(tmp_path, skip_bad=True, overwrite=True, limit=150, progress=seen.append)
    assert sum(seen) == 150


# ---------------------------------------------------------------- several machines


def test_parts_of_several_machines_are_the_whole(tmp_path, annotated_source):
    whole = prepare("given", tmp_path, "train", tmp_path / "whole", skip_bad=True)
    for number in (3, 1, 2):
        assert not (tmp_path / "out" / "manifest.json").exists()
        done = given(tmp_path, skip_bad=True, shard=(number, 3))
    assert sorted(one.id for one in read(tmp_path / "out")) == sorted(one.id for one in read(tmp_path / "whole"))
    names = ("samples", "objects", "masks", "expressions", "tasks", "kinds", "annotation_files")
    assert all(getattr(done, name) == getattr(whole, name) for name in names)
    assert sorted(reject.id for reject in done.rejects) == sorted(reject.id for reject in whole.rejects)
    assert done == Manifest.load(tmp_path / "out") and done.shard is None
    with pytest.raises(ValueError, match="prepared already"):
        given(tmp_path, skip_bad=True, shard=(1, 3))


def test_more_machines_than_units_and_a_part_made_again(tmp_path, source):
    source(sample("a", picture(tmp_path / "a.png")))
    given(tmp_path, shard=(2, 2))  # has nothing to do
    given(tmp_path, shard=(1, 2))
    assert [one.id for one in read(tmp_path / "out")] == ["a"]
    source(sample("b", picture(tmp_path / "a.png")))
    given(tmp_path, shard=(1, 2), overwrite=True)
    assert [one.id for one in read(tmp_path / "out")] == ["b"]


def test_parts_that_do_not_belong_together_are_not_joined(tmp_path, annotated_source):
    given(tmp_path, skip_bad=True, shard=(1, 2))
    with pytest.raises(ValueError, match="part-2-of-2 was made with limit 90, part-1-of-2 with None"):
        given(tmp_path, skip_bad=True, shard=(2, 2), limit=90)
    (tmp_path / "annotations.json").write_text("[1]")
    with pytest.raises(ValueError, match="different annotation_files: their sha256 differ"):
        given(tmp_path, skip_bad=True, shard=(2, 2), overwrite=True)
    with pytest.raises(ValueError, match="1 <= i <= n, got 3/2"):
        given(tmp_path, shard=(3, 2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds thesis.tex, which is no part of a dataset"):
        prepare("given", tmp_path, "train", tmp_path / "other", shard=(1, 2), overwrite=True)


def test_an_id_in_two_parts_is_found(tmp_path, source):
    frame = picture(tmp_path / "a.png")
    source(*(sample(f"s{number % 40}", frame) for number in range(41)))  # the second unit repeats s0
    given(tmp_path, shard=(1, 2))
    with pytest.raises(PrepareError, match="1 ids occur in two parts, as 's0': prepare them as one") as error:
        given(tmp_path, shard=(2, 2))
    assert "part-1-of-2/data-00000.arrow and in part-2-of-2/" in error.value.rejects[0].reason


# ---------------------------------------------------------------- slow parts


def _slow(root, number, frame):
    read_json(root / f"{number}.json", list)
    yield sample(f"s{number}", frame)
    if number % 3 == 0:
        yield Reject(f"r{number}", "broken")


def test_workers_make_the_calls_of_a_source_in_portions(tmp_path, monkeypatch):
    frame = picture(tmp_path / "a.png")
    for number in range(40):
        (tmp_path / f"{number}.json").write_text(f"[{number}]")

    def lazy(root, split, *, count=40):
        yield Reject("first", "by itself")
        for number in range(count):
            yield partial(_slow, root, number, frame)

    monkeypatch.setitem(SOURCES, "given", partial(in_portions(lazy), count=39))
    records = list(SOURCES["given"](tmp_path, "train"))
    assert [record.id for record in records][:4] == ["first", "s0", "r0", "s1"]
    for num_proc in (1, 2):
        manifest = given(tmp_path, num_proc=num_proc, skip_bad=True, overwrite=True)
        assert read(tmp_path / "out") == [record for record in records if isinstance(record, Sample)]
        assert manifest.rejects == [record for record in records if isinstance(record, Reject)]
    with pytest.raises(ValueError, match="has no option counts; it has count"):
        given(tmp_path, options={"counts": 3}, overwrite=True)
