"""Arrow rows read a column, an object and a frame at a time.

A row may hold thousands of masks and an item needs a few, so nothing here makes a whole `Sample`. The datasets have
`schema.FEATURES` and stay memory-mapped.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sa2va_hf import masks
from sa2va_hf.data.schema import FEATURES, Expression, Media, Sample, from_row
from sa2va_hf.masks import RLE, Box

# neither masks nor media: all that it takes to plan
SCAN_COLUMNS = (
    "width", "height", "num_frames", "is_video", "annotated", "regions", "turns", "expressions", "num_objects",
    "num_masks",
)  # fmt: skip
SCAN_ROWS = 10_000


@dataclass
class Facts:
    """What is known of all rows of a dataset at once, one array entry per row."""

    width: np.ndarray
    height: np.ndarray
    num_frames: np.ndarray
    num_annotated: np.ndarray
    is_video: np.ndarray  # bool
    num_regions: np.ndarray
    num_turns: np.ndarray
    num_expressions: np.ndarray
    turn_bytes: np.ndarray  # utf-8 bytes of all turns, questions and answers
    expression_bytes: np.ndarray  # of the longest expression
    num_objects: np.ndarray
    has_targets: np.ndarray  # bool: some expression or turn means an object
    complete: np.ndarray  # bool: every object has a mask on every annotated frame, or in a picture at least a box

    def __len__(self) -> int:
        return len(self.width)

    def take(self, rows: np.ndarray) -> "Facts":
        return Facts(*(getattr(self, column.name)[rows] for column in fields(self)))

    @property
    def modality(self) -> np.ndarray:
        """0 text, 1 image without masks, 2 image with masks, 3 video without masks, 4 video with masks: (n,) int8."""
        return np.where(self.width == 0, 0, 1 + 2 * self.is_video + self.has_targets).astype(np.int8)


def scan(dataset: datasets.Dataset) -> Facts:
    """The facts of all rows; reads texts and numbers once, about 2 s per million rows with 5 expressions each.

    Raises:
        ValueError: the dataset does not have the columns of `schema.FEATURES`.
    """
    missing = [name for name in FEATURES if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"not a prepared dataset: columns {missing} are missing, it has {dataset.column_names}; "
            "write it with scripts/prepare_data.py"
        )
    texts = dataset.select_columns(list(SCAN_COLUMNS)).with_format("arrow")
    batches = [_scan_batch(table.combine_chunks()) for table in texts.iter(SCAN_ROWS)] or [_scan_batch(texts[:0])]
    return Facts(*(np.concatenate([getattr(b, column.name) for b in batches]) for column in fields(Facts)))


def _scan_batch(table: pa.Table) -> Facts:
    columns = {name: _array(table, name) for name in SCAN_COLUMNS}
    rows = len(table)

    def per_row(name: str, values: np.ndarray, reduce: np.ufunc) -> np.ndarray:
        """Values of a list column's entries, reduced to one per row."""
        out = np.zeros(rows, values.dtype)
        reduce.at(out, pc.list_parent_indices(columns[name]).to_numpy(zero_copy_only=False), values)
        return out

    turns, expressions = columns["turns"].flatten(), columns["expressions"].flatten()
    spoken = _numpy(pc.add(pc.binary_length(turns.field("question")), pc.binary_length(turns.field("answer"))))
    phrase = _numpy(pc.binary_length(expressions.field("text")))
    pointing = per_row("turns", _numpy(pc.list_value_length(turns.field("targets"))), np.add)
    pointing += per_row("expressions", _numpy(pc.list_value_length(expressions.field("targets"))), np.add)
    lengths = {
        name: _numpy(pc.list_value_length(columns[name])) for name in columns if pa.types.is_list(columns[name].type)
    }
    numbers = {name: _numpy(column) for name, column in columns.items() if name not in lengths}
    return Facts(
        **{name: numbers[name] for name in ("width", "height", "num_frames", "is_video", "num_objects")},
        **{f"num_{name}": lengths[name] for name in ("annotated", "regions", "turns", "expressions")},
        turn_bytes=per_row("turns", spoken, np.add),
        expression_bytes=per_row("expressions", phrase, np.maximum),
        has_targets=pointing > 0,
        # an object has a mask or a box somewhere, so in a picture it has one there
        complete=(numbers["num_masks"] == numbers["num_objects"] * lengths["annotated"]) | (lengths["annotated"] == 1),
    )


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numpy(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


@dataclass
class Phrases:
    """The expressions of some rows, flat: those of row i are texts[offsets[i] : offsets[i + 1]]."""

    offsets: np.ndarray
    texts: list[str]
    has_target: np.ndarray  # bool

    def of(self, row: int) -> tuple[list[str], np.ndarray]:
        span = slice(self.offsets[row], self.offsets[row + 1])
        return self.texts[span], self.has_target[span]


def _texts(expressions: pa.StructArray) -> tuple[list[str], np.ndarray]:
    ends = expressions.field("targets").offsets.to_numpy()  # much cheaper for a few than a function of pyarrow
    return expressions.field("text").to_pylist(), ends[1:] > ends[:-1]


class Rows:
    """The rows of a prepared dataset, by number, as they lie in its files: `dataset[number]` spends most
    of its time on other formats. Pickled as the dataset, whose files travel by name."""

    def __init__(self, dataset: datasets.Dataset):
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset}

    def __getitem__(self, number: int) -> "Row":
        number = int(number)
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        if self.dataset._indices is not None:  # rows were selected, which is nowhere to be read in public
            return Row(_Columns(self.dataset[number].to_batches()[0]), 0)
        piece = bisect_right(self._starts, number) - 1
        return Row(self._pieces[piece], number - self._starts[piece])

    def __iter__(self) -> Iterator["Row"]:
        return (self[number] for number in range(len(self)))

    def phrases(self, numbers: Sequence[int] | np.ndarray) -> Phrases:
        """The expressions of many rows at once, far faster than one by one."""
        texts = self.dataset.select_columns("expressions")
        column = _array(texts[[int(number) for number in numbers]], "expressions")
        offsets = np.concatenate([[0], np.cumsum(_numpy(pc.list_value_length(column)))])
        return Phrases(offsets, *_texts(column.flatten()))

    def turns(self, numbers: Sequence[int] | np.ndarray) -> list[list[tuple[str, str]]]:
        """The (question, answer) pairs of many rows at once."""
        texts = self.dataset.select_columns("turns")
        column = _array(texts[[int(number) for number in numbers]], "turns")
        ends = np.cumsum(_numpy(pc.list_value_length(column))).tolist()
        turns = column.flatten()
        pairs = list(zip(turns.field("question").to_pylist(), turns.field("answer").to_pylist(), strict=True))
        return [pairs[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def _pieces(self) -> list["_Columns"]:
        return [_Columns(batch) for batch in self.dataset.data.to_batches()]

    @cached_property
    def _starts(self) -> list[int]:
        """The number of the first row of each piece."""
        ends = np.cumsum([piece.batch.num_rows for piece in self._pieces])
        return [0, *ends[:-1].tolist()]


class _Columns(dict[str, pa.Array]):
    """The columns of a record batch, those that were asked for."""

    def __init__(self, batch: pa.RecordBatch):
        super().__init__()
        self.batch = batch

    def __missing__(self, name: str) -> pa.Array:
        self[name] = found = self.batch.column(name)
        return found


class Row:
    """One row, whose parts are read when asked for."""

    def __init__(self, columns: Mapping[str, pa.Array], place: int):
        """columns: of some rows, of which this is the one at `place`."""
        self._columns, self._place = columns, place

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._place].as_py()

    def _list(self, name: str) -> pa.Array:
        return self._columns[name][self._place].values

    def phrases(self) -> tuple[list[str], np.ndarray]:
        """Texts of the expressions, and whether each means an object."""
        return _texts(self._expressions)

    def targets(self, expression: int) -> list[int]:
        return self._expressions.field("targets")[expression].values.to_pylist()

    def expression(self, number: int) -> Expression:
        return Expression(**self._expressions[number].as_py())

    def annotated(self) -> np.ndarray:
        return _numpy(self._list("annotated"))

    def known(self) -> np.ndarray:
        """Which object has a mask (an empty one counts) on which annotated frame: bool (objects, annotated)."""
        valid = pc.and_(self._masks.is_valid(), self._masks.field("counts").is_valid())
        return _numpy(valid).reshape(len(self._objects), -1)

    def located(self) -> np.ndarray:
        """Which object has a mask or a box on which annotated frame: bool (objects, annotated)."""
        boxes = self._objects.field("boxes").flatten()
        return self.known() | _numpy(boxes.is_valid()).reshape(self.known().shape)

    def box(self, instance: int, position: int) -> Box | None:
        """The box of an object on the annotated frame of that position, without area where it is known to be
        absent."""
        found = self._objects.field("boxes")[instance].values[position].as_py()
        return None if found is None else tuple(found)

    def category(self, instance: int) -> str | None:
        return self._objects.field("category")[instance].as_py()

    def visible(self) -> np.ndarray:
        """Which object has pixels on which annotated frame: bool (objects, annotated). Decodes nothing."""
        counts = self._masks.field("counts")
        nothing = pa.scalar(masks.empty(self["height"], self["width"])["counts"], counts.type)
        return self.known() & _numpy(pc.fill_null(pc.not_equal(counts, nothing), False)).reshape(self.known().shape)

    def mask(self, instance: int, position: int) -> RLE | None:
        """The mask of an object on the annotated frame of that position."""
        return _rle(self._objects.field("masks")[instance].values[position])

    def ignore(self, position: int) -> RLE | None:
        column = self._list("ignore")
        return _rle(column[position]) if len(column) else None

    def frame(self, number: int) -> Media:
        return _media(self._list("frames")[number].as_py())

    def video(self) -> Media | None:
        return _media(self["video"])

    def sample(self) -> Sample:
        """All of the row: what was prepared."""
        return from_row({name: self[name] for name in FEATURES})

    @cached_property
    def _expressions(self) -> pa.StructArray:
        return self._list("expressions")

    @cached_property
    def _objects(self) -> pa.StructArray:
        return self._list("objects")

    @cached_property
    def _masks(self) -> pa.StructArray:
        """All masks of the row, object by object."""
        return self._objects.field("masks").flatten()


def _rle(scalar: pa.StructScalar) -> RLE | None:
    rle = scalar.as_py()
    return None if rle is None or rle["counts"] is None else rle


def _media(media: dict | None) -> Media | None:
    if media is None:
        return None
    return media["bytes"] if media["bytes"] is not None else media["path"]
