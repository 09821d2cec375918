"""Pictures in which every pixel has a class: COCO-Stuff, ADE20K (challenge) and Mapillary Vistas.

    cocostuff   ROOT/cocostuff/train2017/X.png     value k is line "k + 1: ..." of cocostuff_classes.txt, 255 none
                ROOT/coco/train2017/X.jpg          or coco_2017/train2017
    ade20k      ROOT/ade20k/annotations/training/X.png   value k is name k - 1 of ade20k_classes.json, 0 none
                ROOT/ade20k/images/training/X.jpg        objectInfo150.txt of the release does for the names as well
    mapillary   ROOT/mapillary/training/v2.0/labels/X.png   value k is labels[k]["readable"] of config_v2.0.json
                ROOT/mapillary/training/images/X.jpg        or v1.2 with config_v1.2.json

ROOT may also be the dataset's own folder. A phrase is the name of a class, its object all pixels of the class.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import (
    IMAGE_SUFFIXES,
    expect_keys,
    first_existing,
    read_annotation,
    read_json,
    sized_ids,
    upright_size,
)
from sa2va_hf.data.sources.portions import Portion, in_portions

VOID = 255
SPLITS = {
    "ade20k": {"train": "training", "val": "validation"},
    "mapillary": {"train": "training", "val": "validation"},
}
MAPS = {
    "cocostuff": ("cocostuff/{split}2017", "{split}2017"),
    "ade20k": ("ade20k/annotations/{split}", "annotations/{split}"),
    "mapillary": tuple(
        f"{place}{{{split}}}/{{version}}/labels" for place in ("mapillary/", "") for split in ("split", "short")
    ),
}
PHOTOS = {
    "cocostuff": ("coco/{split}2017", "coco_2017/{split}2017", "coco2017/{split}2017", "../coco/{split}2017"),
    "ade20k": ("ade20k/images/{split}", "images/{split}"),
    "mapillary": tuple(f"{place}{{{split}}}/images" for place in ("mapillary/", "") for split in ("split", "short")),
}
CLASSES = {
    "cocostuff": ("cocostuff_classes.txt", "cocostuff/cocostuff_classes.txt"),
    "ade20k": tuple(
        f"{place}{name}" for name in ("ade20k_classes.json", "objectInfo150.txt") for place in ("", "ade20k/")
    ),
    "mapillary": ("mapillary/config_{version}.json", "config_{version}.json"),
}


@in_portions
def semantic_png(
    root: Path | str,
    split: str,
    *,
    name: str = "cocostuff",
    version: str = "v2.0",
    classes: Path | str | None = None,
    images: Path | str | None = None,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per map of classes, with one expression per class in it; pixels without a class do not count.

    Classes of COCO-Stuff with "-" in their name ("window-other") do not count either, as in LISA. version: of
    Mapillary Vistas, "v1.2" or "v2.0". classes, images: the file of names and folder of photos, if they are elsewhere.
    Raises ValueError when the split or the names are missing or unreadable.
    """
    root = Path(root)
    words = {"split": SPLITS.get(name, {}).get(split, split), "short": split, "version": version}
    places = [root / place.format(**words) for place in MAPS[name]]
    folder = first_existing(places, f"the maps of {name}", f"there is no split {split!r}?")
    names = _names(root, name, words, classes)
    photos = {}
    for place in [Path(images)] if images else [root / place.format(**words) for place in PHOTOS[name]]:
        for path in entries(place):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                photos.setdefault(path.stem, path)
    maps = [path for path in entries(folder) if path.suffix.lower() == ".png"]
    if not maps:
        raise ValueError(f"there are no .png files in {folder}")
    for path in maps:
        if path.stem in photos:
            yield partial(_records, path, photos[path.stem], names, name)
        else:
            where = images or ", ".join(str(root / place.format(**words)) for place in PHOTOS[name])
            yield Reject(path.stem, f"there is no photo {path.stem}.jpg; looked in {where}", str(path))


def _records(path: Path, photo: Path, names: dict[int, str | None], source: str) -> Iterator[Sample | Reject]:
    try:
        yield _sample(path, photo, names, source)
    except ValueError as error:
        yield Reject(path.stem, str(error), str(path))


def _sample(path: Path, photo: Path, names: dict[int, str | None], source: str) -> Sample:
    width, height = upright_size(photo)
    ids = sized_ids(path, height, width)
    sample = Sample(path.stem, "referring", width, height, frames=[os.path.abspath(photo)], source=source)
    ignored = np.zeros((height, width), dtype=bool)
    of_name: dict[str, np.ndarray] = {}
    for value in np.unique(ids).tolist():
        if value not in names:
            raise ValueError(
                f"value {value} is no class: there are {len(names) - 1} (wrong version or list of names?)"
            )
        if (category := names[value]) is None:
            ignored |= ids == value
        else:
            of_name[category] = of_name.get(category, False) | (ids == value)
    for category, mask in of_name.items():
        sample.expressions.append(Expression(category, [len(sample.objects)], "category"))
        rle = masks.encode(mask)
        sample.objects.append(Object([rle], [masks.rle_to_box(rle)], category))
    if not sample.expressions:
        raise ValueError("none of its pixels has a class")
    sample.ignore = [masks.encode(ignored)] if ignored.any() else []
    return sample


def _names(root: Path, name: str, words: dict[str, str], given: Path | str | None) -> dict[int, str | None]:
    """Name by value of a pixel, None for values that do not count."""
    candidates = [root / place.format(**words) for place in CLASSES[name]] if given is None else [Path(given)]
    path = first_existing(candidates, f"the names of the classes of {name}", "Name it with --option classes=FILE")
    if name == "mapillary":
        config = read_json(path, dict)
        expect_keys(config, {"labels": list}, str(path))
        for number, label in enumerate(config["labels"]):
            expect_keys(label, {"readable": str}, f"{path}: labels[{number}]")
        names = dict(enumerate(label["readable"].lower() for label in config["labels"]))
        return {value: None if text in ("unlabeled", "void") else text for value, text in names.items()} | {VOID: None}
    if path.suffix == ".json":
        texts = read_json(path, list)
    else:
        lines = [line for line in read_annotation(path).decode("utf-8-sig", "replace").splitlines() if line.strip()]
        tables = [re.match(r"\d+: *(.+)", line) or re.match(r"\d+\t.*\t(.+)", line) for line in lines]
        texts = [found[1].strip() for found in tables if found]
        texts = texts[1:] if texts[:1] == ["unlabeled"] else texts
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{path} must hold the names of the classes in order, got {texts!r:.80}")
    first = 1 if name == "ade20k" else 0
    # ADE20K gives synonyms in order of use ("airplane, aeroplane, plane")
    names = {first + number: text.split(",")[0].strip() for number, text in enumerate(texts)}
    if name == "cocostuff":
        names = {value: None if "-" in text else text for value, text in names.items()}
    return names | ({0: None} if first else {}) | {VOID: None}
