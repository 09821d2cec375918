"""Own data in the segmentation form of YOLO (https://docs.ultralytics.com/datasets/segment), as many tools export it.

    ROOT/data.yaml                 names: ["dog", ...] or {0: "dog", ...}; train, val: folders of pictures
    ROOT/images/train/X.jpg        or ROOT/train/images/X.jpg
    ROOT/labels/train/X.txt        or ROOT/train/labels/X.txt: a line per object, CLASS x0 y0 x1 y1 ... as shares

A line of four numbers after the class is a box and no mask. A picture without a file, or with an empty one, shows
nothing of the classes and is skipped.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.coco_json import SPLIT_NAMES, check_phrases
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, annotation_file, keep_split, read_annotation
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.shapes_of_tools import Drawn, Shape, polygon_of_shares, records, refuse

CONFIGS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


@in_portions
def yolo_seg(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture with objects, with one expression per class in it.

    annotations: the yaml, where it is elsewhere or is called otherwise. val_fraction: share of the pictures that is
    split "val" where there are no folders per split. one, several: the phrase for one and for several objects of a
    class. Raises ValueError when the yaml or the folder of the split is missing.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    path = annotation_file(root, annotations, [root / name for name in CONFIGS])
    config = read_config(path)
    folder, own = _folder(root, path, config, split)
    photos = {photo.relative_to(folder).with_suffix("").as_posix(): photo for photo in _photos(folder)}
    chosen = set(photos) if own else keep_split(photos, split, val_fraction, f"make a folder images/{split}")
    for name, photo in photos.items():
        if name in chosen:
            yield partial(_records, name, photo, folder, config["names"], (one, several))


def read_config(path: Path) -> dict[str, Any]:
    """The yaml, with `names` as {number: name}. ValueError when it has no names."""
    try:
        config = yaml.safe_load(read_annotation(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    names = config.get("names") if isinstance(config, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path} must have 'names', a list or dict of class names, got {names!r:.80}")
    try:
        return config | {"names": {int(number): name.replace("_", " ").strip() for number, name in names.items()}}
    except ValueError as error:
        raise ValueError(f"{path}: the keys of 'names' must be numbers, got {names!r:.80}") from error


def _folder(root: Path, path: Path, config: dict, split: str) -> tuple[Path, bool]:
    """The folder of the split's pictures, and whether it is of that split alone.

    What the yaml says of it is tried from its own folder as well, since tools write paths that are true elsewhere.
    """
    names = SPLIT_NAMES.get(split, (split,))
    said = [config[name] for name in names if isinstance(config.get(name), str)]
    base = Path(str(config.get("path") or "."))
    tried = [place / name for name in said for place in (path.parent / base, path.parent, root)]
    tried += [root / name.removeprefix("../") for name in said]
    tried += [place for name in names for place in (root / "images" / name, root / name / "images")]
    for folder in tried:
        if folder.is_dir() and _photos(folder):
            return folder, True
    for folder in (root / "images", root):
        if folder.is_dir() and any(photo.parent == folder for photo in _photos(folder)):
            return folder, False
    looked = ", ".join(map(str, dict.fromkeys(tried)))
    raise ValueError(f"there are no pictures of the split {split!r}; looked in {looked}")


def _photos(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def label_file(photo: Path) -> Path:
    """Where the objects of a picture stand: the last folder "images" of its path is "labels" there."""
    parts = list(photo.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def is_yolo_seg(root: Path) -> bool:
    """Whether a folder has the yaml and a file of labels with polygons."""
    path = next((root / name for name in CONFIGS if (root / name).is_file()), None)
    if path is None:
        return False
    files = [file for file in files_below(root, "*.txt") if "labels" in file.relative_to(root).parts]
    return any(len(line.split()) > 5 for file in files for line in read_annotation(file).splitlines())


def _records(
    name: str, photo: Path, folder: Path, names: dict[int, str], phrases: tuple[str, str]
) -> Iterator[Sample | Reject]:
    path = label_file(photo)
    if not path.is_file():
        return
    try:
        lines = read_annotation(path).decode("utf-8-sig").splitlines()
        shapes = [_shape(line.split(), number, names) for number, line in enumerate(lines, 1) if line.strip()]
    except (ValueError, UnicodeDecodeError) as error:
        yield Reject(name, f"{path.name}: {error}", str(path))
        return
    if shapes:
        yield from records(Drawn(name, photo, shapes), "yolo_seg", phrases, str(path))


def _shape(words: list[str], number: int, names: dict[int, str]) -> Shape:
    try:
        label, values = int(float(words[0])), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise ValueError(f"line {number} must be numbers, got {' '.join(words)!r:.60}") from error
    if label not in names:
        raise ValueError(f"line {number} is of class {label}, which the yaml does not name")
    if len(values) == 4:
        mask = refuse("four numbers are a box and no mask: export polygons (YOLO segmentation)")
    elif len(values) < 6 or len(values) % 2:
        mask = refuse(f"it has {len(values)} numbers: x and y of 3 points or more are needed")
    elif values.min() < -0.1 or values.max() > 1.1:
        mask = refuse("its points must be shares of the picture's sides, from 0 to 1")
    else:
        mask = partial(polygon_of_shares, values)
    return Shape(names[label], f"line {number}", mask)
