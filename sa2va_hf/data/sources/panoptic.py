"""COCO panoptic (https://cocodataset.org/#format-data): every pixel belongs to one thing or one kind of stuff.

    ROOT/annotations/panoptic_train2017.json     {"images": [...], "annotations": [one per picture], "categories"}
    ROOT/annotations/panoptic_train2017/X.png    the id of a pixel's segment is R + 256 G + 65536 B, 0 none
    ROOT/train2017/X.jpg

A phrase is the name of a category: of things "dog" and, for several, "every dog"; of stuff its name up to a hyphen, as
"wall-brick" and "wall-other-merged" are both wall, and together all the wall there is.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.coco_json import IMAGE_FOLDERS, check_phrases, picture_of
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture, read_colours, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions

logger = logging.getLogger(__name__)

ANNOTATION_FILES = ("annotations/panoptic_{split}2017.json", "annotations/panoptic_{split}.json", "{split}.json")


@in_portions
def panoptic(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    maps: Path | str | None = None,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture, with one object per segment and one expression per category.

    A crowd segment (iscrowd 1) belongs to the "every" of its category. Pixels of no segment, and those of a segment
    that is rejected, do not count. annotations, images, maps: the json file, the folder of pictures and that of PNGs,
    where they are elsewhere. one, several: the phrase for one and for several objects. Raises ValueError when the json
    is missing or not of this form.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    path = annotation_file(root, annotations, [root / name.format(split=split) for name in ANNOTATION_FILES])
    content = read_json(path, dict)
    for table in ("images", "annotations", "categories"):
        if not isinstance(content.get(table), list):
            raise ValueError(f"{path} must have a list {table!r}; it has {', '.join(sorted(content))}")
    pictures = _by_id(content["images"], f"{path}: images")
    categories = _by_id(content["categories"], f"{path}: categories")
    map_folders = [Path(maps)] if maps else [path.with_suffix(""), path.parent, root / path.stem]
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    if bare := len(pictures) - len(content["annotations"]):
        logger.info("%s: %d of %d pictures have no annotation and are skipped", path, bare, len(pictures))
    for number, annotation in enumerate(content["annotations"]):
        name = f"annotations[{number}]"
        try:
            expect_keys(annotation, {"image_id": int, "file_name": str, "segments_info": list}, name)
            name = str(annotation["image_id"])
            picture = picture_of(pictures, annotation["image_id"])
            frame = find_picture(picture["file_name"], folders)
            its_map = find_picture(annotation["file_name"], map_folders)
        except ValueError as error:
            yield Reject(name, str(error), str(path))
            continue
        size = (picture["width"], picture["height"])
        sample = Sample(name, "referring", *size, frames=[os.path.abspath(frame)], source="coco_panoptic")
        yield partial(_records, sample, its_map, annotation["segments_info"], categories, (one, several), str(path))


def _records(
    sample: Sample, its_map: Path, segments: list, categories: dict[int, Any], phrases: tuple[str, str], file: str
) -> Iterator[Sample | Reject]:
    try:
        ids = _segment_ids(its_map, sample.width, sample.height)
    except ValueError as error:
        yield Reject(sample.id, str(error), file)
        return
    yield from _fill(sample, ids, segments, categories, phrases, file)
    if sample.expressions:
        yield sample


def _by_id(records: list, name: str) -> dict[int, Any]:
    """Records by id, None where an id occurs twice. ValueError for a record without one."""
    by_id: dict[int, Any] = {}
    for number, record in enumerate(records):
        expect_keys(record, {"id": int}, f"{name}[{number}]")
        by_id[record["id"]] = None if record["id"] in by_id else record
    return by_id


def _segment_ids(path: Path, width: int, height: int) -> np.ndarray:
    """The id of every pixel's segment, int64 (H, W)."""
    red, green, blue = read_colours(path, height, width).astype(np.int64).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


def _fill(
    sample: Sample, ids: np.ndarray, segments: list, categories: dict[int, Any], phrases: tuple[str, str], file: str
) -> Iterator[Reject]:
    """Adds objects and expressions to the sample; yields the segments that cannot be used."""
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    targets: dict[str, list[int]] = {}
    many: set[str] = set()
    broken: set[str | None] = set()  # categories of which a segment is missing: no phrase of theirs would be whole
    given = Counter(one["id"] for one in segments if isinstance(one, dict) and isinstance(one.get("id"), int))
    for number, segment in enumerate(segments):
        name, category = f"{sample.id}/segments_info[{number}]", None
        try:
            expect_keys(segment, {"id": int, "category_id": int, "area": (int, float)}, f"segments_info[{number}]")
            name = f"{sample.id}/segment {segment['id']}"
            category, is_thing = _category(segment, categories)
            if given[segment["id"]] > 1:
                raise ValueError(f"segment id {segment['id']} occurs twice")
            _check_area(segment, areas)
        except ValueError as error:
            broken.add(category)
            reason = f"{error}; so {category!r} is not asked for in this picture" if category else str(error)
            yield Reject(name, reason, file)
            continue
        mask = ids == segment["id"]
        del areas[segment["id"]]
        if is_thing and (segment.get("iscrowd") or category in targets):
            many.add(category)
        targets.setdefault(category, []).append(len(sample.objects))
        sample.objects.append(Object([masks.encode(mask)], [masks.mask_to_box(mask)], category))
    for value in sorted(set(areas) - set(given) - {0}):
        reason = f"{areas[value]} pixels belong to segment {value}, which is not in segments_info"
        yield Reject(f"{sample.id}/segment {value}", reason, file)
    ignored = np.isin(ids, list(areas))
    sample.ignore = [masks.encode(ignored)] if ignored.any() else []
    for category, indices in targets.items():
        if category in broken:
            continue
        text = phrases[category in many].replace("{}", category)
        sample.expressions.append(Expression(text, indices, "category"))


def _category(segment: dict, categories: dict[int, Any]) -> tuple[str, bool]:
    """The name as it is spoken, and whether the category is one of things."""
    category = categories.get(segment["category_id"])
    if category is None:
        raise ValueError(f"its category_id {segment['category_id']} is not, or more than once, among the categories")
    expect_keys(category, {"name": str}, f"category {segment['category_id']}")
    is_thing = bool(category.get("isthing", 1))
    name = category["name"] if is_thing else category["name"].split("-")[0]
    if not name.strip():
        raise ValueError(f"category {segment['category_id']} has the empty name {category['name']!r}")
    return name.replace("_", " "), is_thing


def _check_area(segment: dict, areas: dict[int, int]) -> None:
    found = areas.get(segment["id"], 0) if segment["id"] else 0
    if found == 0:
        raise ValueError(f"no pixel of the PNG has the id {segment['id']} (the wrong PNG?)")
    if found != segment["area"]:
        raise ValueError(f"its area is {segment['area']:g}, but the PNG has {found} pixels of it (the wrong PNG?)")
