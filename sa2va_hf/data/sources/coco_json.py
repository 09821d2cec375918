"""Own data as COCO instances json (https://cocodataset.org/#format-data), as most annotation tools export it.

    ROOT/annotations/instances_val2017.json     {"images": [...], "annotations": [...], "categories": [...]}
    ROOT/val2017/000000397133.jpg

A phrase is the name of a category: "dog", and where a picture holds several, "every dog" for all of them together.
"""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture, keep_split
from sa2va_hf.data.sources.instances import Instances, Key, is_instances, lookup, read_instances

logger = logging.getLogger(__name__)

ANNOTATION_FILES = (
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "annotations/{split}.json",
    "instances_{split}.json",
    "{split}.json",
    "{split}/_annotations.coco.json",  # Roboflow
    "{split}/labels.json",  # FiftyOne
)
UNSPLIT_FILES = (
    "annotations/instances.json",
    "annotations/instances_default.json",  # CVAT
    "annotations/instances_Default.json",
    "annotations.json",
    "instances.json",
    "_annotations.coco.json",
    "result.json",  # Label Studio
    "labels.json",  # FiftyOne
)
SPLIT_NAMES = {  # what tools call a split
    "train": ("train", "Train", "training"),
    "val": ("val", "valid", "validation", "Val", "Validation"),
    "test": ("test", "Test"),
}

IMAGE_FOLDERS = (
    "images/{split}",
    "{split}",
    "{split}2017",
    "images/{split}2017",
    "{split}/images",
    "images/default",
    "images",
    "JPEGImages",
    "data",
    "{split}/data",
    "train2017",
    "val2017",
    "",
)
CROWDS = ("auto", "group", "single")


def coco_json(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
    crowd: str = "auto",
) -> Iterator[Sample | Reject]:
    """One sample per picture that has annotations, with one expression per category in it.

    A category of which an annotation in a picture is rejected is not asked for in that picture: neither "dog" nor
    "every dog" would be all of it. Pictures without annotations are skipped. Ids of annotations are not needed.

    annotations, images: the file (taken as the split asked for) and the folder, where they are not in one of the usual
    places; a single json of this form in ROOT or ROOT/annotations is found whatever its name. val_fraction: split a
    file that knows no splits, or one that is named by `annotations` (see `keep_split`). one, several: the phrase for
    one and for several objects. crowd: what iscrowd 1 says: "group", many objects of the category, so that it belongs
    to the "every" of it; "single", nothing, as in files of tools that mark every painted mask so; "auto", the latter
    where all annotations of the file have it. Raises ValueError when the file is missing or not of this form.
    """
    root = Path(root)
    check_phrases(one=one, several=several)
    if crowd not in CROWDS:
        raise ValueError(f"option crowd must be one of {', '.join(CROWDS)}, got {crowd!r}")
    names = SPLIT_NAMES.get(split, (split,))
    own = [root / file.format(split=name) for name in names for file in ANNOTATION_FILES]
    path = _annotations(root, annotations, own)
    instances = read_instances(path)
    if crowd == "auto" and instances.crowds and not instances.crowds_only:
        logger.info(
            "%s: %d annotations have iscrowd 1 and are read as groups; if they are single objects, painted with a "
            "brush, give --option crowd=single",
            path,
            instances.crowds,
        )
    instances.crowds_only = instances.crowds_only if crowd == "auto" else crowd == "single"
    yield from instances.rejects
    if bare := len(instances.pictures) - len(instances.of_image):
        logger.info("%s: %d of %d pictures have no annotations: skipped", path, bare, len(instances.pictures))
    chosen = {str(image_id) for image_id in instances.of_image}
    if val_fraction if annotations is not None else path not in own:
        chosen = keep_split(chosen, split, val_fraction, f"name it in ROOT/annotations/instances_{split}.json")
    if annotations is not None and (said := split_of(path, root)):
        names = (*SPLIT_NAMES[said], *names)  # a file of this split, of which a part is held out
    folders = [root / place.format(split=name) for name in names for place in IMAGE_FOLDERS] + [path.parent]
    folders = [Path(images)] if images else folders
    folders = list(dict.fromkeys(folder for folder in folders if folder.is_dir())) or folders
    instances.of_image = {key: value for key, value in instances.of_image.items() if str(key) in chosen}
    for filled in fill_samples(instances, lambda picture: find_picture(picture["file_name"], folders), "coco_json"):
        if isinstance(filled, Reject):
            yield filled
            continue
        for category, targets in filled.of_category.items():
            phrase = several if len(targets) > 1 or category in filled.crowded else one
            filled.sample.expressions.append(Expression(phrase.replace("{}", category), targets, "category"))
        if filled.sample.expressions:
            yield filled.sample


def split_of(path: Path, root: Path) -> str | None:
    """The split that the name of an annotation file, or of its folder below root, says that it is of."""
    words = {path.stem.removeprefix("instances_").removesuffix("2017")}
    words |= set(path.relative_to(root).parts[:-1]) if path.is_relative_to(root) else {path.parent.name}
    return next((split for split, names in SPLIT_NAMES.items() if words.intersection(names)), None)


def _annotations(root: Path, given: Path | str | None, own: list[Path]) -> Path:
    """The annotation file: the one that is given, one with a usual name, or the only json that is of this form."""
    usual = own + [root / name for name in UNSPLIT_FILES]
    if given is None and not any(path.exists() for path in usual):
        files = [path for folder in (root, root / "annotations") for path in entries(folder)]
        found = [path for path in files if path.suffix == ".json" and is_instances(path)]
        usual = found if len(found) == 1 else usual
    return annotation_file(root, given, usual)


# ---------------------------------------------------------------- what readers of such files share


def check_phrases(**phrases: str) -> None:
    """ValueError when a phrase, named by its option, has no place for the name of the category."""
    for name, phrase in phrases.items():
        if not isinstance(phrase, str) or "{}" not in phrase:
            raise ValueError(f"option {name} must contain {{}} for the name of the category, got {phrase!r}")


class Filled(NamedTuple):
    """A sample with its objects, for the expressions to be added.

    picture: its record. of_category: indices of the objects by name of their category, in order of appearance.
    crowded: names of which an annotation is of a crowd. broken: names of which an annotation in the picture could not
    be used, so that no phrase of theirs is whole.
    """

    sample: Sample
    picture: dict
    of_category: dict[str, list[int]]
    crowded: set[str]
    broken: set[str]


def fill_samples(
    instances: Instances,
    find: Callable[[dict], Path],
    source: str,
    to_object: Callable[[dict, int, int], Object] | None = None,
) -> Iterator[Filled | Reject]:
    """A sample with objects per picture of `of_image`. find: the file of an image record, ValueError when missing.

    to_object: an annotation of a picture (height, width) as an object; its mask (`mask_object`) unless it is given.
    """
    for image_id, annotations in instances.of_image.items():
        try:
            picture = picture_of(instances.pictures, image_id)
            frames = [os.path.abspath(find(picture))]
        except ValueError as error:
            yield Reject(str(image_id), str(error), str(instances.path))
            continue
        size = (picture["width"], picture["height"])
        sample = Sample(str(image_id), "referring", *size, frames=frames, source=source)
        filled = Filled(sample, picture, {}, set(), set())
        before: list[dict] = []
        for number, annotation in enumerate(annotations):
            if annotation in before:  # exported twice
                continue
            before.append(annotation)
            name = f"{image_id}/{annotation_name(annotation, number)}"
            category = category_of(instances.categories, annotation.get("category_id"))
            if category is None:
                reason = f"its category_id {annotation.get('category_id')!r:.80} has no name among the categories"
                yield Reject(name, reason, str(instances.path))
                continue
            try:
                item = (to_object or mask_object)(annotation, sample.height, sample.width)
            except ValueError as error:
                filled.broken.add(category)
                reason = f"{error}; so {category!r} is not asked for in this picture"
                yield Reject(name, reason, str(instances.path))
                continue
            _add_object(filled, item, category, bool(annotation.get("iscrowd")) and not instances.crowds_only)
        for category in filled.broken:
            filled.of_category.pop(category, None)
        yield filled


def _add_object(filled: Filled, item: Object, category: str, crowd: bool) -> None:
    item.category = category
    filled.of_category.setdefault(category, []).append(len(filled.sample.objects))
    if crowd:
        filled.crowded.add(category)
    filled.sample.objects.append(item)


def category_of(categories: dict[Key, str | None], value: Any) -> str | None:
    """The name of the category with this id; None when there is none."""
    return categories.get(lookup(categories, value)) or None


def annotation_name(annotation: dict, number: int | None = None) -> str:
    """How messages call an annotation: by its id, or by its index among those of its picture."""
    return (
        f"annotation {annotation.get('id', number)}" if number is not None or "id" in annotation else "the annotation"
    )


def mask_object(annotation: dict, height: int, width: int) -> Object:
    """The object of a COCO annotation with a mask. ValueError as `object_mask`."""
    rle = object_mask(annotation, height, width)
    return Object([rle], [masks.rle_to_box(rle)])


def object_mask(annotation: dict, height: int, width: int) -> masks.RLE:
    """The mask of a COCO annotation. ValueError when it has none, an empty one, or garbage."""
    segmentation, name = annotation.get("segmentation"), annotation_name(annotation)
    if not segmentation:
        raise ValueError(f"{name} has no segmentation (a box alone is not enough)")
    try:
        rle = masks.from_segmentation(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if masks.area(rle) == 0:
        raise ValueError(f"{name} has a segmentation that covers no pixel: {segmentation!r:.80}")
    return rle


def picture_of(pictures: dict[Key, Any], image_id: Key) -> dict:
    """The image record: file_name, width, height. ValueError when it is missing, given twice or incomplete."""
    key = lookup(pictures, image_id)
    if key not in pictures:
        raise ValueError(f"image {image_id} is not among the images")
    if pictures[key] is None:
        raise ValueError(f"image id {image_id} occurs twice")
    record = dict(pictures[key])
    for side in ("width", "height"):
        value = record.get(side)
        if (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and value.isdecimal()):
            record[side] = int(value)  # 64.0 and "64" are 64
    expect_keys(record, {"file_name": str, "width": int, "height": int}, f"image {image_id}")
    return record
