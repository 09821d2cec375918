"""Own data in Sa2VA's fine-tune format (https://github.com/bytedance/Sa2VA, docs/finetune.md) and more.

    ROOT/annotations.json       [{"image": "a.jpg", "mask": [MASK, ...], "text": [PHRASE, ...]}, ...]
    ROOT/images/a.jpg

One MASK and one PHRASE per object. A MASK is a list of polygons [[x0, y0, x1, y1, ...], ...] in pixels, an RLE
{"size": [height, width], "counts": ...} or a list of them, the name of a mask picture ("masks/a_dog.png", or
{"png": "masks/a.png", "id": 3} for one value of it), or null or [] where the phrase matches nothing in the picture.
A PHRASE is a text, or a list of texts that all mean the object.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import (
    annotation_file,
    expect_keys,
    find_picture,
    keep_split,
    read_json,
    sized_ids,
    sized_mask,
    upright_size,
)
from sa2va_hf.listings import listed

ANNOTATION_FILES = ("{split}/annotations.json", "annotations_{split}.json", "{split}.json")
UNSPLIT_FILE = "annotations.json"


def finetune_json(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    val_fraction: float = 0.0,
) -> Iterator[Sample | Reject]:
    """One sample per record, with all its objects.

    Splits come from the file's name (annotations_val.json, val.json or val/annotations.json), else from "split" in the
    records, else all is "train", or val_fraction of the pictures is "val" (see `keep_split`). annotations, images: the
    file (taken as the split asked for) and the folder, where they are elsewhere. Raises ValueError when the file is
    missing or not a JSON list.
    """
    root = Path(root)
    own = [root / name.format(split=split) for name in ANNOTATION_FILES]
    path = annotation_file(root, annotations, [*own, root / UNSPLIT_FILE])
    records = read_json(path, list)
    folders = [Path(images)] if images else [path.parent / "images", root / "images" / split, root / "images", root]
    tagged = any(isinstance(record, dict) and "split" in record for record in records)
    if tagged and not any(isinstance(record, dict) and record.get("split") == split for record in records):
        raise ValueError(f"no record of {path} has the split {split!r}")
    names = {str(record.get("image")) for record in records if isinstance(record, dict)}
    if not tagged and path not in own and (val_fraction or annotations is None):
        names = keep_split(names, split, val_fraction, f"name the file annotations_{split}.json")
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        try:
            keys = {"image": str, "mask": list, "text": list} | ({"split": str} if tagged else {})
            expect_keys(record, keys, f"record {number}")
            name = record["image"]
            if name not in names or (tagged and record["split"] != split):
                continue
            seen[name] = seen.get(name, 0) + 1  # a picture may have several records
            sample_id = str(record.get("id", name if seen[name] == 1 else f"{name}#{seen[name]}"))
            yield _sample(record, sample_id, find_picture(name, folders), [path.parent, root, *folders])
        except ValueError as error:
            name = record.get("image", "") if isinstance(record, dict) else ""
            yield Reject(f"record {number} ({name})" if name else f"record {number}", str(error), str(path))


def _sample(record: dict, sample_id: str, image: Path, folders: list[Path]) -> Sample:
    counts = (len(record["mask"]), len(record["text"]))
    if counts[0] != counts[1]:
        raise ValueError(f"'mask' has {counts[0]} entries and 'text' has {counts[1]}: one of each per object")
    width, height = upright_size(image)
    sample = Sample(sample_id, "referring", width, height, frames=[os.path.abspath(image)], source="finetune_json")
    problems = []
    for number, (mask, text) in enumerate(zip(record["mask"], record["text"], strict=True)):
        try:
            rle = _mask(mask, height, width, folders)
            targets = []
            if rle is not None:
                targets = [len(sample.objects)]
                sample.objects.append(Object([rle], [masks.rle_to_box(rle)]))
            sample.expressions += [Expression(phrase, targets) for phrase in _phrases(text)]
        except ValueError as error:
            problems.append(f"object {number}: {error}")
    if problems:
        raise ValueError(listed(problems, "; "))
    if not sample.expressions:
        raise ValueError("'text' and 'mask' are empty: at least one object is needed")
    return sample


def _phrases(text: Any) -> list[str]:
    phrases = text if isinstance(text, list) else [text]
    for phrase in phrases:
        if not isinstance(phrase, str) or not phrase.strip(" ."):
            raise ValueError(f"its text must be a phrase or a list of phrases, got {text!r}")
    if not phrases:
        raise ValueError("its list of phrases is empty")
    return [phrase.strip() for phrase in phrases]


def _mask(mask: Any, height: int, width: int, folders: list[Path]) -> masks.RLE | None:
    """The mask of one object, None where the phrase matches nothing. A given mask must cover at least one pixel."""
    if mask is None or mask == []:
        return None
    if isinstance(mask, str) or (isinstance(mask, dict) and "png" in mask):
        name, number = (mask, None) if isinstance(mask, str) else (mask["png"], mask.get("id"))
        file = find_picture(name, folders)
        whole = number is None
        rle = masks.encode(sized_mask(file, height, width) if whole else sized_ids(file, height, width) == number)
    else:
        rle = masks.from_segmentation(mask, height, width)
    if masks.area(rle) == 0:
        raise ValueError(f"its mask covers no pixel: {mask!r:.80} (write null where the phrase matches nothing)")
    return rle
