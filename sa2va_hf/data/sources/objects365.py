"""Objects365, V2 and V1 (https://www.objects365.org): boxes of 365 categories, all of them in every picture.

    ROOT/annotations/zhiyuan_objv2_train.json      V1: objects365_train.json; also directly in ROOT
    ROOT/train/patch50/objects365_v2_02278994.jpg  V1: ROOT/train/obj365_train_000000000010.jpg

Pictures of V2 are called "images/v2/patch50/..." in the json and lie in train/patch50 (V*: images/train/patch50) on
disk. Some categories are synonyms ("Barrel/bucket"): each of them is a phrase. Annotations that are `isfake` (a person
on a poster) count as what they show, as in every reader of this dataset; `iscrowd` ones are many objects of their
category and belong to the "every" of it.
"""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.boxes import box_object
from sa2va_hf.data.sources.coco_json import check_phrases, fill_samples
from sa2va_hf.data.sources.files import annotation_file, find_picture
from sa2va_hf.data.sources.instances import read_instances

logger = logging.getLogger(__name__)

ANNOTATION_FILES = tuple(
    f"{folder}{name}_{{split}}.json"
    for name in ("zhiyuan_objv2", "objects365", "instances")
    for folder in ("annotations/", "")
)
IMAGE_FOLDERS = ("{split}", "images/{split}", "images", "")


def objects365(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject]:
    """One sample per picture with annotations; per category in it one expression for each of its names, in lower case.

    Boxes that reach out of the picture are cut at its edge (many begin at -0.25). annotations, images: the file and
    the folder, where they are elsewhere. one, several: the phrase for one and for several objects. Raises ValueError
    when the file is missing or not of this form.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    path = annotation_file(root, annotations, [root / name.format(split=split) for name in ANNOTATION_FILES])
    instances = read_instances(path)
    yield from instances.rejects
    if bare := len(instances.pictures) - len(instances.of_image):
        logger.info("%s: %d of %d pictures have no annotations and are skipped", path, bare, len(instances.pictures))
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders

    def find(picture: dict) -> Path:
        return _find(picture["file_name"], folders)

    for filled in fill_samples(instances, find, "objects365", box_object):
        if isinstance(filled, Reject):
            yield filled
            continue
        for category, targets in filled.of_category.items():
            phrase = several if len(targets) > 1 or category in filled.crowded else one
            names = dict.fromkeys(name.strip().lower() for name in category.split("/") if name.strip())
            filled.sample.expressions += [
                Expression(phrase.replace("{}", name), targets, "category") for name in names
            ]
        if filled.sample.expressions:
            yield filled.sample


def _find(file_name: str, folders: list[Path]) -> Path:
    """The file of a picture, whose name in the json has folders that it has not on disk."""
    own = PurePosixPath(file_name)
    for name in dict.fromkeys((str(PurePosixPath(*own.parts[-2:])), own.name, file_name)):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return find_picture(str(PurePosixPath(*own.parts[-2:])), folders)  # says where it was looked for
