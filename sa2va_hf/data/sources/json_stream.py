"""JSON with long lists, read a list element at a time: annotation files can be larger than the memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

CHUNK = 2**20  # bytes

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")
_MARGIN = 16  # characters: what cannot be read so near the end of the buffer may have been cut there


class Element(NamedTuple):
    """An element of a list, and the bytes of the file that it is: file[start:end]."""

    value: Any
    start: int
    end: int


def read_object(file: BinaryIO, name: str, chunk: int = CHUNK) -> Iterator[tuple[str, Any]]:
    """(key, value) of the members of the object that is the file's content; a list is an iterator of its `Element`s.

    In memory are a chunk of the file and one element or other value. What is left of a list when the next member is
    asked for is read over. Blanks, numbers and text are as `json` reads them; the file is UTF-8.

    Raises:
        ValueError: naming the file and the byte from which on it is not JSON. Another value than an object counts as
            such.
    """
    text = _Buffer(file, name, chunk)
    text.expect("{")
    if text.peek() == "}":
        text.expect("}")
    else:
        more = True
        while more:
            key = text.value() if text.peek() == '"' else text.fail("expected a key in double quotes")
            text.expect(":")
            if text.peek() == "[":
                elements = _elements(text)
                yield key, elements
                for _ in elements:
                    pass
            else:
                yield key, text.value()
            more = text.expect(",}") == ","
    if text.peek():
        text.fail("more than one value")


def read_list(file: BinaryIO, name: str, chunk: int = CHUNK) -> Iterator[Element]:
    """The elements of the list that is the file's content; otherwise as `read_object`."""
    text = _Buffer(file, name, chunk)
    yield from _elements(text)
    if text.peek():
        text.fail("more than one value")


def _elements(text: "_Buffer") -> Iterator[Element]:
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    more = True
    while more:
        text.peek()
        start = text.byte
        value = text.value()
        yield Element(value, start, text.byte)
        more = text.expect(",]") == ","


class _Buffer:
    """A stretch of the file: text[at:] is still to be read, and text[at] is byte `byte` of the file."""

    def __init__(self, file: BinaryIO, name: str, chunk: int):
        self.file, self.name, self.chunk = file, name, chunk
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self.text, self.at, self.byte, self.is_ascii = "", 0, 0, True
        if self.peek() == "\ufeff":  # a byte order mark
            self._advance(self.at + 1)

    def fail(self, reason: str, at: int | None = None) -> None:
        place = self.byte + self._bytes(self.at if at is None else at)
        raise ValueError(f"{self.name} is not JSON: {reason} at byte {place}")

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            self._advance(_BLANK.match(self.text, self.at).end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._fill():
                return ""

    def expect(self, characters: str) -> str:
        """Takes the next character, which must be one of these."""
        if (found := self.peek()) == "" or found not in characters:
            self.fail(f"expected {' or '.join(characters)}, got {found or 'the end of the file'}")
        self._advance(self.at + 1)
        return found

    def value(self) -> Any:
        """Takes the next value, as a whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _MARGIN
                place = error.pos - self.at
                if cut and self._fill():
                    continue
                self.fail(error.msg.removesuffix(" at"), self.at + place)
            length = end - self.at
            # of 1.5 the buffer may hold "1" or "1." only, which can be read as well
            cut = end > len(self.text) - _MARGIN and self.text[end : end + 1] not in tuple(",]} \t\n\r")
            if isinstance(value, int | float) and cut and self._fill():
                continue
            self._advance(self.at + length)
            return value

    def _advance(self, at: int) -> None:
        self.byte += self._bytes(at)
        self.at = at

    def _bytes(self, at: int) -> int:
        """Bytes from here to text[at]."""
        return at - self.at if self.is_ascii else len(self.text[self.at : at].encode("utf-8", "surrogatepass"))

    def _fill(self) -> bool:
        """Reads on; what was not yet taken stays. The longer that is, the more: it is not gone over too often."""
        data = self.file.read(max(self.chunk, len(self.text) - self.at))
        try:
            self.text = self.text[self.at :] + self.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self.fail(f"no UTF-8 ({error.reason})", len(self.text))
        self.at, self.is_ascii = 0, self.text.isascii()
        return bool(data)
