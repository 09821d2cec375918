"""Objects and their parts: PACO-LVIS and PASCAL-Part, whose categories are called "dog" and "dog:head".

    paco_lvis     ROOT/annotations/paco_lvis_v1_train.json      also below paco, paco_lvis or vlpart/paco
                  ROOT/coco/train2017/000000391895.jpg          file_name says train2017/...
    pascal_part   ROOT/train.json                               also below pascal_part or vlpart/pascal_part
                  ROOT/VOCdevkit/VOC2010/JPEGImages/2008_000001.jpg    beside the json

A phrase is the name of a category, "dog" or "head of the dog", and means all of it that is in the picture. (One
annotation at a time, as LISA has it, teaches that the heads of the other dogs are none.)
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.coco_json import fill_samples
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture
from sa2va_hf.data.sources.instances import read_instances

ANNOTATION_FILES = {
    "paco_lvis": tuple(
        f"{folder}annotations/paco_lvis_v1_{{split}}.json" for folder in ("", "paco/", "paco_lvis/", "vlpart/paco/")
    )
    + ("paco_lvis_v1_{split}.json",),
    "pascal_part": ("{split}.json", "pascal_part/{split}.json", "vlpart/pascal_part/{split}.json"),
}
COCO_FOLDERS = ("coco", "coco_2017", "coco2017", "", "images", "../coco", "../coco_2017")
VOC_FOLDER = "VOCdevkit/VOC2010/JPEGImages"


def parts(
    root: Path | str,
    split: str,
    *,
    name: str = "paco_lvis",
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    part: str = "{part} of the {object}",
    whole: str = "{object}",
) -> Iterator[Sample | Reject]:
    """One sample per picture with annotations, with one expression per category in it.

    Every annotation is an object of its own, of the category "dog" or "dog:head". Explanations in the names are
    removed: "mouse_(computer_equipment):scroll_wheel" becomes "scroll wheel of the mouse". Categories that PACO lists
    as not exhaustively annotated in a picture are objects of it that no phrase means. annotations, images: the file
    and the folder, where they are elsewhere. part, whole: the phrase for a part and for an object. Raises ValueError
    when the file is missing or not of this form.
    """
    check_part_phrase(part)
    if not isinstance(whole, str) or "{object}" not in whole:
        raise ValueError(f"option whole must contain {{object}}, got {whole!r}")
    root = Path(root)
    path = annotation_file(root, annotations, [root / one.format(split=split) for one in ANNOTATION_FILES[name]])
    instances = read_instances(path)
    yield from instances.rejects
    instances.categories = {key: one and spoken(one) for key, one in instances.categories.items()}
    usual = (
        [path.parent / VOC_FOLDER, root / VOC_FOLDER] if name == "pascal_part" else [root / f for f in COCO_FOLDERS]
    )
    folders = [Path(images)] if images else usual
    for filled in fill_samples(instances, lambda picture: find_picture(picture["file_name"], folders), name):
        if isinstance(filled, Reject):
            yield filled
            continue
        try:
            unfinished = _unfinished(filled.picture, instances.categories)
        except ValueError as error:
            yield Reject(filled.sample.id, str(error), str(path))
            continue
        for category, targets in filled.of_category.items():
            if category not in unfinished:
                text = part_phrase(category, part, whole)
                filled.sample.expressions.append(Expression(text, targets, "part" if ":" in category else "category"))
        if filled.sample.expressions:
            yield filled.sample


def _unfinished(picture: dict, categories: dict[int, str | None]) -> set[str | None]:
    """Categories of which not all objects in the picture are annotated. The list may name others, of LVIS."""
    given = {"not_exhaustive_category_ids": picture.get("not_exhaustive_category_ids", [])}
    expect_keys(given, {"not_exhaustive_category_ids": list}, f"image {picture['id']}")
    return {categories.get(one) for one in given["not_exhaustive_category_ids"] if isinstance(one, int)}


def spoken(name: str) -> str | None:
    """ "mouse_(computer_equipment):scroll_wheel" -> "mouse:scroll wheel"; None when nothing is left of a side."""
    sides = [re.sub(r"_?\(.*?\)", "", side).replace("_", " ").strip() for side in name.split(":")]
    return ":".join(sides) if all(sides) and len(sides) <= 2 else None


def part_phrase(category: str, part: str, whole: str = "{object}") -> str:
    """ "dog:head" -> "head of the dog", "dog" -> "dog", by the templates `part` and `whole`."""
    thing, colon, piece = category.partition(":")
    return (part if colon else whole).replace("{part}", piece).replace("{object}", thing)


def check_part_phrase(part: str) -> None:
    """ValueError when the option has no place for both names."""
    if not isinstance(part, str) or "{part}" not in part or "{object}" not in part:
        raise ValueError(f"option part must contain {{part}} and {{object}}, got {part!r}")
