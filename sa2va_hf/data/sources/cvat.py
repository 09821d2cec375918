"""Own data as CVAT exports it (https://docs.cvat.ai): "CVAT for images 1.1" and Datumaro. (Its COCO is `coco_json`.)

    ROOT/annotations.xml, ROOT/images/X.jpg                          CVAT for images: <image><polygon label="dog" .../>
    ROOT/annotations/default.json, ROOT/images/default/X.jpg         Datumaro: {"categories", "items": [...]}

Polygons, ellipses and masks are objects; those of one group_id (Datumaro: group) and label are one object. Boxes,
points and lines are no masks. An attribute "phrase" (see the option) of a shape is a phrase for it.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.coco_json import SPLIT_NAMES, check_phrases
from sa2va_hf.data.sources.files import expect_keys, find_picture, keep_split, read_annotation, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.shapes_of_tools import Drawn, Shape, ellipse, placed, polygon, records, refuse, union
from sa2va_hf.listings import listed

PIECES = ("polygon", "mask", "ellipse", "box", "polyline", "points", "cuboid", "skeleton")


@in_portions
def cvat(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    phrase: str = "phrase",
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture with shapes, with one expression per label and one per phrase.

    annotations, images: the file and the folder, where they are elsewhere. phrase: the attribute that holds phrases.
    val_fraction: share of the pictures that is split "val" where the file knows no splits. one, several: the phrase
    for one and for several objects of a label. Raises ValueError when the file is missing or of another form.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    path, own = _file(root, split, annotations)
    read = list((_of_xml if path.suffix == ".xml" else _of_datumaro)(path, phrase))
    yield from (one for one in read if isinstance(one, Reject))
    pictures = [one for one in read if not isinstance(one, Reject)]
    places = [root / "images" / path.stem, root / "images", root / path.stem, path.parent / "images", root]
    folders = [Path(images)] if images else places
    chosen = {name for name, *_ in pictures}
    if not own:
        chosen = keep_split(chosen, split, val_fraction, "export each subset in a file of its own")
    for name, file_name, size, shapes in pictures:
        if name in chosen and shapes:
            yield partial(_records, name, file_name, size, shapes, folders, (one, several), str(path))


def _file(root: Path, split: str, given: Path | str | None) -> tuple[Path, bool]:
    """The annotation file, and whether it is of this split alone."""
    if given is not None:
        path = next((one for one in (Path(given), root / given) if one.is_file()), None)
        if path is None:
            raise ValueError(f"the annotation file {given} is neither here nor in {root}")
        return path, False
    names = SPLIT_NAMES.get(split, (split,))
    found = [path for folder in (root, root / "annotations") for path in entries(folder) if is_cvat(path)]
    for path in found:
        if path.stem in names:
            return path, True
    if len(found) != 1:
        there = listed(path.name for path in found) or "none"
        raise ValueError(
            f"{root} must hold one annotations.xml of CVAT or annotations/default.json of Datumaro, found {there}; "
            "name it with --option annotations=FILE"
        )
    return found[0], False


def is_cvat(path: Path) -> bool:
    """Whether a file is one of CVAT for images, or of Datumaro."""
    try:
        if path.suffix == ".xml":
            return _root(path).find("image") is not None
        return path.suffix == ".json" and {"categories", "items"} <= set(read_json(path, dict))
    except ValueError:
        return False


def _records(
    name: str, file_name: str, size: Any, shapes: list[dict], folders: list[Path], phrases: tuple[str, str], file: str
) -> Iterator[Sample | Reject]:
    try:
        drawn = Drawn(name, find_picture(file_name, folders), _grouped(shapes), size)
    except ValueError as error:
        yield Reject(name, str(error), file)
        return
    yield from records(drawn, "cvat", phrases, file)


def _grouped(shapes: list[dict]) -> list[Shape]:
    """shapes: dicts of label, group (0: none), phrases and piece (kind, what it holds)."""
    groups: dict[Any, list[dict]] = {}
    for number, shape in enumerate(shapes):
        groups.setdefault((shape["label"], shape["group"]) if shape["group"] else number, []).append(shape)
    found = []
    for number, pieces in enumerate(groups.values()):
        texts = tuple(dict.fromkeys(text for piece in pieces for text in piece["phrases"]))
        mask = union(_mask(*piece["piece"]) for piece in pieces)
        found.append(Shape(pieces[0]["label"].replace("_", " "), f"shape {number}", mask, texts))
    return found


def _mask(kind: str, values: Any) -> Callable[[int, int], masks.RLE]:
    try:
        if kind == "polygon":
            return polygon(values)
        if kind == "ellipse":
            return ellipse(*values)
        if kind == "mask":
            return placed(*values)
        if kind == "rle":
            return lambda height, width: masks.from_segmentation(values, height, width)
    except (TypeError, ValueError) as error:
        return refuse(f"its {kind} cannot be read: {error}")
    return refuse(f"a {kind} is no mask: draw a polygon or a mask")


# ---------------------------------------------------------------- CVAT for images


def _root(path: Path) -> ElementTree.Element:
    data = read_annotation(path)
    if b"<!ENTITY" in data[:10_000]:  # a few of them can expand to gigabytes
        raise ValueError(f"{path} defines XML entities, which CVAT does not")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error


def _of_xml(path: Path, phrase: str) -> Iterator[tuple[str, str, tuple[int, int], list[dict]] | Reject]:
    """(id, file name, (width, height), shapes) of every picture."""
    for number, image in enumerate(_root(path).iter("image")):
        try:
            name, size = image.attrib["name"], (int(image.attrib["width"]), int(image.attrib["height"]))
        except (KeyError, ValueError) as error:
            yield Reject(f"image {number}", f"image {number} must have name, width and height: {error}", str(path))
            continue
        shapes = [_of_element(element, phrase) for element in image if element.tag in PIECES]
        yield Path(name.replace("\\", "/")).with_suffix("").as_posix(), name, size, shapes


def _of_element(element: ElementTree.Element, phrase: str) -> dict[str, Any]:
    texts = [one.text.strip() for one in element.findall("attribute") if one.get("name") == phrase and one.text]
    try:
        piece = (element.tag, _values(element))
    except (KeyError, ValueError) as error:
        piece = (f"{element.tag} without usable numbers ({error})", None)
    return {
        "label": element.get("label", ""),
        "group": element.get("group_id", "0").strip("0"),
        "phrases": [text for text in texts if text],
        "piece": piece,
    }


def _values(element: ElementTree.Element) -> Any:
    """What `_mask` takes for an element of this kind."""
    get = element.attrib
    if element.tag == "polygon":
        return [float(value) for point in get["points"].split(";") for value in point.split(",")]
    if element.tag == "ellipse":
        return tuple(float(get[name]) for name in ("cx", "cy", "rx", "ry"))
    if element.tag == "mask":  # runs along the rows of its own rectangle, background first
        width, height = int(get["width"]), int(get["height"])
        runs = [int(run) for run in get["rle"].split(",")]
        if sum(runs) != width * height or min(runs) < 0:
            raise ValueError(f"its runs fill {sum(runs)} pixels of {width} x {height}")
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return part, int(float(get["left"])), int(float(get["top"]))
    return None


# ---------------------------------------------------------------- Datumaro


def _of_datumaro(path: Path, phrase: str) -> Iterator[tuple[str, str, tuple[int, int] | None, list[dict]] | Reject]:
    """As `_of_xml`."""
    content = read_json(path, dict)
    try:
        labels = [str(one["name"]) for one in content["categories"]["label"]["labels"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must have categories.label.labels with a name each: {error!r}") from error
    if not isinstance(content["items"], list):
        raise ValueError(f"{path} must have a list 'items', got {content['items']!r:.80}")
    for number, item in enumerate(content["items"]):
        try:
            yield _of_item(item, labels, phrase)
        except ValueError as error:
            yield Reject(f"items[{number}]", str(error), str(path))


def _of_item(item: Any, labels: list[str], phrase: str) -> tuple[str, str, tuple[int, int] | None, list[dict]]:
    expect_keys(item, {"id": str, "annotations": list}, "the item")
    media = item.get("image") or item.get("media") or {}
    expect_keys({"path": f"{item['id']}.jpg"} | media if isinstance(media, dict) else None, {"path": str}, "its image")
    size = media.get("size")
    known = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    for one in item["annotations"]:
        expect_keys(one, {"type": str}, "its annotation")
    shapes = [_of_record(one, labels, phrase) for one in item["annotations"] if one["type"] != "label"]
    return item["id"], media.get("path") or f"{item['id']}.jpg", (size[1], size[0]) if known else None, shapes


def _of_record(record: dict, labels: list[str], phrase: str) -> dict[str, Any]:
    attributes = record.get("attributes")
    number, text = record.get("label_id"), attributes.get(phrase) if isinstance(attributes, dict) else None
    known = isinstance(number, int) and 0 <= number < len(labels)
    kind, points = record["type"], record.get("points")
    piece = {"polygon": (kind, points), "mask": ("rle", record.get("rle"))}.get(kind, (kind, None))
    if kind == "ellipse":  # its points are the corners of its rectangle
        piece = (kind, _ellipse_in(points))
    return {
        "label": labels[number] if known else f"label {number}",
        "group": record.get("group") if isinstance(record.get("group"), int | str) else 0,
        "phrases": [text.strip()] if isinstance(text, str) and text.strip() else [],
        "piece": piece if known else (f"shape of the unknown label_id {number!r}", None),
    }


def _ellipse_in(points: Any) -> tuple[float, float, float, float]:
    """Middle and radii of the ellipse in a rectangle; not finite where the points are no rectangle."""
    if not isinstance(points, list) or len(points) != 4 or not all(isinstance(value, int | float) for value in points):
        return (math.nan,) * 4
    x0, y0, x1, y1 = points
    return (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
