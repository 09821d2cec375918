"""Pictures of parts in folders, as generated ones come: ROOT/handle/mug/0001.png shows the handle of a mug.

    ROOT/PART/OBJECT/X.jpg          of any picture format; "_" in the names of the folders is a space
    ROOT/PART/OBJECT/X_mask.png     its mask, beside it: 0 background, one other value the part
    ROOT/PART/OBJECT/X.png          does as well where the picture itself is no PNG
    ROOT/PART/OBJECT/X.json         or polygons, as labelme and ReasonSeg write them, labelled "target" or PART;
                                    regions whose label contains "ignore" do not count

All of it may also lie below a folder per split, ROOT/train/PART/OBJECT. Rectangles and points in X.json are no mask
but a prompt for one: scripts/pseudo_label.py makes masks for pictures that have none.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf import components, masks
from sa2va_hf.boxes import Box
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, expect_keys, keep_split, sized_mask, upright_size
from sa2va_hf.data.sources.parts import check_part_phrase, part_phrase, spoken
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.reason_seg import IGNORED, TARGET, paint_shapes, read_shapes_json

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".gif")
MASK_END = "_mask"
BACKGROUND = "background"  # label of a point that is not on the part
ADVICE = "make masks with scripts/pseudo_label.py --root ROOT, or draw X_mask.png or X.json beside it"


@dataclass(frozen=True)
class PartPicture:
    """A picture and what lies beside it. category: "mug:handle", as it is spoken."""

    id: str
    photo: Path
    category: str
    mask: Path | None = None
    shapes: Path | None = None


@dataclass
class Shapes:
    """What an X.json holds: polygons, as records for `paint_shapes`; or boxes (x0, y0, x1, y1) and points (x, y, is it
    on the part) in pixels, as a prompt."""

    polygons: list[dict] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    points: list[tuple[float, float, bool]] = field(default_factory=list)


@in_portions
def folder_parts(
    root: Path | str,
    split: str,
    *,
    part: str = "{part} of the {object}",
    min_area: int = 1,
    min_area_ratio: float = 0.0,
    keep: str = "all",
    val_fraction: float = 0.0,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture, with the part as its one object and one expression, "handle of the mug".

    A mask without pixels says that the part is not in the picture. Pieces of a mask of fewer than min_area pixels, or
    of less than min_area_ratio of the picture, are removed from it; keep "largest": all but one. A picture without a
    mask, or with nothing left of it, is a reject. part: the phrase. val_fraction: share of the pictures that is split
    "val" where there are no folders per split. Raises ValueError when there are no such pictures.
    """
    check_part_phrase(part)
    check_filter(min_area, min_area_ratio, keep)
    root, whole = _root_of_split(Path(root), split)
    pictures, problems = find_pictures(root)
    chosen = {one.id for one in pictures}
    if whole:
        chosen = keep_split(chosen, split, val_fraction, f"make folders {root / split}/PART/OBJECT")
    yield from problems
    for picture in pictures:
        if picture.id in chosen:
            yield partial(_records, picture, part, min_area, min_area_ratio, keep)


def _records(picture: PartPicture, *options: Any) -> Iterator[Sample | Reject]:
    """options: those of `_sample`."""
    try:
        yield _sample(picture, *options)
    except ValueError as error:
        yield Reject(picture.id, str(error), str(picture.photo))


def check_filter(min_area: int, min_area_ratio: float, keep: str) -> None:
    """ValueError naming the option that is out of its range."""
    if min_area < 1 or not 0 <= min_area_ratio < 1:
        raise ValueError(f"min_area must be 1 or more and min_area_ratio in [0, 1), got {min_area}, {min_area_ratio}")
    if keep not in ("all", "largest"):
        raise ValueError(f"option keep must be 'all' or 'largest', got {keep!r}")


def _root_of_split(root: Path, split: str) -> tuple[Path, bool]:
    """The folder of PART folders, and whether it holds all splits together."""
    below = root / split
    own = below.is_dir() and any(_is_photo(path) and _depth(path, below) == 3 for path in files_below(below))
    return (below, False) if own else (root, True)


# ---------------------------------------------------------------- which files belong together


def find_pictures(root: Path) -> tuple[list[PartPicture], list[Reject]]:
    """The pictures of a folder, sorted, and the files that cannot be placed. ValueError when there are no pictures.

    Hidden files and folders are skipped, and so is what is neither picture nor json.
    """
    files = [
        path
        for path in files_below(root)
        if _is_photo(path) or (path.suffix.lower() == ".json" and _depth(path, root) == 3)
    ]
    of_stem: dict[tuple[Path, str], list[Path]] = {}
    pictures, problems = [], []
    for path in files:
        if _depth(path, root) != 3:
            reason = f"it lies in {path.parent}; expected {root}/PART/OBJECT/{path.name}"
            problems.append(Reject(_name(path, root), reason, str(path)))
        else:
            stem = path.stem.removesuffix(MASK_END) if path.suffix.lower() == ".png" else path.stem
            of_stem.setdefault((path.parent, stem), []).append(path)
    for (folder, stem), group in of_stem.items():
        try:
            pictures.append(_group(folder, stem, group, root))
        except ValueError as error:
            problems.append(Reject(_name(folder / stem, root), str(error), str(group[0])))
    if not pictures and not problems:
        raise ValueError(f"there are no pictures in {root}; expected {root}/PART/OBJECT/X.jpg (or .png, ...)")
    return pictures, problems


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES


def _depth(path: Path, root: Path) -> int:
    return len(path.relative_to(root).parts)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _group(folder: Path, stem: str, group: list[Path], root: Path) -> PartPicture:
    """Photo, mask and json of one stem. ValueError when it cannot be told which is which."""
    shapes = [path for path in group if path.suffix.lower() == ".json"]
    given = [path for path in group if path.stem != stem]  # X_mask.png
    photos = [path for path in group if path.stem == stem and path not in shapes]
    if len(photos) > 1:  # X.jpg and X.png: the PNG is the mask
        given += [path for path in photos if path.suffix.lower() == ".png"]
        photos = [path for path in photos if path.suffix.lower() != ".png"]
    if len(photos) != 1:
        names = ", ".join(path.name for path in photos) or "none"
        raise ValueError(f"expected one picture {stem}.* for {', '.join(path.name for path in group)}, found {names}")
    if len(given) > 1 or len(shapes) > 1:
        names = ", ".join(path.name for path in (given if len(given) > 1 else shapes))
        raise ValueError(f"there are {names}: which one is of {photos[0].name}?")
    category = spoken(f"{folder.name}:{folder.parent.name}")
    if category is None:
        raise ValueError(f"the names of the folders {folder.parent.name} and {folder.name} hold no words")
    return PartPicture(_name(folder / stem, root), photos[0], category, *(given or [None]), *shapes)


# ---------------------------------------------------------------- masks


def read_shapes(path: Path, category: str) -> Shapes:
    """An X.json of labelme or ReasonSeg. ValueError naming the shape that cannot be used."""
    record = read_shapes_json(path)
    expect_keys(record, {"shapes": list}, path.name)
    found = Shapes()
    own = category.split(":")[-1].lower()
    for number, shape in enumerate(record["shapes"]):
        name = f"{path.name}: shape {number}"
        expect_keys(shape, {"label": str, "points": list}, name)
        label, kind = shape["label"].lower().replace("_", " ").strip(), shape.get("shape_type", "polygon")
        if label not in ("target", "flag", own, BACKGROUND) and "ignore" not in label:
            raise ValueError(f"{name}: label must be 'target', {own!r} or contain 'ignore', got {shape['label']!r}")
        if kind == "polygon":
            found.polygons.append(shape | {"label": "target" if label == own else label})
            continue
        wanted = {"rectangle": 2, "point": 1}.get(kind) if isinstance(kind, str) else None
        if wanted is None:
            raise ValueError(f"{name}: shape_type must be polygon, rectangle or point, got {kind!r}")
        corners = _corners(shape["points"], wanted, name)
        if kind == "point":
            found.points.append((*corners[0], label != BACKGROUND))
        else:
            (ax, ay), (bx, by) = corners
            found.boxes.append((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)))
    if not (found.polygons or found.boxes or found.points):
        raise ValueError(f"{path.name} holds no shapes")
    if found.polygons and (found.boxes or found.points):
        raise ValueError(f"{path.name} holds polygons, which are a mask, and rectangles or points, a prompt for one")
    return found


def _corners(points: list, count: int, name: str) -> list[tuple[float, float]]:
    pairs = [point for point in points if isinstance(point, list) and len(point) == 2]
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for pair in pairs for value in pair)
    if len(points) != count or len(pairs) != count or not numbers:
        raise ValueError(f"{name}: 'points' must be {count} of [x, y], got {points!r:.80}")
    return [(float(x), float(y)) for x, y in pairs]


def _labels(picture: PartPicture, height: int, width: int) -> np.ndarray:
    """Labels (height, width): 0, TARGET or IGNORED. ValueError when there is no mask, or more than one."""
    shapes = None if picture.shapes is None else read_shapes(picture.shapes, picture.category)
    if picture.mask is None and shapes is None:
        raise ValueError(f"it has no mask: {ADVICE}")
    if shapes is None or not shapes.polygons:
        if picture.mask is None:
            raise ValueError(f"it has no mask, only a prompt for one in {picture.shapes.name}: {ADVICE}")
        return np.where(sized_mask(picture.mask, height, width), TARGET, 0)
    if picture.mask is not None:
        raise ValueError(
            f"there are {picture.mask.name} and the polygons of {picture.shapes.name}: which is its mask?"
        )
    if all(shape["label"] != "target" for shape in shapes.polygons):
        own = picture.category.split(":")[-1]
        raise ValueError(f"no polygon of {picture.shapes.name} is labelled 'target' or {own!r}")
    return paint_shapes(shapes.polygons, width, height)


def _sample(picture: PartPicture, part: str, min_area: int, min_area_ratio: float, keep: str) -> Sample:
    width, height = upright_size(picture.photo)
    labels = _labels(picture, height, width)
    mask, least = labels == TARGET, max(min_area, math.ceil(min_area_ratio * width * height))
    kept = components.keep_components(mask, least, keep)
    if mask.any() and not kept.any():
        largest = components.masks_to_boxes(mask, keep="largest")[0].area
        raise ValueError(f"no piece of its mask has {least} pixels; the largest has {largest}")
    frames = [os.path.abspath(picture.photo)]
    sample = Sample(picture.id, "referring", width, height, frames=frames, source="folder_parts")
    if kept.any():
        sample.objects = [Object([masks.encode(kept)], [masks.mask_to_box(kept)], picture.category)]
    sample.expressions = [Expression(part_phrase(picture.category, part), [0] if kept.any() else [], "part")]
    sample.ignore = [masks.encode(labels == IGNORED)] if (labels == IGNORED).any() else []
    return sample
