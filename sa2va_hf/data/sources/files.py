"""What the sources share: annotation files read and hashed once, pictures found and measured, splits made."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va_hf import mask_pictures
from sa2va_hf.data.media import LFS, check_no_pointer
from sa2va_hf.data.sources.json_stream import read_list
from sa2va_hf.listings import listed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112

_hashes: ContextVar[dict[str, str] | None] = ContextVar("annotation_hashes", default=None)


@contextmanager
def recorded_hashes() -> Iterator[dict[str, str]]:
    """Within it, every annotation file that a source reads is entered in the dict that is yielded: path -> sha256."""
    found: dict[str, str] = {}
    token = _hashes.set(found)
    try:
        yield found
    finally:
        _hashes.reset(token)


def read_annotation(path: Path) -> bytes:
    """The bytes of an annotation file. ValueError when it is missing or not readable."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"annotation file {path} cannot be read: {error.strerror}") from error
    if (hashes := _hashes.get()) is not None:
        hashes[str(path)] = hashlib.sha256(data).hexdigest()
    check_no_pointer(data, path)
    return data


@contextmanager
def opened_annotation(path: Path) -> Iterator[io.BufferedReader]:
    """An annotation file to be read to its end piece by piece. ValueError when it is missing or not readable."""
    try:
        with io.BufferedReader(_Hashed(path)) as file:
            check_no_pointer(file.peek(len(LFS)), path)
            yield file
            if (hashes := _hashes.get()) is not None:
                hashes[str(path)] = file.raw.hash.hexdigest()
    except OSError as error:
        raise ValueError(f"annotation file {path} cannot be read: {error.strerror}") from error


class _Hashed(io.FileIO):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.hash = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.hash.update(memoryview(buffer)[:count])
        return count


def read_json(path: Path, expected: type) -> Any:
    """A JSON file whose top level must be of the type expected (list or dict). ValueError with file and place."""
    try:
        content = json.loads(read_annotation(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, expected):
        raise ValueError(f"{path} must hold a {expected.__name__} at its top level, got a {type(content).__name__}")
    return content


def read_records(path: Path) -> Iterator[Any]:
    """The records of a JSON list, or of a file .jsonl with one per line, of which one is in memory at a time.

    ValueError with file and place, when the iterator comes to it.
    """
    with opened_annotation(path) as file:
        if path.suffix != ".jsonl":
            if not starts_with(file, b"["):
                read_json(path, list)  # says what it is instead
            yield from (element.value for element in read_list(file, str(path)))
            return
        for number, line in enumerate(file, start=1):
            try:
                yield from [json.loads(line)] if line.strip() else []
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not JSON in line {number}: {error}") from error


def starts_with(file: io.BufferedReader, bracket: bytes) -> bool:
    """Whether a JSON file, of which nothing was read yet, seems to hold an object, b"{", or a list, b"["."""
    return file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(bracket)


def unique_id(name: str, seen: dict[str, int]) -> str:
    """`name` the first time, then "name#2", "name#3", ...; seen: how often each came, which is counted on."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def first_existing(candidates: Sequence[Path], what: str, advice: str) -> Path:
    """The first candidate that exists. ValueError that lists them all and says what to do."""
    for path in candidates:
        if path.exists():
            return path
    looked = ", ".join(map(str, candidates))
    raise ValueError(f"{what} not found; looked for {looked}. {advice}")


def annotation_file(root: Path, given: Path | str | None, usual: Sequence[Path]) -> Path:
    """The annotation file: `given` (absolute, or relative to here or to root), else the first of the usual ones."""
    candidates = usual if given is None else [Path(given), root / given]
    return first_existing(candidates, "the annotation file", "Name it with --option annotations=FILE")


def find_picture(name: str, folders: Iterable[Path]) -> Path:
    """The file `name` in the first folder that has it. ValueError that lists the folders.

    A name that was written on Windows is read as one: "images\\a.jpg" is images/a.jpg.
    """
    folders = list(folders)
    names = (name, name.replace("\\", "/")) if "\\" in name else (name,)
    for path in (folder / one for one in names for folder in folders):
        if path.is_file():
            return path
    hint = f" (also as {names[-1]}: its name is written with backslashes, as on Windows)" if len(names) > 1 else ""
    alone = Path(names[-1]).name
    namesake = next((folder / alone for folder in folders if (folder / alone).is_file()), None)
    if namesake is not None:  # two pictures may have one name in different folders: not taken without being told
        hint += f"; there is {namesake}: if that is the picture, write its path from {namesake.parent} into the file"
    raise ValueError(f"image {name} not found; looked in {listed(folders)}{hint}")


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture turned as its EXIF says; reads the header only. ValueError when it has none."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)  # these swap the sides
            width, height = image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        check_no_pointer(path.read_bytes()[: len(LFS)] if path.is_file() else b"", path)
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return (height, width) if turned else (width, height)


def sized_ids(path: Path, height: int, width: int) -> np.ndarray:
    """`read_ids` of a mask picture that belongs to an upright photo of this size. ValueError when it differs."""
    return _sized(mask_pictures.read_ids(path), path, height, width)


def sized_mask(path: Path, height: int, width: int) -> np.ndarray:
    """`read_mask`, with the check of `sized_ids`."""
    return _sized(mask_pictures.read_mask(path), path, height, width)


def sized_objects(path: Path, height: int, width: int) -> np.ndarray:
    """`read_objects`, with the check of `sized_ids`."""
    return _sized(mask_pictures.read_objects(path), path, height, width)


def _sized(ids: np.ndarray, path: Path, height: int, width: int) -> np.ndarray:
    if ids.shape == (height, width):
        return ids
    turned = ids.shape == (width, height)
    hint = "; the photo is turned by its EXIF orientation: turn the mask too" if turned else ""
    raise ValueError(
        f"mask {path} is {ids.shape[1]} x {ids.shape[0]} (width x height) but its photo is {width} x {height}{hint}"
    )


def read_colours(path: Path, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) of a PNG whose colours are numbers. ValueError when it is no such PNG of this size."""
    try:
        with Image.open(path) as image:
            kind, values = f"{image.format} of mode {image.mode}", np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    if kind != "PNG of mode RGB":
        raise ValueError(f"{path} must be a PNG of mode RGB, whose colours are numbers, got a {kind}")
    if values.shape[:2] != (height, width):
        found = f"{values.shape[1]} x {values.shape[0]} (width x height)"
        raise ValueError(f"{path} is {found} but its photo is {width} x {height}")
    return values


def expect_keys(record: Any, keys: dict[str, type | tuple[type, ...]], name: str) -> None:
    """ValueError when a record is not a dict or lacks one of the keys or has it with another type."""
    if not isinstance(record, dict):
        raise ValueError(f"{name} must be a dict with {', '.join(keys)}, got {type(record).__name__}")
    for key, kind in keys.items():
        if key not in record:
            raise ValueError(f"{name} has no {key!r}; it has {listed(sorted(map(str, record)))}")
        if not isinstance(record[key], kind) or (isinstance(record[key], bool) and kind is int):
            kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{name}: {key!r} must be {kinds}, got {record[key]!r:.80}")


def keep_split(keys: Iterable[str], split: str, val_fraction: float, advice: str) -> set[str]:
    """The keys (one per picture) of a split of data that comes without splits.

    val_fraction 0: everything is "train" (or "all"), any other split a ValueError. Otherwise "val" is that share of
    the pictures, at least one, chosen by a hash of their keys: it does not depend on order or on chance.
    """
    keys = set(keys)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
    if split == "all" or (split == "train" and val_fraction == 0):
        return keys
    if val_fraction == 0 or split not in ("train", "val"):
        raise ValueError(f"there is no split {split!r}: {advice}, or take 'train' and 'val' with val_fraction=0.1")
    if len(keys) < 2:
        raise ValueError(f"val_fraction={val_fraction} needs at least 2 pictures to split, there are {len(keys)}")
    count = min(max(round(val_fraction * len(keys)), 1), len(keys) - 1)
    held_out = set(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:count])
    return held_out if split == "val" else keys - held_out
