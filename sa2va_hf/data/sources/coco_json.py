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
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture, keep_split
from sa2va_hf.data.sources.instances import Instances, read_instances

logger = logging.getLogger(__name__)

ANNOTATION_FILES = (
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "annotations/{split}.json",
    "instances_{split}.json",
    "{split}.json",
    "{split}/_annotations.coco.json",
)
UNSPLIT_FILES = ("annotations/instances.json", "annotations.json", "instances.json", "_annotations.coco.json")

IMAGE_FOLDERS = (
    "images/{split}",
    "{split}",
    "{split}2017",
    "images/{split}2017",
    "images",
    "train2017",
    "val2017",
    "",
)


def coco_json(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject]:
    """One sample per picture that has annotations, with one expression per category in it.

    Crowd annotations (iscrowd 1) are pixels of many things of the category: they belong to the "every" of it. Pictures
    without annotations teach nothing and are left out. annotations, images: the file (taken as the split asked for)
    and the folder, where they are not in one of the usual places. val_fraction: split a file that knows no splits (see
    `keep_split`). one, several: the phrase for one and for several objects. Raises ValueError when the file is missing
    or not of this form.
    """
    root = Path(root)
    check_phrases(one=one, several=several)
    own = [root / name.format(split=split) for name in ANNOTATION_FILES]
    path = annotation_file(root, annotations, own + [root / name for name in UNSPLIT_FILES])
    instances = read_instances(path)
    yield from instances.rejects
    if bare := len(instances.pictures) - len(instances.of_image):
        logger.info("%s: %d of %d pictures have no annotations and are left out", path, bare, len(instances.pictures))
    chosen = {str(image_id) for image_id in instances.of_image}
    if path not in own and (val_fraction or annotations is None):
        chosen = keep_split(chosen, split, val_fraction, f"name it in ROOT/annotations/instances_{split}.json")
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
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


# ---------------------------------------------------------------- what readers of such files share


def check_phrases(**phrases: str) -> None:
    """ValueError when a phrase, named by its option, has no place for the name of the category."""
    for name, phrase in phrases.items():
        if not isinstance(phrase, str) or "{}" not in phrase:
            raise ValueError(f"option {name} must contain {{}} for the name of the category, got {phrase!r}")


class Filled(NamedTuple):
    """A sample with its objects, for the expressions to be added.

    picture: its record. of_category: indices of the objects by name of their category, in order of appearance.
    crowded: names of which an annotation is of a crowd.
    """

    sample: Sample
    picture: dict
    of_category: dict[str, list[int]]
    crowded: set[str]


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
        filled = Filled(Sample(str(image_id), "referring", *size, frames=frames, source=source), picture, {}, set())
        for annotation in annotations:
            try:
                _add_object(filled, annotation, instances.categories, to_object or mask_object)
            except ValueError as error:
                yield Reject(f"{image_id}/annotation {annotation['id']}", str(error), str(instances.path))
        yield filled


def _add_object(filled: Filled, annotation: dict, categories: dict[int, str | None], to_object: Callable) -> None:
    sample = filled.sample
    number = annotation.get("category_id")
    category = categories.get(number) if isinstance(number, int) else None
    if not category:
        raise ValueError(f"its category_id {number!r:.80} has no name among the categories")
    thing = to_object(annotation, sample.height, sample.width)
    thing.category = category
    filled.of_category.setdefault(category, []).append(len(sample.objects))
    if annotation.get("iscrowd"):
        filled.crowded.add(category)
    sample.objects.append(thing)


def mask_object(annotation: dict, height: int, width: int) -> Object:
    """The object of a COCO annotation with a mask. ValueError as `object_mask`."""
    rle = object_mask(annotation, height, width)
    return Object([rle], [masks.rle_to_box(rle)])


def object_mask(annotation: dict, height: int, width: int) -> masks.RLE:
    """The mask of a COCO annotation. ValueError when it has none, an empty one, or garbage."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise ValueError(f"annotation {annotation['id']} has no segmentation (a box alone is not enough)")
    try:
        rle = masks.from_segmentation(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"annotation {annotation['id']}: {error}") from error
    if masks.area(rle) == 0:
        raise ValueError(
            f"annotation {annotation['id']} has a segmentation that covers no pixel: {segmentation!r:.80}"
        )
    return rle


def picture_of(pictures: dict[int, Any], image_id: int) -> dict:
    """The image record: file_name, width, height. ValueError when it is missing, given twice or incomplete."""
    if image_id not in pictures:
        raise ValueError(f"image {image_id} is not among the images")
    if pictures[image_id] is None:
        raise ValueError(f"image id {image_id} occurs twice")
    expect_keys(pictures[image_id], {"file_name": str, "width": int, "height": int}, f"image {image_id}")
    return pictures[image_id]
