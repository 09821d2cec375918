"""COCO instances files of any size: pictures and categories are kept, annotations stay in the file until needed.

    {"images": [{"id", ...}, ...], "annotations": [{"id", "image_id", ...}, ...], "categories": [{"id", ...}, ...]}

The file is read twice: once for the ids and the positions of the annotations (32 bytes in memory each), and, as the
pictures are asked for one by one, again for what stands at these positions.
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
from sa2va_hf.listings import listed

TABLES = ("images", "annotations", "categories")


Key = int | str  # an id: JSON has 7, 7.0, "7" and "0007"; the first two are one


@dataclass
class Instances:
    """An instances json, indexed.

    pictures, categories: record and name by id. of_image: annotations by id of their picture, pictures without any
    skipped. rejects: entries that belong nowhere. crowds: how many annotations have iscrowd 1; crowds_only: all of
    them, which is how CVAT and others mark a mask that was painted with a brush.
    """

    path: Path
    pictures: dict[Key, Any]
    of_image: dict[Key, Sequence[dict]]
    categories: dict[Key, str | None]
    rejects: list[Reject]
    crowds_only: bool = False
    crowds: int = 0


def read_instances(path: Path) -> Instances:
    """The file as `Instances`, whose annotations are read when a picture is asked for.

    An annotation whose picture is not there is a reject. Raises ValueError when the file is not of this form.
    """
    pictures, categories, places = _ById("images", path), _ById("categories", path), _Places(path)
    _read_tables(path, {"images": pictures.take, "annotations": places.take, "categories": categories.take})
    rejects = pictures.rejects + places.rejects + categories.rejects
    of_image, homeless = places.by_picture(pictures.records)
    crowds_only = 0 < places.crowds == len(places.starts)
    names = _names(categories.records)
    return Instances(path, pictures.records, of_image, names, rejects + homeless, crowds_only, places.crowds)


def index_instances(path: Path) -> tuple[dict[Key, Any], dict[Key, Any], dict[Key, str | None], list[Reject]]:
    """Pictures, annotations and names of categories of an instances json, each by id, all of them in memory.

    An id that occurs twice maps to None: it is not known which is meant. Entries without an id come as rejects.
    ValueError when the file is not of this form.
    """
    tables = {name: _ById(name, path) for name in TABLES}
    _read_tables(path, {name: table.take for name, table in tables.items()})
    pictures, annotations, categories = (table.records for table in tables.values())
    rejects = [reject for table in tables.values() for reject in table.rejects]
    return pictures, annotations, _names(categories), rejects


def _names(categories: dict[Key, Any]) -> dict[Key, str | None]:
    return {key: record and _name(record) for key, record in categories.items()}


def _name(category: dict) -> str | None:
    """The name of a category; None when it has none that is a text."""
    return name if isinstance(name := category.get("name"), str) and name.strip() else None


def is_instances(path: Path) -> bool:
    """Whether a file holds the lists of an instances json. Reads it, one entry at a time."""
    try:
        with opened_annotation(path) as file:
            if not starts_with(file, b"{"):
                return False
            return set(TABLES) <= {key for key, value in read_object(file, str(path)) if hasattr(value, "__next__")}
    except ValueError:
        return False


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
        raise ValueError(f"{path} must have a list {missing[0]!r}; it has {listed(sorted(map(str, found)))}")


def id_key(value: Any) -> Key | None:
    """An id as a key: whole numbers as int, texts as they are; None for what is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None


def lookup(table: dict[Key, Any], value: Any) -> Key | None:
    """The key of a table that an id means; None when it has none. "7" finds 7 and the other way round."""
    key = id_key(value)
    if key is None or key in table:
        return key
    other = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else str(key)
    return other if other in table else None


def _id(record: Any, name: str) -> Key:
    expect_keys(record, {"id": (int, float, str)}, name)
    key = id_key(record["id"])
    if key is None:
        raise ValueError(f"{name}: 'id' must be a whole number or a text, got {record['id']!r:.80}")
    return key


class _ById:
    """The records of a list by their id; an id that occurs twice maps to None."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.records: dict[Key, Any] = {}
        self.rejects: list[Reject] = []

    def take(self, number: int, element: Element) -> None:
        name = f"{self.name}[{number}]"
        try:
            key = _id(element.value, name)
            self.records[key] = None if key in self.records else element.value
        except ValueError as error:
            self.rejects.append(Reject(name, str(error), str(self.path)))


class _Places:
    """Where in the file annotations are, and which picture each belongs to.

    An annotation needs no id of its own: its picture is the one that its image_id names. Ids that are missing, or that
    start anew in every picture, are no fault.
    """

    def __init__(self, path: Path):
        self.path = path
        self.pictures, self.starts, self.ends, self.indices = (array("q") for _ in range(4))
        self.numbers: dict[Key, int] = {}  # image_id -> its number in `pictures`
        self.rejects: list[Reject] = []
        self.crowds = 0

    def take(self, number: int, element: Element) -> None:
        try:
            if not isinstance(element.value, dict):
                raise ValueError(f"annotations[{number}] must be a dict, got {type(element.value).__name__}")
            key = id_key(element.value.get("image_id"))
            if key is None:
                raise ValueError(f"its image_id {element.value.get('image_id')!r:.80} is not among the images")
        except ValueError as error:
            self.rejects.append(Reject(_name_of(element.value, number), str(error), str(self.path)))
            return
        self.pictures.append(self.numbers.setdefault(key, len(self.numbers)))
        self.starts.append(element.start)
        self.ends.append(element.end)
        self.indices.append(number)
        self.crowds += bool(element.value.get("iscrowd"))

    def by_picture(self, known: dict[Key, Any]) -> tuple[dict[Key, Sequence[dict]], list[Reject]]:
        """The annotations of each picture, in the order of the file, and those that belong to none."""
        pictures = np.asarray(self.pictures)
        meant = {number: lookup(known, key) for key, number in self.numbers.items()}
        homeless = np.isin(pictures, [number for number, key in meant.items() if key is None])
        text = _Text(self.path, np.asarray(self.starts), np.asarray(self.ends))
        rejects = []
        for place in np.flatnonzero(homeless).tolist():
            record = text.read(place)
            reason = f"its image_id {record.get('image_id')!r:.80} is not among the images"
            rejects.append(Reject(_name_of(record, self.indices[place]), reason, str(self.path)))
        order = np.argsort(pictures, kind="stable")
        order = order[~homeless[order]]
        cuts = (np.flatnonzero(np.diff(pictures[order])) + 1).tolist()
        groups = list(zip([0, *cuts], [*cuts, len(order)], strict=True)) if len(order) else []
        groups.sort(key=lambda group: order[group[0]])  # in the order in which the file comes to the pictures
        text = _Text(self.path, text.starts[order], text.ends[order])
        found: dict[Key, Sequence[dict]] = {}
        for first, last in groups:
            key = meant[int(pictures[order[first]])]
            of_picture = Annotations(text, first, last)
            found[key] = [*found[key], *of_picture] if key in found else of_picture  # by 7 and by "7"
        return found, rejects


def _name_of(record: Any, number: int) -> str:
    """How messages call an annotation: by its id, or else by its index in the file."""
    own = record.get("id") if isinstance(record, dict) else None
    return f"annotations[{number}]" if own is None else f"annotation {own}"


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
