import random

import pyarrow as pa
import pytest

from sa2va_hf.data.dataset.arrow_values import values_of

RLE = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
TYPES = [
    pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.binary(),
    pa.int16(),  # has no reader of its own
    pa.list_(pa.int32()), pa.list_(pa.list_(pa.float64())),
    pa.list_(pa.struct({"name": pa.string(), "masks": pa.list_(RLE), "there": pa.bool_()})),
]  # fmt: skip
VALUES = {
    pa.bool_(): lambda rng: rng.random() < 0.5,
    pa.string(): lambda rng: "zwölf"[: rng.randint(0, 5)],
    pa.binary(): lambda rng: b"\xff\x00b"[: rng.randint(0, 3)],
    pa.float64(): lambda rng: rng.random(),
}


def value(kind: pa.DataType, rng: random.Random, nulls: float):
    if rng.random() < nulls:
        return None
    if pa.types.is_list(kind):
        return [value(kind.value_type, rng, nulls) for _ in range(rng.randint(0, 3))]
    if pa.types.is_struct(kind):
        return {field.name: value(field.type, rng, nulls) for field in kind}
    return VALUES[kind](rng) if kind in VALUES else rng.randint(-9, 9)


@pytest.mark.parametrize("nulls", [0, 0.3])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_values_are_those_of_pyarrow(kind, nulls):
    rng = random.Random(0)
    array = pa.array([value(kind, rng, nulls) for _ in range(50)], kind)
    for part in (array, array[11:37], array[:0]):
        found = values_of(part)
        assert [found[index] for index in range(len(part))] == part.to_pylist()
        assert found.span(0, len(part)) == part.to_pylist()


def test_an_entry_that_a_list_does_not_have_is_not_that_of_the_next_list():
    lists = values_of(pa.array([[1, 2], [3]]))
    assert lists.values[lists.entry(1, 0)] == 3
    for number in (-1, 2):
        with pytest.raises(IndexError, match=f"entry {number} of 2"):
            lists.entry(0, number)
