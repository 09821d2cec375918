"""Laws of pairs: one object in two pictures, at the gap asked for, the same for the same index, and with its caption.

Run: pytest tests/data/pairs/test_pair_dataset.py
"""

import re

import numpy as np
import pytest
from clips import disc, rows, sample
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.dataset.entries import Share
from sa2va_hf.data.pairs.dataset import PairDataset, PairSettings, captions
from sa2va_hf.data.pairs.views import VIEWS, cropped, second_views
from sa2va_hf.data.schema import Expression, Turn

NONE = masks.empty(48, 64)


def frames_of(pair):
    return [int(found) for found in re.findall(r"\d+", pair.sample_id.split("frames")[1])]


def object_of(pair):
    return int(re.search(r"object (\d+)", pair.sample_id)[1])


@pytest.mark.parametrize(
    ("settings", "gaps"),
    [({}, range(1, 6)), ({"min_gap": 3}, range(3, 6)), ({"min_gap": 2, "max_gap": 2}, [2])],
)
def test_a_pair_is_one_object_on_two_frames_at_the_gap_asked_for(tmp_path, settings, gaps):
    data = PairDataset([(rows(sample(tmp_path, "a", frames=6, objects=2)), 1)], PairSettings(**settings))
    seen = set()
    for epoch in range(40):
        pair = data[epoch]
        first, second = frames_of(pair)
        thing = object_of(pair)
        for mask, frame in ((pair.region, first), (pair.target, second)):
            hidden = disc(frame, 1) if thing == 0 else np.False_  # the second disc lies on the first one
            assert np.array_equal(mask, disc(frame, thing) & ~hidden)
        assert pair.first.size == pair.second.size == (64, 48) and pair.caption is None
        seen.add((thing, abs(first - second)))
    assert {gap for _, gap in seen} == set(gaps) and {thing for thing, _ in seen} == {0, 1}


def test_a_pair_depends_on_its_index_alone(tmp_path):
    one, other = (PairDataset([(rows(sample(tmp_path, "a", frames=6)), 1)]) for _ in range(2))
    other[3], other[1]  # noqa: B018
    assert (one[5].sample_id, one[5].seed) == (other[5].sample_id, other[5].seed)
    assert len({one[epoch].seed for epoch in range(9)}) == 9
    evaluated = PairDataset([(rows(sample(tmp_path, "a", frames=6)), 3.0)], train=False)
    assert len(evaluated) == 1 and evaluated[0].seed == evaluated[7].seed


def test_only_frames_that_show_the_object(tmp_path):
    made = sample(tmp_path, "a", frames=6, objects=2)
    made.objects[1].masks = [NONE, made.objects[1].masks[1], NONE, None, NONE, NONE]  # seen once: in no pair
    made.objects[0].masks[2] = NONE
    data = PairDataset([(rows(made), 1)])
    found = [data[epoch] for epoch in range(30)]
    assert {object_of(pair) for pair in found} == {0} and 2 not in {number for p in found for number in frames_of(p)}


def test_rows_without_a_pair_are_listed(tmp_path):
    good, blank, short = (sample(tmp_path, name, frames=3) for name in "abc")
    blank.objects[0].masks = [NONE] * 3
    blank.objects = blank.objects[:1]
    for thing in short.objects:
        thing.masks[1:] = [NONE] * 2
    data = PairDataset([(rows(good, blank, short), Share(samples=5))])
    assert len(data) == 5 and {data[index].sample_id.split()[0] for index in range(5)} == {"a"}
    assert [reject.id for reject in data.rejected] == ["b", "c"]
    assert "two frames at least 1" in data.rejected[0].reason
    with pytest.raises(ValueError, match="entry 1 of 1 gives no pair: 1 rows rejected: b: no object"):
        PairDataset([(rows(blank), 1)])


@pytest.mark.parametrize("views", VIEWS)
def test_single_pictures_give_two_views(tmp_path, views):
    made = sample(tmp_path, "a", frames=1, objects=2)
    pair = PairDataset([(rows(made), 1)], PairSettings(views=views))[0]
    picture, mask = np.asarray(pair.first), pair.region
    assert mask.any() and pair.target.any() and mask.shape == picture.shape[:2]
    same = views == "same"
    assert np.array_equal(pair.target, mask if same else pair.target)
    if views == "flip":
        assert np.array_equal(np.asarray(pair.second), picture[:, ::-1])
        assert np.array_equal(pair.target, mask[:, ::-1])


def test_crops_hold_the_whole_object():
    mask = np.zeros((30, 40), bool)
    mask[10:14, 20:29] = True
    picture = Image.fromarray((mask * 255).astype(np.uint8))
    sizes = set()
    for seed in range(30):
        view, inside = cropped((picture, mask), np.random.default_rng(seed))
        assert inside.sum() == mask.sum() and np.array_equal(np.asarray(view) > 0, inside)
        sizes.add(view.size)
        first, second = second_views((picture, mask), "crops", np.random.default_rng(seed))
        assert first[1].sum() == second[1].sum() == mask.sum()
    assert len(sizes) > 20


def test_captions_that_exist_are_given(tmp_path):
    made = sample(tmp_path, "a", frames=1, objects=3)
    made.expressions = [Expression("the disc", [0], ""), Expression("both", [0, 1], ""), Expression("no", [], "")]
    asked = sample(tmp_path, "b", frames=1, objects=3)
    asked.regions = [2, 1]
    asked.turns = [
        Turn("What is in region2?", "A pale disc."),
        Turn("Is region1 left of region2?", "No."),
        Turn("What is this?", "A picture."),
    ]
    data = PairDataset([(rows(made, asked), 1)], PairSettings(captioned=True, views="flip"))
    assert [captions(row) for row in data.entries[0].rows] == [{0: ["the disc"]}, {1: ["A pale disc."]}]
    assert {(object_of(data[i]), data[i].caption) for i in range(8)} == {(0, "the disc"), (1, "A pale disc.")}
    assert np.array_equal(data[0].region, data[0].target), "a caption may say left: it is not mirrored"
    assert PairDataset([(rows(made), 1)], PairSettings(use_captions=False))[0].caption is None
    with pytest.raises(ValueError, match="no object with a caption"):
        PairDataset([(rows(sample(tmp_path, "c", frames=2)), 1)], PairSettings(captioned=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_gap": 0}, "`min_gap`: expected at least 1"),
        ({"min_gap": 4, "max_gap": 3}, "`max_gap`: expected at least `min_gap`, 4"),
        ({"views": "twice"}, "`views`: expected one of same, flip, crops, got 'twice'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        PairSettings(**settings)
