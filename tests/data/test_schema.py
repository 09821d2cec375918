"""The sample type: its Arrow row is lossless, and a sample that contradicts itself does not pass.

Run: pytest tests/data/test_schema.py
"""

import copy

import numpy as np
import pytest
from datasets import Dataset

from sa2va_hf import masks
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, Turn, from_row, to_row, validate


def rle(height=4, width=6, pixels=3):
    mask = np.zeros(height * width, dtype=bool)
    mask[:pixels] = True
    return masks.encode(mask.reshape(height, width))


def image(**changes):
    sample = Sample(
        id="a",
        task="referring",
        width=6,
        height=4,
        frames=["a.jpg"],
        objects=[Object([rle()], [(0.0, 0.5, 2.25, 3.0)], "dog"), Object([None], [(1.0, 1.0, 6.0, 4.0)])],
        expressions=[Expression("the dog", [0], "attribute"), Expression("both", [0, 1]), Expression("a cat", [])],
        ignore=[rle(pixels=5)],
        source="test",
    )
    for name, value in changes.items():
        setattr(sample, name, value)
    return sample


def clip(**changes):
    sample = Sample(
        id="b",
        task="conversation",
        width=6,
        height=4,
        frames=[b"\x89PNG\x00", b"\xff\xd8", b"x"],
        annotated=[0, 2],
        objects=[
            Object([rle(), masks.empty(4, 6)], [None, None]),
            Object([rle(), None], [None, (0.0, 0.0, 1.0, 1.0)]),
        ],
        turns=[Turn("who is region1?", "It is [SEG] and [SEG].", [[0], [1, 0]]), Turn("And?", "Nothing.")],
        regions=[1],
        ignore=[None, rle()],
    )
    for name, value in changes.items():
        setattr(sample, name, value)
    return sample


def text():
    return Sample(id="c", task="question", turns=[Turn("What is 1 + 1?", "2 «deux» 二")])


def video(**changes):
    return Sample(id="d", task="question", width=6, height=4, video=b"mp4", num_frames=9, turns=[Turn("q", "a")])


EVERYTHING = [image(), clip(), text(), video(), Sample("e", "referring", 6, 4, video="v.mp4", num_frames=2,
              objects=[Object([rle(), rle()], [None, None])])]  # fmt: skip


def test_round_trip_through_arrow_is_the_identity(tmp_path):
    before = copy.deepcopy(EVERYTHING)
    rows = Dataset.from_list([to_row(sample) for sample in EVERYTHING], features=FEATURES)
    rows.save_to_disk(tmp_path / "rows")
    back = [from_row(row) for row in Dataset.load_from_disk(tmp_path / "rows")]
    assert back == EVERYTHING == before  # and to_row changed nothing


def test_no_annotation_and_absence_stay_different():
    thing = from_row(Dataset.from_list([to_row(clip())], features=FEATURES)[0]).objects
    assert thing[0].masks[1] is not None and masks.area(thing[0].masks[1]) == 0
    assert thing[1].masks[1] is None


def test_planning_columns_say_what_is_in_the_row():
    rows = [to_row(sample) for sample in EVERYTHING]
    assert [row["num_objects"] for row in rows] == [2, 2, 0, 0, 1]
    assert [row["num_masks"] for row in rows] == [1, 3, 0, 0, 2]
    assert [row["is_video"] for row in rows] == [False, True, False, True, True]
    assert set(rows[0]) == set(FEATURES)


def test_defaults_of_frames():
    assert image().num_frames == 1 and image().annotated == [0]
    assert video().annotated == list(range(9))
    assert text().num_frames == 0 and text().annotated == []


@pytest.mark.parametrize("sample", EVERYTHING, ids=lambda sample: sample.id)
def test_good_samples_pass(sample):
    validate(sample)


PIXELS = Object([rle()], [None])

BAD = [
    (image(id=""), "id must be a non-empty str"),
    (image(task="segment"), "task must be one of referring, .*, got 'segment'"),
    (image(video="a.mp4"), "frames and video exclude each other"),
    (image(frames=[]), "must be 0 without frames or video"),
    (image(frames=[], width=0, height=0, num_frames=0, annotated=[]), "objects need frames or a video"),
    (image(width=0), "width x height must be positive, got 0 x 4"),
    (image(num_frames=2), "num_frames must be the number of frames 1, got 2"),
    (image(frames=[b""]), "frames\\[0\\] is empty"),
    (clip(annotated=[2, 0]), "annotated must rise within 0..2, got \\[2, 0\\]"),
    (clip(annotated=[0, 3]), "annotated must rise within 0..2"),
    (clip(annotated=[0]), "objects\\[0\\].masks must have 1 entries, one per annotated frame, got 2"),
    (image(objects=[Object([rle()], [])]), "objects\\[0\\].boxes must have 1 entries"),
    (image(objects=[Object([None], [None])]), "objects\\[0\\] has neither a mask nor a box"),
    (image(objects=[Object([rle(6, 4)], [None])]), "masks\\[0\\] is 4 x 6 .* but the picture is 6 x 4"),
    (image(objects=[Object([{"size": [4, 6], "counts": "zz"}], [None])]), "masks\\[0\\]: RLE garbage"),
    (image(objects=[Object([{"size": [4, 6], "counts": [24]}], [None])]), "counts must be a compressed str"),
    (image(objects=[Object([None], [(0, 0, 7, 4)])]), "boxes\\[0\\] must be .* within 6 x 4"),
    (image(objects=[Object([None], [(3, 0, 2, 4)])]), "boxes\\[0\\] must be"),
    (image(objects=[Object([None], [(0, 0, float("nan"), 4)])]), "boxes\\[0\\] must be 4 numbers"),
    (image(ignore=[None, None]), "ignore must have 1 entries"),
    (image(ignore=[rle(6, 4)]), "ignore\\[0\\] is 4 x 6"),
    (image(turns=[Turn("q", "a")]), "expressions and turns exclude each other"),
    (image(objects=[], expressions=[], ignore=[]), "nothing to learn"),
    (image(expressions=[Expression(" ", [0])]), "expressions\\[0\\].text must be a non-empty text"),
    (image(expressions=[Expression("a", [0]), Expression(None, [0])]), "expressions\\[1\\].text .* got None"),
    (image(expressions=[Expression("the [SEG]", [0])]), "must not contain \\[SEG\\]"),
    (image(expressions=[Expression("<image> dog", [0])]), "must not contain <image>"),
    (image(expressions=[Expression("the <Image> button", [0])]), "must not contain <image>, in any case"),
    (image(expressions=[Expression("dog", [2])]), "targets must be indices of the 2 objects, got \\[2\\]"),
    (image(expressions=[Expression("dog", [-1])]), "targets must be indices"),
    (image(expressions=[Expression("dog", [0, 0])]), "names an object twice"),
    (clip(turns=[Turn("", "a")]), "turns\\[0\\].question must be a non-empty text"),
    (clip(turns=[Turn("q", "")]), "turns\\[0\\].answer must be a non-empty text"),
    (clip(turns=[Turn("q", "[SEG] [SEG]", [[0]])]), "answer has 2 \\[SEG\\] but targets has 1 entries"),
    (clip(turns=[Turn("q", "Sure.", [[0]])]), "answer has 0 \\[SEG\\] but targets has 1 entries"),
    (clip(turns=[Turn("q", "[SEG]", [[]])]), "targets\\[0\\] is empty"),
    (clip(turns=[Turn("q", "[SEG]", [[5]])]), "indices of the 2 objects, got \\[5\\]"),
    (clip(turns=[Turn("what is [SEG]?", "a")]), "question must not contain \\[SEG\\]"),
    (clip(turns=[Turn("q", "a"), Turn("<image> q", "a")]), "turns\\[1\\]: <image> may occur only in the first"),
    (clip(turns=[Turn("<image> <image>", "a")]), "at most once, in the first question"),
    (clip(turns=[Turn("q", "see <image>")]), "turns\\[0\\]: <image>"),
    (clip(turns=[Turn("who is region2?", "a")]), "question names region2 of 1 regions"),
    (clip(regions=[7]), "regions must be indices"),
    (image(regions=[1]), "regions\\[0\\] is object 1, which has no pixels on the first annotated frame"),
    (image(objects=[Object([masks.empty(4, 6)], [None]), PIXELS], regions=[0]), "has no pixels"),
]


@pytest.mark.parametrize(("sample", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_contradictions_are_named(sample, message):
    with pytest.raises(ValueError, match=message) as error:
        validate(sample)
    assert str(error.value).startswith(f"sample {sample.id!r}: ")


def test_a_video_without_frames_is_refused():
    sample = Sample("v", "question", 6, 4, video="v.mp4", turns=[Turn("q", "a")])
    with pytest.raises(ValueError, match="num_frames must be positive"):
        validate(sample)


def test_region_is_an_ordinary_word_where_there_are_no_regions():
    validate(clip(regions=[], turns=[Turn("what is in region7 of the map?", "a")]))
