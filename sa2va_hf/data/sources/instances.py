"""COCO instances files of any size: pictures and categories are kept, annotations stay in the file until needed.

    {"images": [{"id", ...}, ...], "annotations": [{"id", "image_id", ...}, ...], "categories": [{"id", ...}, ...]}

Reading goes over the file twice: once for ids and the places of the annotations (32 bytes in memory each), and, as the
pictures are asked for one by one, again for what stands at these places.
"""

import json
import mmap
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf.data.schema import Reject
from sa2va_hf.data.sources.files import expect_keys, opened_annotation, read_json, starts_with
from sa2va_hf.data.sources.json_stream import Element, read_object

TABLES = ("images", "annotations", "categories")


@dataclass
class Instances:
    """An instances json, indexed.

    pictures, categories: record and name by id. of_image: annotations by id of their picture, pictures without any
    left out. rejects: entries that belong nowhere.
    """

    path: Path
    pictures: dict[int, Any]
    of_image: dict[int, Sequence[dict]]
    categories: dict[int, str | None]
    rejects: list[Reject]


def read_instances(path: Path) -> Instances:
    """The file as `Instances`, whose annotations are read when a picture is asked for.

    An annotation whose id occurs twice, or whose picture is not there, is a reject. ValueError when the file is not of
    this form.
    """
    pictures, categories, places = _ById("images", path), _ById("categories", path), _Places(path)
    _read_tables(path, {"images": pictures.take, "annotations": places.take, "categories": categories.take})
    rejects = pictures.rejects + places.rejects + categories.rejects
    of_image, homeless = places.by_picture(pictures.records)
    return Instances(path, pictures.records, of_image, _names(categories.records), rejects + homeless)


def index_instances(path: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, str | None], list[Reject]]:
    """Pictures, annotations and names of categories of an instances json, each by id, all of them in memory.

    An id that occurs twice maps to None: it is not known which is meant. Entries without an id come as rejects.
    ValueError when the file is not of this form.
    """
    tables = {name: _ById(name, path) for name in TABLES}
    _read_tables(path, {name: table.take for name, table in tables.items()})
    pictures, annotations, categories = (table.records for table in tables.values())
    rejects = [reject for table in tables.values() for reject in table.rejects]
    return pictures, annotations, _names(categories), rejects


def _names(categories: dict[int, Any]) -> dict[int, str | None]:
    return {key: record and _name(record) for key, record in categories.items()}


def _name(category: dict) -> str | None:
    """The name of a category; None when it has none that is a text."""
    return name if isinstance(name := category.get("name"), str) and name.strip() else None


# ---------------------------------------------------------------- the file, once


def _read_tables(path: Path, take: dict[str, Callable[[int, Element], None]]) -> None:
    """Hands every entry of the lists to the function of its list, with its number. ValueError without one of them."""
    found: dict[str, bool] = {}  # every key, and whether it is a list
    with opened_annotation(path) as file:
        if not starts_with(file, b"{"):
            read_json(path, dict)  # says what it is instead
        for key, value in read_object(file, str(path)):
            if key in take and key in found:
                raise ValueError(f"{path} has {key!r} twice")
            found[key] = hasattr(value, "__next__")
            for number, element in enumerate(value) if key in take and found[key] else ():
                take[key](number, element)
    if missing := [name for name in take if not found.get(name)]:
        raise ValueError(f"{path} must have a list {missing[0]!r}; it has {', '.join(sorted(found))}")


def _id(record: Any, name: str) -> int:
    expect_keys(record, {"id": int}, name)
    if not _is_id(record["id"]):
        raise ValueError(f"{name}: 'id' must be an integer of 64 bits, got {record['id']}")
    return record["id"]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


class _ById:
    """The records of a list by their id; an id that occurs twice maps to None."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.records: dict[int, Any] = {}
        self.rejects: list[Reject] = []

    def take(self, number: int, element: Element) -> None:
        name = f"{self.name}[{number}]"
        try:
            key = _id(element.value, name)
            self.records[key] = None if key in self.records else element.value
        except ValueError as error:
            self.rejects.append(Reject(name, str(error), str(self.path)))


class _Places:
    """Where in the file annotations are, and which picture each belongs to."""

    def __init__(self, path: Path):
        self.path = path
        self.ids, self.pictures, self.starts, self.ends = (array("q") for _ in range(4))
        self.odd: dict[int, Any] = {}  # position -> an image_id that is no number
        self.rejects: list[Reject] = []

    def take(self, number: int, element: Element) -> None:
        name = f"annotations[{number}]"
        try:
            key = _id(element.value, name)
        except ValueError as error:
            self.rejects.append(Reject(name, str(error), str(self.path)))
            return
        picture = element.value.get("image_id")
        if not _is_id(picture):
            self.odd[len(self.ids)] = picture
            picture = 0
        for values, value in zip(
            (self.ids, self.pictures, self.starts, self.ends), (key, picture, element.start, element.end), strict=True
        ):
            values.append(value)

    def by_picture(self, known: dict[int, Any]) -> tuple[dict[int, Sequence[dict]], list[Reject]]:
        """The annotations of each picture, in the order of the file, and those that belong to none."""
        ids, pictures = np.asarray(self.ids), np.asarray(self.pictures)
        twice, first = _repeated(ids)
        homeless = ~np.isin(pictures, np.fromiter(known, np.int64, len(known)))
        homeless[list(self.odd)] = True
        rejects = []
        for place in np.flatnonzero((twice & first) | (homeless & ~twice)).tolist():
            number = int(ids[place])
            reason = f"annotation id {number} occurs twice"
            if not twice[place]:
                image_id = self.odd.get(place, int(pictures[place]))
                reason = f"its image_id {image_id!r:.80} is not among the images"
            rejects.append(Reject(f"annotation {number}", reason, str(self.path)))
        good = np.flatnonzero(~(twice | homeless))
        good = good[np.argsort(pictures[good], kind="stable")]
        cuts = (np.flatnonzero(np.diff(pictures[good])) + 1).tolist()
        groups = list(zip([0, *cuts], [*cuts, len(good)], strict=True)) if len(good) else []
        text = _Text(self.path, np.asarray(self.starts)[good], np.asarray(self.ends)[good])
        groups.sort(key=lambda group: good[group[0]])  # in the order in which the file comes to the pictures
        return {int(pictures[good[first]]): Annotations(text, first, last) for first, last in groups}, rejects


def _repeated(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which ids are there more than once, and which of all are the first of their number: bool (n,) each."""
    twice, first = np.zeros(len(ids), bool), np.ones(len(ids), bool)
    ordered = np.sort(ids)
    if repeated := set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()):
        seen: set[int] = set()
        for place in np.flatnonzero(np.isin(ids, list(repeated))).tolist():
            twice[place], first[place] = True, ids[place] not in seen
            seen.add(int(ids[place]))
    return twice, first


# ---------------------------------------------------------------- and again


class _Text:
    """The annotations at some places of a file."""

    def __init__(self, path: Path, starts: np.ndarray, ends: np.ndarray):
        self.path, self.starts, self.ends = path, starts, ends
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, place: int) -> dict:
        piece = self.bytes[self.starts[place] : self.ends[place]]
        try:
            return json.loads(str(piece, "utf-8", "surrogatepass"))
        except ValueError as error:
            raise ValueError(f"{self.path} was changed while it was read: {error}") from error


class Annotations(Sequence[dict]):
    """The annotations of a picture, read anew whenever they are asked for."""

    __slots__ = ("text", "first", "last")

    def __init__(self, text: _Text, first: int, last: int):
        self.text, self.first, self.last = text, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> dict:
        return self.text.read(range(self.first, self.last)[index])
