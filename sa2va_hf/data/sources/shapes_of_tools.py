"""What the readers of annotation tools share: shapes with labels, drawn on a picture, as a sample.

A label that a tool offers in a list is a category: "dog", and where a picture holds several, "every dog" for all of
them together. A phrase that somebody wrote for a shape is asked for as it stands.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
from PIL import Image, ImageDraw

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import find_picture, upright_size


@dataclass
class Shape:
    """One annotated object of a picture.

    label: its category. name: how messages call it. mask: its mask as RLE for (height, width), raising ValueError when
    it has none. phrases: texts that were written for it alone.
    """

    label: str
    name: str
    mask: Callable[[int, int], masks.RLE]
    phrases: tuple[str, ...] = ()


@dataclass
class Drawn:
    """A picture with its shapes. size: what the annotation says of it, (width, height), where it says so."""

    id: str
    photo: Path
    shapes: list[Shape]
    size: tuple[int, int] | None = None


def records(drawn: Drawn, source: str, phrases: tuple[str, str], file: str) -> Iterator[Sample | Reject]:
    """The sample of a picture, and a reject per shape that cannot be used.

    A label of which a shape is rejected is not asked for in this picture, since no phrase of it would be whole.
    phrases: for one and for several objects of a category, with {} for its name.
    """
    try:
        width, height = upright_size(drawn.photo)
        if drawn.size not in (None, (width, height)):
            wanted = f"{drawn.size[0]} x {drawn.size[1]}"
            raise ValueError(f"{drawn.photo} is {width} x {height}, but its annotation is for {wanted}")
    except ValueError as error:
        yield Reject(drawn.id, str(error), file)
        return
    frames = [os.path.abspath(drawn.photo)]
    sample = Sample(drawn.id, "referring", width, height, frames=frames, source=source)
    of_label: dict[str, list[int]] = {}
    of_phrase: dict[str, list[int]] = {}
    broken: set[str] = set()
    for shape in drawn.shapes:
        try:
            rle = shape.mask(height, width)
            if masks.area(rle) == 0:
                raise ValueError("it covers no pixel")
        except ValueError as error:
            broken |= {shape.label, *shape.phrases}
            reason = f"{error}; so {shape.label!r} is not asked for in this picture"
            yield Reject(f"{drawn.id}/{shape.name}", reason, file)
            continue
        for table, texts in ((of_label, [shape.label]), (of_phrase, shape.phrases)):
            for text in texts:
                table.setdefault(text, []).append(len(sample.objects))
        sample.objects.append(Object([rle], [masks.rle_to_box(rle)], shape.label))
    for label, targets in of_label.items():
        text = phrases[len(targets) > 1].replace("{}", label)
        sample.expressions += [Expression(text, targets, "category")] if label not in broken else []
    for phrase, targets in of_phrase.items():
        sample.expressions += [Expression(phrase, targets, "phrase")] if phrase not in broken else []
    if sample.expressions:
        yield sample


def union(pieces: Iterable[Callable[[int, int], masks.RLE]]) -> Callable[[int, int], masks.RLE]:
    """The mask of an object that was annotated in several pieces."""
    pieces = list(pieces)

    def mask(height: int, width: int) -> masks.RLE:
        return masks.union([piece(height, width) for piece in pieces], height, width)

    return pieces[0] if len(pieces) == 1 else mask


def polygon(points: list) -> Callable[[int, int], masks.RLE]:
    """The mask of one polygon, [x, y, x, y, ...] or [[x, y], ...] in pixels."""
    return lambda height, width: masks.from_polygons([points], height, width)


def polygon_of_shares(shares: np.ndarray, height: int, width: int) -> masks.RLE:
    """The mask of one polygon whose points (x, y, ...) are shares of the picture's sides, from 0 to 1."""
    return masks.from_polygons([(shares.reshape(-1, 2) * (width, height)).ravel().tolist()], height, width)


def ellipse(x: float, y: float, across: float, down: float) -> Callable[[int, int], masks.RLE]:
    """The mask of an ellipse by its middle and its two radii in pixels."""

    def mask(height: int, width: int) -> masks.RLE:
        if not all(math.isfinite(value) and abs(value) < 1e6 for value in (x, y, across, down)):
            raise ValueError(f"an ellipse at ({x}, {y}) with the radii {across} and {down} has no pixels")
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).ellipse((x - across, y - down, x + across, y + down), fill=1)
        return masks.encode(np.asarray(canvas))

    return mask


def placed(part: np.ndarray, left: int, top: int) -> Callable[[int, int], masks.RLE]:
    """The mask of a bool array (h, w) whose upper left pixel is at (left, top) of the picture."""

    def mask(height: int, width: int) -> masks.RLE:
        rows, columns = part.shape
        if left < 0 or top < 0 or top + rows > height or left + columns > width:
            place = f"{columns} x {rows} at ({left}, {top})"
            raise ValueError(f"its mask of {place} does not lie in the picture of {width} x {height}")
        whole = np.zeros((height, width), dtype=bool)
        whole[top : top + rows, left : left + columns] = part
        return masks.encode(whole)

    return mask


def refuse(reason: str) -> Callable[[int, int], masks.RLE]:
    """In place of the mask of a shape that has none."""

    def mask(height: int, width: int) -> masks.RLE:
        raise ValueError(reason)

    return mask


def find_uploaded(reference: str, folders: list[Path]) -> Path:
    """The file of a picture that a tool names by a path or an address of its server.

    Of "/data/upload/1/3f2a9c1b-a.jpg" and "/data/local-files/?d=photos/a.jpg" it is the name, with or without the
    eight characters that Label Studio puts before it. Raises ValueError when there is no such file.
    """
    address = urlparse(reference.replace("\\", "/"))
    inner = parse_qs(address.query).get("d", [""])[0]
    path = unquote(inner or address.path)
    name = Path(path).name
    own = name[9:] if name[8:9] == "-" and all(letter in "0123456789abcdef" for letter in name[:8]) else name
    for candidate in dict.fromkeys((path.lstrip("/"), name, own)):
        for folder in folders:
            if candidate and (folder / candidate).is_file():
                return folder / candidate
    return find_picture(own or reference, folders)  # says where it was looked for
