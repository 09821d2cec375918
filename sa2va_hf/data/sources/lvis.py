"""LVIS (https://www.lvisdataset.org): instances of 1200 categories on COCO pictures, not all of them in every picture.

    ROOT/annotations/lvis_v1_train.json      or lvis_v0.5_train.json; also ROOT/lvis_v1_train.json
    ROOT/train2017/000000391895.jpg          or below ROOT/coco, ROOT/images; v1 names pictures by coco_url only

A picture was searched for some categories only. `neg_category_ids` were not found in it; of those in
`not_exhaustive_category_ids` some instances are annotated and others are not, so that neither "dog" nor "every dog"
would be true: their instances are kept, as objects that no phrase means.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.coco_json import Filled, check_phrases, fill_samples
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture
from sa2va_hf.data.sources.instances import Instances, read_instances

logger = logging.getLogger(__name__)

ANNOTATION_FILES = tuple(
    f"{folder}lvis_{version}_{{split}}.json" for version in ("v1", "v0.5") for folder in ("annotations/", "", "lvis/")
)
IMAGE_FOLDERS = ("", "coco", "coco_2017", "coco2017", "images", "../coco")


def lvis(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    one: str = "{}",
    several: str = "every {}",
    negatives: int = 0,
) -> Iterator[Sample | Reject]:
    """One sample per picture with annotations, with one expression per category that is annotated completely.

    A category's name is written as it is spoken, its explanation stays: "bat (animal)". annotations, images: the file
    and the folder, where they are elsewhere. one, several: the phrase for one and for several objects. negatives: so
    many categories known to be absent are added to every picture, as phrases without a target; which ones depends on
    the ids of picture and category alone. Raises ValueError when the file is missing or not of this form.
    """
    check_phrases(one=one, several=several)
    if negatives < 0:
        raise ValueError(f"option negatives must be 0 or more, got {negatives}")
    root = Path(root)
    usual = [root / name.format(split=split) for name in ANNOTATION_FILES]
    instances = read_instances(annotation_file(root, annotations, usual))
    yield from instances.rejects
    instances.categories = {key: name and name.replace("_", " ") for key, name in instances.categories.items()}
    instances.pictures = {key: picture and _with_file_name(picture) for key, picture in instances.pictures.items()}
    for image_id, picture in instances.pictures.items() if negatives else ():
        if picture and picture.get("neg_category_ids"):
            instances.of_image.setdefault(image_id, [])
    folders = [Path(images)] if images else [root / folder for folder in IMAGE_FOLDERS]
    unsaid = 0
    for filled in fill_samples(instances, lambda picture: _find(picture, folders), "lvis"):
        if isinstance(filled, Reject):
            yield filled
            continue
        try:
            _add_expressions(filled, instances, (one, several), negatives)
        except ValueError as error:
            yield Reject(filled.sample.id, str(error), str(instances.path))
            continue
        unsaid += not filled.sample.expressions
        if filled.sample.expressions:
            yield filled.sample
    if bare := len(instances.pictures) - len(instances.of_image):
        logger.info("%s: %d pictures have no annotations and are skipped", instances.path, bare)
    if unsaid:
        logger.info("%s: %d pictures have no category annotated completely and are skipped", instances.path, unsaid)


def _with_file_name(picture: dict) -> dict:
    """The image record with `file_name`, which v1 has only as part of its coco_url."""
    if "file_name" in picture or not isinstance(picture.get("coco_url"), str):
        return picture
    return picture | {"file_name": _of_url(picture["coco_url"])}


def _of_url(url: str) -> str:
    """ "http://images.cocodataset.org/train2017/000000391895.jpg" -> "train2017/000000391895.jpg"."""
    return "/".join(urlparse(url).path.split("/")[-2:])


def _find(picture: dict, folders: list[Path]) -> Path:
    """The file of a picture. v0.5 calls it as in COCO 2014, but the pictures are those of 2017, as coco_url says."""
    names = [_of_url(picture["coco_url"])] if isinstance(picture.get("coco_url"), str) else []
    names += [picture["file_name"]]
    names += [Path(name).name for name in names]
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return find_picture(names[0], folders)  # says where it was looked for


def _add_expressions(filled: Filled, instances: Instances, phrases: tuple[str, str], negatives: int) -> None:
    """One per complete category, then the absent ones. ValueError when a list of categories cannot be understood."""
    unfinished = _names(filled.picture, "not_exhaustive_category_ids", instances).values()
    absent = _names(filled.picture, "neg_category_ids", instances)
    for category, targets in filled.of_category.items():
        if category not in unfinished:
            phrase = phrases[len(targets) > 1].replace("{}", category)
            filled.sample.expressions.append(Expression(phrase, targets, "category"))
    if both := sorted(set(absent.values()) & set(filled.of_category)):
        raise ValueError(f"neg_category_ids says that there is no {', '.join(both)}, but annotations show it")
    by_hash = sorted(absent, key=lambda key: hashlib.sha256(f"{filled.sample.id}/{key}".encode()).digest())
    for category_id in by_hash[:negatives]:
        filled.sample.expressions.append(Expression(phrases[0].replace("{}", absent[category_id]), [], "category"))


def _names(picture: dict, key: str, instances: Instances) -> dict[int, str]:
    """Name by id of the categories in a list of an image record, which may be missing."""
    expect_keys({key: picture.get(key, [])}, {key: list}, f"image {picture['id']}")
    ids = picture.get(key, [])
    if unknown := [one for one in ids if not isinstance(one, int) or not instances.categories.get(one)]:
        raise ValueError(f"image {picture['id']}: {key} names {unknown[:5]}, which are not among the categories")
    return {one: instances.categories[one] for one in ids}
