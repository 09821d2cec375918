"""Laws of the dual loop's order, its guard, and what a run refuses.

Run: pytest tests/training/dual_loop/test_batches.py
"""

import logging
from types import SimpleNamespace

import pytest
import torch

from sa2va_hf.mixtures import MixtureEntry
from sa2va_hf.training.dual_loop.arguments import DualLoopDataArguments, LoopSettings
from sa2va_hf.training.dual_loop.batches import CAPTIONS, PAIRS, SUPERVISED, LoopBatches
from sa2va_hf.training.dual_loop.build import present
from sa2va_hf.training.dual_loop.tokens import labels_at, rows_of, seeded
from sa2va_hf.training.dual_loop.watch import CaptionWatch, caption_counts


class Counted(SimpleNamespace):
    def __len__(self):
        return self.size


def batches(sizes, batch_size=2, share=0.25, epoch=0, **ranks):
    data = Counted(size=sizes[PAIRS], parts={kind: range(size) for kind, size in sizes.items()})
    found = LoopBatches(data, batch_size, share, **ranks)
    found.set_epoch(epoch)
    return list(found)


SIZES = {PAIRS: 24, CAPTIONS: 7, SUPERVISED: 5}


def kinds(batch):
    return tuple(kind for kind, _ in batch)


def test_every_pair_once_an_epoch_and_the_stated_share_of_supervised_batches():
    for epoch in (0, 3):
        found = batches(SIZES, epoch=epoch)
        pairs = [index for batch in found for kind, index in batch if kind == PAIRS]
        assert sorted(pairs) == list(range(24 * epoch, 24 * epoch + 24))
        supervised = [kinds(batch) == (SUPERVISED,) * 2 for batch in found]
        assert sum(supervised) == 4 and len(found) == 16 and supervised[0]
        assert all(kinds(batch) == (PAIRS, PAIRS, CAPTIONS, CAPTIONS) for batch in found if PAIRS in kinds(batch))
    assert batches(SIZES, epoch=0) != batches(SIZES, epoch=1) and batches(SIZES) == batches(SIZES)


@pytest.mark.parametrize(("kind", "per_epoch"), [(CAPTIONS, 24), (SUPERVISED, 8)])
def test_the_others_are_taken_in_turn_over_the_epochs(kind, per_epoch):
    seen = [
        index for epoch in range(7) for batch in batches(SIZES, epoch=epoch) for one, index in batch if one == kind
    ]
    assert len(seen) == 7 * per_epoch
    size = SIZES[kind]
    for turn in range(len(seen) // size):  # an index says the pass over the data too
        assert sorted(seen[turn * size : (turn + 1) * size]) == list(range(turn * size, (turn + 1) * size))


def test_ranks_share_what_one_process_has_and_agree_on_the_kind():
    one = batches(SIZES, batch_size=4)
    ranks = [batches(SIZES, batch_size=2, world_size=2, rank=rank) for rank in range(2)]
    for alone, *shared in zip(one, *ranks, strict=True):
        assert sorted(alone) == sorted(index for batch in shared for index in batch)
        assert kinds(shared[0]) == kinds(shared[1])


def test_rows_of_pieces_mark_what_is_asked_for():
    pieces = [[torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([4]), torch.tensor([5, 6, 7])]]
    rows = rows_of(pieces, place=1)
    assert rows.input_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]] and rows.attention_mask.sum(1).tolist() == [3, 4]
    assert labels_at(rows).tolist() == [[-100, -100, 3, -100], [-100, 5, 6, 7]]
    hidden = torch.arange(8.0).view(2, 4, 1)
    assert rows.states(hidden)[:, 0].tolist() == [1, 4, 5, 6], "the position before each"


def test_random_numbers_follow_from_the_seed_alone():
    def draw(number, generator):
        return torch.rand(3, generator=generator)

    both, alone = seeded([5, 9], draw), seeded([9], draw)
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])


def test_the_guard_stops_when_one_caption_stands_for_most_regions(caplog):
    same, others = torch.tensor([1, 2]), [torch.tensor([3, number]) for number in range(4)]
    watch = CaptionWatch(0.5, 8, "stop", str)
    watch.add([same] * 3 + others)
    assert watch.check(1, lambda seen: seen) is None, "too few to tell"
    watch.add([others[0]])
    assert watch.check(2, lambda seen: seen) == 3 / 8
    watch.add([same] * 5 + others[:3])
    with pytest.raises(ValueError, match=r"step 3: the teacher's captions have collapsed: '\[1, 2\]' stands for 5 of"):
        watch.check(3, lambda seen: seen)
    watch = CaptionWatch(0.5, 8, "warn", str)
    watch.add([same] * 8)
    with caplog.at_level(logging.WARNING):
        assert watch.check(4, lambda seen: seen) == 1.0
    assert "collapsed" in caplog.text


def test_caption_counts():
    counts = caption_counts([torch.tensor([1, 1, 2, 2]), torch.tensor([5])])
    assert counts == {"captions": 2, "caption_tokens": 5, "distinct": 1.5}


def test_a_missing_dataset_is_an_error_unless_it_may_be_missing(tmp_path, caplog):
    there = tmp_path / "there"
    there.mkdir()
    (there / "dataset_info.json").write_text("{}")
    entries = [MixtureEntry(str(there), samples=30), MixtureEntry("gone", samples=10)]
    assert present(entries, "train_data", []) == entries, "it is refused where it is opened"
    with caplog.at_level(logging.WARNING):
        assert present(entries, "train_data", ["gone", "other"]) == entries[:1]
    assert f"missing, as `allow_missing` says: gone; left: {there} 30 samples" in caplog.text
    with pytest.raises(ValueError, match="`train_data`: every dataset of it is missing"):
        present(entries[1:], "train_data", ["gone"])


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DualLoopDataArguments, {}, "`train_data` is missing"),
        (DualLoopDataArguments, {"train_data": "d", "supervised_share": 1.0}, "`supervised_share`: expected a share"),
        (DualLoopDataArguments, {"train_data": "d", "max_gap": 0}, "`max_gap`: expected at least `min_gap`"),
        (LoopSettings, {"temperature": 0}, "`temperature`: expected a number above 0"),
        (LoopSettings, {"ema_decay": 1.0}, "`ema_decay`: expected a number in"),
        (LoopSettings, {"segment_question": "it"}, "`segment_question`: expected {caption} once"),
        (LoopSettings, {"answer": "Sure."}, "`answer`: expected one"),
        (LoopSettings, {"corruption": 1.5}, "`corruption`: expected a share"),
    ],
)
def test_settings_that_cannot_be(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
