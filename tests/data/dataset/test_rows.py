"""What is read of a row piece by piece equals the whole sample."""

import pickle

import datasets
import numpy as np
import pytest

from sa2va_hf import masks
from sa2va_hf.data.dataset.rows import Rows, scan
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, Turn, from_row, to_row

MASK = np.zeros((4, 6), bool)
MASK[1:3, 2:5] = True


def rle(shift: int = 0) -> masks.RLE:
    return masks.encode(np.roll(MASK, shift, axis=1))


def image(name: str, texts: list[str], targets: list[list[int]], **fields) -> Sample:
    things = [Object([rle(0)], [None], "box"), Object([rle(1)], [(0.0, 0.0, 2.0, 2.0)])]
    expressions = [Expression(*pair) for pair in zip(texts, targets, strict=True)]
    return Sample(name, "referring", 6, 4, frames=[b"png"], objects=things, expressions=expressions, **fields)


def clip(name: str) -> Sample:
    """Frames 1, 2 and 4 of five are annotated; object 1 not on frame 2."""
    things = [Object([rle(0), rle(1), rle(2)], [None] * 3), Object([rle(3), None, rle(1)], [None] * 3)]
    return Sample(
        name, "referring", 6, 4, frames=[f"{n}.jpg" for n in range(5)], annotated=[1, 2, 4], objects=things,
        expressions=[Expression("left", [0]), Expression("both ones", [0, 1]), Expression("ghost", [])],
        ignore=[None, rle(2), None],
    )  # fmt: skip


SAMPLES = [
    image("a", ["häuser", "nothing"], [[0, 1], []]),
    clip("b"),
    Sample("c", "question", turns=[Turn("why?", "so."), Turn("and?", "no.")]),
    Sample("d", "question", 6, 4, frames=["d.jpg"], turns=[Turn("what?", "this.")]),
    Sample("e", "conversation", 6, 4, video=b"mp4", num_frames=9, turns=[Turn("what?", "that.")]),
    image("f", [], [], turns=[Turn("region1?", "It is [SEG].", [[1]])], regions=[0]),
    image("g", ["ghost"], [[]]),
]


def dataset_of(samples: list[Sample]) -> datasets.Dataset:
    return datasets.Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES)


@pytest.fixture(params=["as written", "selected", "in two shards"])
def rows(request) -> datasets.Dataset:
    """The samples in order, whatever lies below."""
    if request.param == "selected":
        return dataset_of(SAMPLES[::-1]).select(range(len(SAMPLES) - 1, -1, -1))
    if request.param == "in two shards":
        return datasets.concatenate_datasets([dataset_of(SAMPLES[:2]), dataset_of(SAMPLES[2:])])
    return dataset_of(SAMPLES)


def test_a_row_read_in_pieces_is_the_sample(rows):
    for number, sample in enumerate(SAMPLES):
        row = Rows(rows)[number]
        assert row.sample() == sample
        assert (row["id"], row["width"], row["regions"]) == (sample.id, sample.width, sample.regions)
        assert row.annotated().tolist() == sample.annotated
        texts, has_target = row.phrases()
        assert texts == [expression.text for expression in sample.expressions]
        assert has_target.tolist() == [bool(expression.targets) for expression in sample.expressions]
        assert [row.targets(n) for n in range(len(texts))] == [e.targets for e in sample.expressions]
        assert [row.frame(n) for n in range(len(sample.frames))] == sample.frames
        assert row.video() == sample.video
        for position in range(len(sample.annotated)):
            assert row.ignore(position) == (sample.ignore[position] if sample.ignore else None)
            assert [row.mask(n, position) for n in range(len(sample.objects))] == [
                thing.masks[position] for thing in sample.objects
            ]
        if sample.objects:
            assert row.known().tolist() == [[mask is not None for mask in thing.masks] for thing in sample.objects]


def test_rows_travel_to_workers_without_their_contents(tmp_path, rows):
    rows.save_to_disk(str(tmp_path))
    found = Rows(datasets.load_from_disk(str(tmp_path)))
    assert [row["id"] for row in found] == [sample.id for sample in SAMPLES]
    sent = pickle.dumps(found)
    assert [row.sample() for row in pickle.loads(sent)] == SAMPLES
    assert b"region1?" not in sent
    for number in (-1, len(SAMPLES)):
        with pytest.raises(IndexError, match=f"row {number} of 7"):
            found[number]


def test_phrases_of_many_rows_are_those_of_each(rows):
    found = Rows(rows)
    numbers = [4, 1, 0, 1, 6]
    together = found.phrases(np.array(numbers))
    for place, number in enumerate(numbers):
        texts, has_target = together.of(place)
        assert texts == found[number].phrases()[0]
        assert has_target.tolist() == found[number].phrases()[1].tolist()


def test_facts_are_those_of_the_samples(rows):
    facts = scan(rows)
    samples = [from_row(row) for row in rows]
    assert facts.modality.tolist() == [2, 4, 0, 1, 3, 2, 1]
    assert facts.width.tolist() == [sample.width for sample in samples]
    assert facts.num_frames.tolist() == [sample.num_frames for sample in samples]
    assert facts.num_annotated.tolist() == [len(sample.annotated) for sample in samples]
    assert facts.num_turns.tolist() == [len(sample.turns) for sample in samples]
    assert facts.num_expressions.tolist() == [len(sample.expressions) for sample in samples]
    assert facts.num_regions.tolist() == [len(sample.regions) for sample in samples]
    assert facts.complete.tolist() == [True, False, True, True, True, True, True]
    longest = [max((len(e.text.encode()) for e in sample.expressions), default=0) for sample in samples]
    assert facts.expression_bytes.tolist() == longest and longest[0] == 7  # an umlaut has two bytes
    spoken = [sum(len(t.question) + len(t.answer) for t in sample.turns) for sample in samples]
    assert facts.turn_bytes.tolist() == spoken


def test_an_empty_dataset_has_no_facts():
    assert len(scan(dataset_of(SAMPLES[:1]).select([]))) == 0


def test_another_schema_is_an_error():
    with pytest.raises(ValueError, match=r"'turns'.* are missing.*\['id', 'text'\]"):
        scan(datasets.Dataset.from_dict({"id": ["a"], "text": ["b"]}))
