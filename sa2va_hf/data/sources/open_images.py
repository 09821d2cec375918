"""OpenImages masks (https://storage.googleapis.com/openimages/web/download_v7.html).

    ROOT/annotations/train-annotations-object-segmentation.csv    MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,...
    ROOT/annotations/class-descriptions.csv                       "/m/01g317,Person", with or without a line of titles
    ROOT/masks/train/88030f9b748c0e09_m03_fe4ca71c.png            1 bit, of another size than the picture
    ROOT/images/train/88030f9b748c0e09.jpg

The csv files may also lie in ROOT, the masks in the folders they are packed in (ROOT/masks/train-masks-0, ...). The
corners of boxes are shares of the sides, in the order x0, x1, y0, y1. A phrase is the name of a class: "person", and
where masks of several are given, "every person".
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_hf import mask_pictures, masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.coco_json import check_phrases
from sa2va_hf.data.sources.files import (
    IMAGE_SUFFIXES,
    annotation_file,
    find_picture,
    first_existing,
    read_annotation,
    upright_size,
)
from sa2va_hf.data.sources.portions import Portion, in_portions

SPLITS = {"val": "validation"}
COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
CLASS_FILES = (
    "class-descriptions.csv",
    "class-descriptions-boxable.csv",
    "oidv6-class-descriptions.csv",
    "oidv7-class-descriptions.csv",
    "oidv7-class-descriptions-boxable.csv",
)

Row = tuple[str, ...]  # the values of COLUMNS


@in_portions
def open_images(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    classes: Path | str | None = None,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture that has masks, with one expression per class in it.

    Masks are brought to the size of the picture without blending. Not every box of the dataset has a mask: "every
    person" means those that have. annotations, images, classes: the csv of masks, the folder of pictures and the csv
    of names, where they are elsewhere. one, several: the phrase for one and for several objects. Raises ValueError
    when a csv is missing or not of this form.
    """
    check_phrases(one=one, several=several)
    root, split = Path(root), SPLITS.get(split, split)
    name = f"{split}-annotations-object-segmentation.csv"
    path = annotation_file(root, annotations, [root / "annotations" / name, root / name])
    candidates = [root / folder / file for folder in ("annotations", "") for file in CLASS_FILES]
    advice = "Name it with --option classes=FILE"
    names = _read_classes(
        first_existing([Path(classes)] if classes else candidates, "the names of the classes", advice)
    )
    mask_folders = [root / "masks" / split, root / f"{split}-masks", root / "masks"]
    mask_folders += sorted([*root.glob(f"masks/{split}-masks-*"), *root.glob(f"{split}-masks-*")])
    folders = [Path(images)] if images else [root / "images" / split, root / split, root / "images"]
    of_image: dict[str, list[Row]] = {}
    for row in _read_masks(path):
        of_image.setdefault(row[1], []).append(row)
    for image_id, rows in of_image.items():
        try:
            photo = _photo(image_id, folders)
            sample = Sample(image_id, "referring", *upright_size(photo), frames=[os.path.abspath(photo)])
        except ValueError as error:
            yield Reject(image_id, str(error), str(path))
            continue
        sample.source = "open_images"
        own = {row[2]: names[row[2]] for row in rows if row[2] in names}
        yield partial(_records, sample, rows, own, mask_folders, (one, several), str(path))


def _records(
    sample: Sample, rows: list[Row], names: dict[str, str], folders: list[Path], phrases: tuple[str, str], file: str
) -> Iterator[Sample | Reject]:
    broken: set[str | None] = set()  # classes of which a mask is missing: no phrase of theirs would be whole
    for row in rows:
        try:
            sample.objects.append(_object(row, names, folders, sample.width, sample.height))
        except ValueError as error:
            broken.add(names.get(row[2]))
            reason = (
                f"{error}; so {names[row[2]]!r} is not asked for in this picture" if row[2] in names else str(error)
            )
            yield Reject(f"{sample.id}/{Path(row[0]).stem}", reason, file)
    targets: dict[str, list[int]] = {}
    for index, instance in enumerate(sample.objects):
        targets.setdefault(instance.category, []).append(index)
    for category, indices in targets.items():
        if category in broken:
            continue
        text = phrases[len(indices) > 1].replace("{}", category)
        sample.expressions.append(Expression(text, indices, "category"))
    if sample.expressions:
        yield sample


def _read_masks(path: Path) -> Iterator[Row]:
    """COLUMNS of every line. ValueError naming the file, and the line when one is too short."""
    lines = csv.reader(io.StringIO(read_annotation(path).decode("utf-8-sig", "replace")))
    titles = next(lines, [])
    if missing := [column for column in COLUMNS if column not in titles]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its first line is {','.join(titles)!r:.120}")
    places = [titles.index(column) for column in COLUMNS]
    for line in lines:
        if line and len(line) <= max(places):
            raise ValueError(f"{path} line {lines.line_num} has {len(line)} columns, expected {len(titles)}")
        if line:
            yield tuple(line[place] for place in places)


def _read_classes(path: Path) -> dict[str, str]:
    """Name by code, in small letters: "/m/01g317" -> "person"."""
    names = {}
    lines = csv.reader(io.StringIO(read_annotation(path).decode("utf-8-sig", "replace")))
    for line in lines:
        if line == ["LabelName", "DisplayName"] or not line:
            continue
        if len(line) < 2 or not line[0].startswith("/") or not line[1].strip():
            raise ValueError(f"{path} line {lines.line_num} must be CODE,NAME as in '/m/01g317,Person', got {line}")
        names[line[0]] = line[1].strip().lower()
    return names


def _photo(image_id: str, folders: Sequence[Path]) -> Path:
    """The picture of an id, whatever its suffix."""
    for folder in folders:
        for suffix in IMAGE_SUFFIXES:
            if (path := folder / f"{image_id}{suffix}").is_file():
                return path
    return find_picture(f"{image_id}.jpg", folders)  # says where it was looked for


def _object(row: Row, names: dict[str, str], folders: Sequence[Path], width: int, height: int) -> Object:
    file, _, code, *shares = row
    if code not in names:
        raise ValueError(f"its LabelName {code!r} is not among the names of the classes")
    try:
        x0, x1, y0, y1 = map(float, shares)
    except ValueError as error:
        raise ValueError(f"BoxXMin, BoxXMax, BoxYMin, BoxYMax must be numbers, got {', '.join(shares)}") from error
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(f"BoxXMin < BoxXMax and BoxYMin < BoxYMax must lie in 0..1, got {', '.join(shares)}")
    mask = _mask(find_picture(file, folders), width, height)
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    return Object([masks.encode(mask)], [box], names[code])


def _mask(path: Path, width: int, height: int) -> np.ndarray:
    """The mask at the size of its picture. ValueError when it is empty or of another shape."""
    mask = mask_pictures.from_png(path)
    rows, columns = mask.shape
    if abs(columns * height - rows * width) > width + height:  # more than rounding the sides of the mask can explain
        sizes = f"{columns} x {rows} (width x height) and its picture {width} x {height}"
        raise ValueError(f"mask {path} is {sizes}: they differ in shape (is one of them turned?)")
    if mask.shape != (height, width):
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    if not mask.any():
        raise ValueError(f"mask {path} has no pixel")
    return mask
