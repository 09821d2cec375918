"""Own data, or a detector's, as boxes in JSON. The form is told by the content:

| the file holds                                                              | a phrase is  | known as           |
|-----------------------------------------------------------------------------|--------------|--------------------|
| {"images", "annotations": [{"bbox", ...}], "categories"}                    | its category | COCO               |
| [{"image": "a.jpg", "boxes": [BOX, ...], "text": [PHRASE, ...]}, ...]       | as it stands |                    |
| [{"image": "a.jpg", "instances": [{"category": "dog", "bbox": BOX}, ...]}]  | its category | LLaVA's caps_boxes |
| {"a.jpg": [{"category": "dog", "bbox": BOX}, ...], ...}                     | its category | V*'s image2bboxes  |
| [{"image_id": 7, "category_id": 3, "bbox": BOX, "score": 0.9}, ...]         | its category | COCO results       |

Lists may be .jsonl files as well, with a record per line. A BOX is four numbers in the form that the option `boxes`
names: xywh, xyxy (pixels), xyxy_normalized or xxyy_normalized (shares of the picture). "category_id" may stand for
"category"; the option `instances` then names a COCO json with the "categories", and for results the "images".
"""

import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sa2va_hf.boxes import check_number_form, from_numbers
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.boxes import box_object
from sa2va_hf.data.sources.coco_json import IMAGE_FOLDERS, Filled, check_phrases, fill_samples, picture_of
from sa2va_hf.data.sources.files import (
    annotation_file,
    expect_keys,
    find_picture,
    keep_split,
    read_json,
    read_records,
    unique_id,
    upright_size,
)
from sa2va_hf.data.sources.instances import Instances, index_instances, read_instances

logger = logging.getLogger(__name__)

ANNOTATION_FILES = (
    "boxes_{split}.json",
    "boxes_{split}.jsonl",
    "annotations/instances_{split}.json",
    "{split}.json",
    "{split}.jsonl",
)
UNSPLIT_FILES = ("boxes.json", "boxes.jsonl", "image2bboxes.json", "annotations.json")


class Names(NamedTuple):
    """What the file of the option `instances` knows: categories by id, pictures by id."""

    categories: dict[int, str | None]
    pictures: dict[int, Any]


class Picture(NamedTuple):
    """The id of a sample, its file, and its boxes: (phrase, whether it is a category, BOX), or what is wrong there."""

    name: str
    file: str
    entries: list[tuple[str, bool, Any] | ValueError]


def box_json(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    boxes: str = "xywh",
    instances: Path | str | None = None,
    min_score: float = 0.5,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject]:
    """One sample per picture with boxes, with one expression per phrase, which means all of its boxes.

    annotations, images: the file (taken as the split asked for) and the folder, where they are elsewhere. boxes,
    instances: see above. min_score: boxes with a lower "score" are skipped. val_fraction: split a file that knows no
    splits (see `keep_split`). one, several: the phrase for one and for several objects of a category. Raises
    ValueError when a file is missing or of none of these forms.
    """
    check_number_form(boxes, "boxes")
    check_phrases(one=one, several=several)
    if not isinstance(min_score, int | float):
        raise ValueError(f"option min_score must be a number, got {min_score!r}")
    root = Path(root)
    own = [root / name.format(split=split) for name in ANNOTATION_FILES]
    path = annotation_file(root, annotations, own + [root / name for name in UNSPLIT_FILES])
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    content = list(read_records(path)) if path.suffix == ".jsonl" else read_json(path, object)
    whole = path in own or (annotations is not None and not val_fraction)

    def chosen(names: Iterable[str]) -> set[str]:
        return set(names) if whole else keep_split(names, split, val_fraction, f"name the file boxes_{split}.json")

    if isinstance(content, dict) and "annotations" in content:
        found = read_instances(path)
        yield from found.rejects
        found.of_image = {key: list(annotations) for key, annotations in found.of_image.items()}
        _drop_low(found.of_image, min_score, path)
        keep = chosen(str(key) for key in found.of_image)
        found.of_image = {key: value for key, value in found.of_image.items() if str(key) in keep}
        yield from _of_coco(found, folders, boxes, (one, several))
        return
    _drop_low(content, min_score, path)
    known = index_instances(annotation_file(root, instances, ())) if instances else ({}, {}, {}, [])
    pictures: list[Picture] = []
    for item in _pictures(content, Names(known[2], known[0]), path):
        if isinstance(item, Reject):
            yield item
        else:
            pictures.append(item)
    keep = chosen(picture.file for picture in pictures)
    for picture in pictures:
        if picture.file in keep:
            yield from _sample(picture, folders, boxes, (one, several), path)


def _drop_low(content: Any, min_score: float, path: Path) -> None:
    """Takes what has a lower score out of all the lists in the content."""

    def drop(part: Any) -> int:
        if isinstance(part, dict):
            return sum(map(drop, part.values()))
        if not isinstance(part, list):
            return 0
        kept = [one for one in part if not (isinstance(one, dict) and _score(one) < min_score)]
        count, part[:] = len(part) - len(kept), kept
        return count + sum(map(drop, kept))

    if count := drop(content):
        logger.info("%s: %d boxes have a score below %g and are skipped", path, count, min_score)


def _score(entry: dict) -> float:
    score = entry.get("score", 1.0)
    return score if isinstance(score, int | float) else 1.0


# ---------------------------------------------------------------- COCO


def _of_coco(instances: Instances, folders: list[Path], form: str, phrases: tuple[str, str]) -> Iterator:
    to_object = partial(box_object, form=form)
    find = partial(_find, folders)
    for filled in fill_samples(instances, find, "box_json", to_object):
        if isinstance(filled, Filled):
            for category, targets in filled.of_category.items():
                phrase = phrases[len(targets) > 1 or category in filled.crowded]
                filled.sample.expressions.append(Expression(phrase.replace("{}", category), targets, "category"))
            if filled.sample.expressions:
                yield filled.sample
        else:
            yield filled


def _find(folders: list[Path], picture: dict) -> Path:
    return find_picture(picture["file_name"], folders)


# ---------------------------------------------------------------- the other forms


def _pictures(content: Any, names: Names, path: Path) -> Iterator[Picture | Reject]:
    """The pictures of a file, each of them once in a file of results, else once per record."""
    if isinstance(content, dict):
        records = [{"image": name, "instances": entries} for name, entries in content.items()]
    elif isinstance(content, list):
        records = content
    else:
        raise ValueError(f"{path} must hold a dict or a list at its top level, got a {type(content).__name__}")
    seen: dict[str, int] = {}
    results: dict[int, list[dict]] = {}
    for number, record in enumerate(records):
        try:
            if isinstance(record, dict) and "image_id" in record and "image" not in record:
                expect_keys(record, {"image_id": int, "category_id": int}, f"record {number}")
                results.setdefault(record["image_id"], []).append(record)
                continue
            expect_keys(record, {"image": str}, f"record {number}")
            entries = _entries(record, names)
            yield Picture(unique_id(record["image"], seen), record["image"], entries)
        except ValueError as error:
            yield Reject(f"record {number}", str(error), str(path))
    if results and not names.pictures:
        raise ValueError(f"{path} holds results by image_id: name a COCO json with their images, instances=FILE")
    for image_id, entries in results.items():
        try:
            file = picture_of(names.pictures, image_id)["file_name"]
        except ValueError as error:
            yield Reject(str(image_id), str(error), str(path))
            continue
        yield Picture(str(image_id), file, [_entry(one, names) for one in entries])


def _entries(record: dict, names: Names) -> list[tuple[str, bool, Any] | ValueError]:
    if "boxes" in record:
        expect_keys(record, {"boxes": list, "text": list}, "the record")
        if len(record["boxes"]) != len(record["text"]):
            counts = f"{len(record['boxes'])} entries and 'text' has {len(record['text'])}"
            raise ValueError(f"'boxes' has {counts}: one of each per object")
        pairs = zip(record["text"], record["boxes"], strict=True)
        return [_checked(text, False, box) for text, box in pairs]
    expect_keys(record, {"instances": list}, "the record")
    return [_entry(one, names) for one in record["instances"]]


def _entry(entry: Any, names: Names) -> tuple[str, bool, Any] | ValueError:
    try:
        expect_keys(entry, {"bbox": list}, "the box")
    except ValueError as error:
        return error
    category, number = entry.get("category"), entry.get("category_id")
    if category is None:
        category = names.categories.get(number) if isinstance(number, int) else None
    if category is None:
        known = f"'category', and its category_id {number!r:.80} is not among those of `instances`"
        return ValueError(f"the box has no {known}")
    return _checked(category, True, entry["bbox"])


def _checked(text: Any, is_category: bool, box: Any) -> tuple[str, bool, Any] | ValueError:
    if not isinstance(text, str) or not text.strip(" ."):
        return ValueError(f"its text must be a phrase, got {text!r:.80}")
    return text.strip(), is_category, box


def _sample(
    picture: Picture, folders: list[Path], form: str, phrases: tuple[str, str], path: Path
) -> Iterator[Sample | Reject]:
    try:
        file = find_picture(picture.file, folders)
        size = upright_size(file)
    except ValueError as error:
        yield Reject(picture.name, str(error), str(path))
        return
    sample = Sample(picture.name, "referring", *size, frames=[os.path.abspath(file)], source="box_json")
    targets_of: dict[tuple[str, bool], list[int]] = {}
    broken: set[tuple[str, bool] | None] = set()  # phrases of which a box is missing: they do not mean the others
    for number, entry in enumerate(picture.entries):
        try:
            if isinstance(entry, ValueError):
                raise entry
            text, is_category, numbers = entry
            box = from_numbers(numbers, form, sample.height, sample.width)
        except ValueError as error:
            known = not isinstance(entry, ValueError)
            broken.add(entry[:2] if known else None)
            reason = f"{error}; so {entry[0]!r} is not asked for in this picture" if known else str(error)
            yield Reject(f"{picture.name}/box {number}", reason, str(path))
            continue
        targets_of.setdefault((text, is_category), []).append(len(sample.objects))
        sample.objects.append(Object([None], [box], text if is_category else None))
    for (text, is_category), targets in targets_of.items():
        if (text, is_category) in broken:
            continue
        phrase = phrases[len(targets) > 1].replace("{}", text) if is_category else text
        sample.expressions.append(Expression(phrase, targets, "category" if is_category else "phrase"))
    if sample.expressions:
        yield sample
