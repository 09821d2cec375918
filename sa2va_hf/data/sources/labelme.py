"""Own data as labelme writes it (https://github.com/wkentaro/labelme): a json beside, or apart from, every picture.

    ROOT/X.jpg, ROOT/X.json     {"shapes": [{"label", "points": [[x, y], ...], "shape_type", "group_id"}, ...],
                                 "imagePath": "X.jpg", "imageHeight", "imageWidth", ...}

Also below a folder per split, and with the pictures in `images` or `img` beside the folder of the json files.
Polygons, circles and masks are objects; shapes of one label and one group_id are one object. A rectangle is a box and
no mask.
"""

import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sa2va_hf import mask_pictures
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.coco_json import SPLIT_NAMES, check_phrases
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, expect_keys, find_picture, keep_split
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.reason_seg import read_shapes_json
from sa2va_hf.data.sources.shapes_of_tools import Drawn, Shape, ellipse, placed, polygon, records, refuse, union


@in_portions
def labelme(
    root: Path | str,
    split: str,
    *,
    images: Path | str | None = None,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per json with shapes, with one expression per label.

    images: the folder of the pictures, where they are elsewhere. val_fraction: share of the pictures that is split
    "val" where there are no folders per split. one, several: the phrase for one and for several objects of a label.
    Raises ValueError when there are no such files.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    base = next((root / name for name in SPLIT_NAMES.get(split, (split,)) if (root / name).is_dir()), root)
    files = files_below(base, "*.json") if find_labelme(base) else []
    files = [path for path in files if _photo_beside(path, images and Path(images)) or is_labelme(path)]
    if not files:
        raise ValueError(f"there is no labelme json in {base}: expected X.json beside X.jpg, with a list 'shapes'")
    names = {path.relative_to(base).with_suffix("").as_posix(): path for path in files}
    chosen = keep_split(names, split, val_fraction, f"make a folder {root / split}") if base == root else set(names)
    for name, path in names.items():
        if name in chosen:
            yield partial(_records, name, path, images and Path(images), (one, several))


def find_labelme(folder: Path) -> list[Path]:
    """The json files below a folder that labelme wrote, sorted."""
    return [path for path in files_below(folder, "*.json") if is_labelme(path)]


def is_labelme(path: Path) -> bool:
    try:
        content = read_shapes_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _records(name: str, path: Path, images: Path | None, phrases: tuple[str, str]) -> Iterator[Sample | Reject]:
    try:
        content = read_shapes_json(path)
        expect_keys(content, {"shapes": list, "imagePath": str}, path.name)
        drawn = Drawn(name, _photo(path, content["imagePath"], images), _shapes(content["shapes"], path))
    except ValueError as error:
        yield Reject(name, str(error), str(path))
        return
    yield from records(drawn, "labelme", phrases, str(path))


def _photo(path: Path, named: str, images: Path | None) -> Path:
    """The picture of a json: the one that is called as it is, or as imagePath has it."""
    if (photo := _photo_beside(path, images)) is not None:
        return photo
    plain = Path(named.replace("\\", "/"))
    return find_picture(plain.name, [*_folders(path, images), path.parent / plain.parent])


def _photo_beside(path: Path, images: Path | None) -> Path | None:
    """The picture that is called as the json is, whatever its suffix."""
    names = [folder / f"{path.stem}{suffix}" for folder in _folders(path, images) for suffix in IMAGE_SUFFIXES]
    return next((name for name in names if name.is_file()), None)


def _folders(path: Path, images: Path | None) -> list[Path]:
    beside = [path.parent, *(path.parent.parent / name for name in ("images", "img", "JPEGImages"))]
    return [images] if images else beside


def _shapes(shapes: list, path: Path) -> list[Shape]:
    """The objects; shapes of one label and one group_id are pieces of the same."""
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for number, shape in enumerate(shapes):
        expect_keys(shape, {"label": str, "points": list}, f"{path.name}: shape {number}")
        label = shape["label"].strip()
        if not label:
            raise ValueError(f"{path.name}: shape {number} has an empty label")
        group = shape.get("group_id")
        key = number if group is None else (label, str(group))
        groups.setdefault(key, []).append((label, _mask(shape)))
    return [
        Shape(pieces[0][0].replace("_", " "), f"shape {place}", union(mask for _, mask in pieces))
        for place, pieces in enumerate(groups.values())
    ]


def _mask(shape: dict) -> Any:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    try:
        if kind == "polygon":
            return polygon(points)
        if kind == "circle":
            (x, y), (edge_x, edge_y) = points
            radius = ((edge_x - x) ** 2 + (edge_y - y) ** 2) ** 0.5
            return ellipse(x, y, radius, radius)
        if kind == "mask":
            part = mask_pictures.read_mask(base64.b64decode(shape["mask"]))
            return placed(part, round(points[0][0]), round(points[0][1]))
    except (KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        return refuse(f"its {kind} cannot be read: {error}")
    return refuse(f"a {kind} is no mask: draw a polygon, or make masks with scripts/pseudo_label.py")
