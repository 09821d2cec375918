"""ADE20K as it is annotated, with 3000 classes, instances and parts: the releases of 2017 and of 2020 and later.

    ROOT/images/training/a/abbey/ADE_train_00000970.jpg     2020 and later: ROOT/images/ADE/training/...
    .../ADE_train_00000970_seg.png        R // 10 * 256 + G is the class of a pixel, 0 none; B its instance
    .../ADE_train_00000970_parts_1.png    the same of parts, _parts_2.png of parts of parts, and so on
    .../ADE_train_00000970_atr.txt        2017: "001 # 0 # 1 # sky # sky # "..."": instance, level of part, ..., name
    .../ADE_train_00000970.json           2020 and later, in latin-1: annotation.object[] with name and name_ndx, the
                                          class. (Its folder of amodal masks is not read.)

A phrase is the name of a class, the first of its synonyms, and means all of it that is in the picture: "car", "wheel
of the car". A part belongs to what most of it lies on.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import (
    expect_keys,
    find_picture,
    first_existing,
    read_annotation,
    read_colours,
    upright_size,
)
from sa2va_hf.data.sources.parts import check_part_phrase, part_phrase
from sa2va_hf.data.sources.portions import Portion, in_portions

SPLITS = {"train": "training", "val": "validation"}
FOLDERS = (
    "{split}",
    "images/{split}",
    "images/ADE/{split}",
    "ADE20K_2016_07_26/images/{split}",
    "ADE20K_2021_17_01/images/ADE/{split}",
)


@in_portions
def ade20k_full(
    root: Path | str, split: str, *, part: str = "{part} of the {object}"
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture, with one object per instance of a thing or part and one expression per class in it.

    Pixels of no class do not count. An object's category is "car" or "car:wheel". part: the phrase for a part. Raises
    ValueError when the split is missing.
    """
    check_part_phrase(part)
    root = Path(root)
    places = [root / place.format(split=SPLITS.get(split, split)) for place in FOLDERS]
    folder = first_existing(places, "the pictures of ADE20K", f"There is no split {split!r}?")
    maps = files_below(folder, "*_seg.png")
    if not maps:
        raise ValueError(f"there are no files X_seg.png in or below {folder}")
    for path in maps:
        stem = path.name.removesuffix("_seg.png")
        name = (path.parent.relative_to(folder) / stem).as_posix()
        yield partial(_records, name, path, stem, part)


def _records(name: str, path: Path, stem: str, part: str) -> Iterator[Sample | Reject]:
    try:
        yield _sample(name, path.parent, stem, part)
    except ValueError as error:
        yield Reject(name, str(error), str(path))


def _sample(name: str, folder: Path, stem: str, part: str) -> Sample:
    photo = find_picture(f"{stem}.jpg", [folder])
    width, height = upright_size(photo)
    files = [folder / f"{stem}_seg.png"]
    while (path := folder / f"{stem}_parts_{len(files)}.png").is_file():
        files.append(path)
    maps = [_segments(path, height, width) for path in files]
    names = _names(folder, stem, [np.flatnonzero(np.bincount(one.ravel())).tolist() for one in maps])
    sample = Sample(name, "referring", width, height, frames=[os.path.abspath(photo)], source="ade20k_full")
    below: list[np.ndarray] = []  # per level, for every pixel 1 + its object's index, 0 none
    for segments, of_level in zip(maps, names, strict=True):
        here = np.zeros((height, width), dtype=np.int32)
        for segment, text in of_level.items():
            mask = segments == segment
            carrier = _carrier(mask, below)
            if carrier is not None:
                text = f"{sample.objects[carrier].category.split(':')[-1]}:{text}"
            sample.objects.append(Object([masks.encode(mask)], [masks.mask_to_box(mask)], text))
            here[mask] = len(sample.objects)
        below.append(here)
    if not sample.objects:
        raise ValueError("none of its pixels has a class")
    targets: dict[str, list[int]] = {}
    for index, thing in enumerate(sample.objects):
        targets.setdefault(thing.category, []).append(index)
    for category, indices in targets.items():
        kind = "part" if ":" in category else "category"
        sample.expressions.append(Expression(part_phrase(category, part), indices, kind))
    ignored = below[0] == 0
    sample.ignore = [masks.encode(ignored)] if ignored.any() else []
    return sample


def _segments(path: Path, height: int, width: int) -> np.ndarray:
    """Class and instance of every pixel as one number, 256 * class + instance, int32 (H, W)."""
    red, green, blue = read_colours(path, height, width).astype(np.int32).transpose(2, 0, 1)
    return (red // 10 * 256 + green) * 256 + blue


def _carrier(mask: np.ndarray, below: list[np.ndarray]) -> int | None:
    """Index of the object that most of a part lies on, in the nearest level below that has any; None if none has."""
    for level in reversed(below):
        counts = np.bincount(level[mask])
        if counts[0] * 2 < counts.sum():
            return int(counts[1:].argmax())
    return None


# ---------------------------------------------------------------- what the segments are called


def _names(folder: Path, stem: str, segments: list[list[int]]) -> list[dict[int, str]]:
    """Per level the name of each segment that has a class. ValueError when colours and text do not fit together."""
    of_level = [[segment for segment in one if segment // 256] for one in segments]
    texts, attributes = folder / f"{stem}.json", folder / f"{stem}_atr.txt"
    if texts.is_file():
        names = _read_json(texts)
        missing = sorted({segment // 256 for one in of_level for segment in one} - set(names))
        if missing:
            raise ValueError(
                f"class {missing[0]} of its PNGs is no name_ndx of {texts.name}, which has {sorted(names)}"
            )
        return [{segment: names[segment // 256] for segment in one} for one in of_level]
    if not attributes.is_file():
        raise ValueError(f"there is neither {attributes.name} (2017) nor {texts.name} (2020 and later) in {folder}")
    rows = _read_attributes(attributes)
    return [_fit(one, rows.get(level, {}), level, attributes) for level, one in enumerate(of_level)]


def _read_json(path: Path) -> dict[int, str]:
    """Name by class."""
    try:
        content = json.loads(read_annotation(path).decode("latin-1"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    expect_keys(content, {"annotation": dict}, path.name)
    expect_keys(content["annotation"], {"object": (list, dict)}, f"{path.name}: annotation")
    records = content["annotation"]["object"]
    records = records if isinstance(records, list) else [records]  # a list of one is written without brackets
    for number, record in enumerate(records):
        expect_keys(record, {"name": str, "name_ndx": int}, f"{path.name}: object {number}")
    return {record["name_ndx"]: _spoken(record["name"], path) for record in records}


def _read_attributes(path: Path) -> dict[int, dict[int, str]]:
    """Name by level and number of the instance."""
    rows: dict[int, dict[int, str]] = {}
    for number, line in enumerate(read_annotation(path).decode("latin-1").splitlines(), start=1):
        columns = [column.strip() for column in line.split("#")]
        if not line.strip():
            continue
        if len(columns) < 5 or not columns[0].isdigit() or not columns[1].isdigit():
            wanted = "'INSTANCE # LEVEL # OCCLUDED # CLASS # NAME # \"ATTRIBUTES\"'"
            raise ValueError(f"{path.name} line {number} must be {wanted}, got {line!r:.80}")
        rows.setdefault(int(columns[1]), {})[int(columns[0])] = _spoken(columns[3], path)
    return rows


def _spoken(name: str, path: Path) -> str:
    """ "person, individual, someone" -> "person"."""
    text = name.split(",")[0].strip()
    if not text:
        raise ValueError(f"{path.name} has the empty name {name!r}")
    return text


def _fit(segments: list[int], rows: dict[int, str], level: int, path: Path) -> dict[int, str]:
    """The name of each segment by the number of its instance: B itself, or its place among the values of B.

    The release's own reader goes by the place. Both are tried, and the one is right by which a class has one name.
    """
    values = sorted({segment % 256 for segment in segments})
    for numbers in ({value: value for value in values}, {value: 1 + place for place, value in enumerate(values)}):
        names = {segment: rows.get(numbers[segment % 256]) for segment in segments}
        pairs = {(segment // 256, name) for segment, name in names.items()}
        if None not in names.values() and len(pairs) == len({label for label, _ in pairs}):
            return names
    what = "_seg.png" if level == 0 else f"_parts_{level}.png"
    raise ValueError(
        f"the instances {values} of {what} do not fit those of level {level} in {path.name}, which are {sorted(rows)}"
    )
