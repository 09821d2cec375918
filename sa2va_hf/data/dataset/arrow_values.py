"""Single values of Arrow arrays, read from their buffers.

pyarrow makes a scalar or an array per level on the way to a nested value. A training item needs some ten values of a
row, and with these readers, which are made once per array, each costs a few operations on memory that is there.
"""

from functools import cached_property
from typing import Any

import pyarrow as pa

NUMBERS = {pa.int32(): "i", pa.int64(): "q", pa.float32(): "f", pa.float64(): "d"}  # formats of memoryview


class Values:
    """The values of an array by index, as `array[index].as_py()`. This class reads any type, and slowly: those that
    `values_of` has no reader for."""

    def __init__(self, array: pa.Array):
        self.array = array

    def __getitem__(self, index: int) -> Any:
        return self.array[index].as_py()

    def span(self, start: int, stop: int) -> list[Any]:
        """The values from `start` to `stop`, which is not among them."""
        return [self[index] for index in range(start, stop)]


class _Read(Values):
    """An array whose buffers are read. Indices are those of the array, which may be a slice of the buffers."""

    def __init__(self, array: pa.Array):
        super().__init__(array)
        self.offset = array.offset
        self.buffers = [memoryview(b"" if buffer is None else buffer) for buffer in array.buffers()]
        self.has_nulls = len(self.buffers[0]) > 0

    def is_valid(self, index: int) -> bool:
        """Whether the value is not null."""
        return not self.has_nulls or self._bit(0, index)

    def _bit(self, buffer: int, index: int) -> bool:
        byte, bit = divmod(self.offset + index, 8)
        return bool(self.buffers[buffer][byte] >> bit & 1)

    def _numbers(self, buffer: int, code: str) -> memoryview:
        """A buffer as numbers, from the first one of the array on."""
        found = self.buffers[buffer].cast("B")
        size = memoryview(b"").cast(code).itemsize
        return found[: len(found) // size * size].cast(code)[self.offset :]


class Numbers(_Read):
    def __init__(self, array: pa.Array):
        super().__init__(array)
        self.numbers = self._numbers(1, NUMBERS[array.type])

    def __getitem__(self, index: int) -> int | float | None:
        return self.numbers[index] if self.is_valid(index) else None

    def span(self, start: int, stop: int) -> list[Any]:
        return super().span(start, stop) if self.has_nulls else self.numbers[start:stop].tolist()


class Flags(_Read):
    def __getitem__(self, index: int) -> bool | None:
        return self._bit(1, index) if self.is_valid(index) else None


class Texts(_Read):
    """Strings, or bytes."""

    def __init__(self, array: pa.Array):
        super().__init__(array)
        self.ends, self.characters = self._numbers(1, "i"), self.buffers[2]
        self.is_text = pa.types.is_string(array.type)

    def __getitem__(self, index: int) -> str | bytes | None:
        if not self.is_valid(index):
            return None
        found = self.characters[self.ends[index] : self.ends[index + 1]]
        return str(found, "utf-8") if self.is_text else bytes(found)


class Lists(_Read):
    """Lists, whose values lie one behind the other in `values`: those of one are between its `bounds`."""

    def __init__(self, array: pa.Array):
        super().__init__(array)
        self.ends = self._numbers(1, "i")

    @cached_property
    def values(self) -> Any:
        return values_of(self.array.values)

    def bounds(self, index: int) -> tuple[int, int]:
        return self.ends[index], self.ends[index + 1]

    def entry(self, index: int, number: int) -> int:
        """Where in `values` entry `number` of a list is. Raises: IndexError when the list has no such entry."""
        start, stop = self.bounds(index)
        if not 0 <= number < stop - start:
            raise IndexError(f"entry {number} of {stop - start}")
        return start + number

    def __getitem__(self, index: int) -> list[Any] | None:
        return self.values.span(*self.bounds(index)) if self.is_valid(index) else None


class Structs(_Read):
    """Dictionaries, whose fields are arrays of their own."""

    def __init__(self, array: pa.Array):
        super().__init__(array)
        self._fields: dict[str, Any] = {}

    def field(self, name: str) -> Any:
        """The values of a field."""
        if name not in self._fields:
            self._fields[name] = values_of(self.array.field(name))
        return self._fields[name]

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return {name: self.field(name)[index] for name in self.names} if self.is_valid(index) else None

    @cached_property
    def names(self) -> list[str]:
        return [field.name for field in self.array.type]


def values_of(array: pa.Array) -> Values:
    """A reader of the values of an array."""
    kind = array.type
    if kind in NUMBERS:
        return Numbers(array)
    if pa.types.is_boolean(kind):
        return Flags(array)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return Texts(array)
    if pa.types.is_list(kind):
        return Lists(array)
    return Structs(array) if pa.types.is_struct(kind) else Values(array)
