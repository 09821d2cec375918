"""SA-1B (https://segment-anything.com/dataset): pictures with the masks of everything in them, without names.

ROOT/sa_000000/sa_1.jpg, sa_1.json      or ROOT/img/sa_1.jpg + ROOT/js/sa_1.json, or all in ROOT
    {"image": {"image_id", "width", "height", "file_name"}, "annotations": [{"id", "segmentation": RLE, ...}]}
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sa2va_hf import masks
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Object, Reject, Sample
from sa2va_hf.data.sources.coco_json import object_mask
from sa2va_hf.data.sources.files import expect_keys, find_picture, keep_split, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions


@in_portions
def sa1b(root: Path | str, split: str, *, val_fraction: float = 0.0) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture with an object per annotation, without texts.

    Every json below root that has an "annotations" list is taken. val_fraction: see `keep_split`; SA-1B has no splits.
    Raises ValueError when there are no json files.
    """
    root = Path(root)
    files = {str(path.relative_to(root)): path for path in files_below(root, "*.json")}
    if not files:
        raise ValueError(f"there are no json files below {root}; expected ROOT/sa_000000/sa_1.json beside sa_1.jpg")
    chosen = keep_split(files, split, val_fraction, "SA-1B has none")
    for name, file in files.items():
        if name in chosen:
            yield partial(_records, file, root)


def _records(file: Path, root: Path) -> Iterator[Sample | Reject]:
    try:
        content = read_json(file, dict)
        expect_keys(content, {"image": dict, "annotations": list}, "the file")
        image = content["image"]
        expect_keys(image, {"file_name": str, "width": int, "height": int}, "'image'")
        picture = find_picture(image["file_name"], [file.parent, file.parent.parent / "img", root / "img"])
    except ValueError as error:
        yield Reject(file.stem, str(error), str(file))
        return
    size = (image["width"], image["height"])
    sample = Sample(file.stem, "referring", *size, frames=[os.path.abspath(picture)], source="sa1b")
    for number, annotation in enumerate(content["annotations"]):
        try:
            expect_keys(annotation, {"id": int}, f"annotation number {number}")
            rle = object_mask(annotation, sample.height, sample.width)
            sample.objects.append(Object([rle], [masks.rle_to_box(rle)]))
        except ValueError as error:
            yield Reject(f"{file.stem}/annotation number {number}", str(error), str(file))
    if sample.objects:
        yield sample
