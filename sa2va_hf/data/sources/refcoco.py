"""RefCOCO, RefCOCO+, RefCOCOg, refCLEF (https://github.com/lichengunc/refer) and gRefCOCO.

    ROOT/refcoco/refs(unc).p        list of {"ref_id", "ann_id", "image_id", "split", "sentences": [{"raw", ...}]}
    ROOT/refcoco/instances.json     COCO instances of the pictures used
    ROOT/images/train2014/COCO_train2014_000000460986.jpg

    ROOT/grefcoco/grefs(unc).json   the same rows; "ann_id" is a list, [-1] where the phrase matches nothing
    ROOT/refclef/refs(unc).p        pictures in ROOT/images/saiapr_tc-12/02/images/2345.jpg, masks as lists of RLEs

ROOT may also be the dataset's own folder. The pictures may lie in images/train2014, images/mscoco/images/train2014,
train2014 or coco2014/train2014 of either folder, or wherever the option `images` says.
"""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sa2va_hf import masks
from sa2va_hf.data.listing import subfolders
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.coco_json import object_mask, picture_of
from sa2va_hf.data.sources.files import expect_keys, find_picture, first_existing, read_annotation, read_json
from sa2va_hf.data.sources.instances import index_instances

DEFAULT_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc", "grefcoco": "unc"}

IMAGE_FOLDERS = ("images/train2014", "images/mscoco/images/train2014", "train2014", "coco2014/train2014", "images")
CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12", "images")
NO_TARGET = -1


def refcoco(
    root: Path | str,
    split: str,
    *,
    name: str = "refcoco",
    split_by: str | None = None,
    images: Path | str | None = None,
    text: str = "raw",
) -> Iterator[Sample | Reject]:
    """One sample per picture with all its referred objects; every sentence of every ref is an expression.

    The text is `raw` (RefCOCOg keeps its punctuation there), as in the reference, which however keeps one ref per
    annotation and one sentence per ref (third_parts/mmdet/datasets/refcoco.py). Two refs on one annotation share the
    object. split_by: whose splits: "unc" or "google" (refcoco), "umd" or "google" (refcocog). images: folder of the
    pictures. text: the field of a sentence, "raw" or "sent" (cleaned; what evaluations ask).
    In refCLEF, whose splits overlap, "testA" is every ref of testA, testAB and testAC, and "test" is all of them. A
    ref of gRefCOCO means the union of its annotations, crowds left out, or nothing. Raises ValueError when a file is
    missing or unreadable or has no such split.
    """
    split_by = split_by or DEFAULT_SPLIT_BY[name]
    root = Path(root)
    folder = root / name if (root / name).is_dir() else root
    prefix = "grefs" if name == "grefcoco" else "refs"
    advice = f"expected ROOT/{name}/{prefix}({split_by}).p and instances.json"
    candidates = [
        folder / f"{prefix}({split_by}){suffix}" for suffix in ((".p", ".json") if prefix == "grefs" else (".p",))
    ]
    refs_file = first_existing(candidates, f"the refs of {name} ({split_by})", advice)
    instances_file = first_existing([folder / "instances.json"], f"the instances of {name}", advice)
    places = CLEF_FOLDERS if name == "refclef" else IMAGE_FOLDERS
    folders = [Path(images)] if images else [base / part for base in (root, folder) for part in places]
    folders = [place for place in folders if place.is_dir()] or folders
    if name == "refclef":  # file names come with and without the folder they lie in
        folders += [place for base in folders for below in subfolders(base) if (place := below / "images").is_dir()]

    refs = load_refs(refs_file) if refs_file.suffix == ".p" else read_json(refs_file, list)
    by_image, rejects = _of_split(refs, split, refs_file, name)
    pictures, annotations, categories, more_rejects = index_instances(instances_file)
    yield from rejects + more_rejects
    for image_id, of_image in by_image.items():
        try:
            # the ref's own file_name is no file: it carries a suffix per ref (COCO_train2014_000000460986_9.jpg)
            picture = picture_of(pictures, image_id)
            path = find_picture(picture["file_name"], folders)
        except ValueError as error:
            yield Reject(f"{name}/{image_id}", str(error), str(instances_file))
            continue
        size = (picture["width"], picture["height"])
        sample = Sample(f"{name}/{image_id}", "referring", *size, frames=[os.path.abspath(path)], source=name)
        yield from _fill(sample, of_image, annotations, categories, str(refs_file), text)
        if sample.expressions:
            yield sample


def _fill(
    sample: Sample, refs: list[dict], annotations: dict, categories: dict, refs_file: str, field: str
) -> Iterator[Reject]:
    """Adds objects and expressions of one picture's refs to the sample; yields what was skipped."""
    index_of: dict[int, int] = {}  # ann_id -> object
    for ref in refs:
        name = f"{sample.source}/ref {ref['ref_id']}"
        try:
            targets = _targets(ref, annotations)
            things = {ann_id: _object(annotations, ann_id, ref, sample, categories) for ann_id in targets}
            for ann_id, thing in things.items():
                if ann_id not in index_of:
                    index_of[ann_id] = len(sample.objects)
                    sample.objects.append(thing)
        except ValueError as error:
            yield Reject(name, str(error), refs_file)
            continue
        for number, sentence in enumerate(ref["sentences"]):
            text = sentence.get(field) if isinstance(sentence, dict) else None
            if isinstance(text, str) and text.strip(" ."):
                sample.expressions.append(Expression(text.strip(), [index_of[ann_id] for ann_id in targets]))
            else:
                reason = f"{field!r} must be a non-empty text, got {text!r}"
                yield Reject(f"{name} sentence {number}", reason, refs_file)


def _targets(ref: dict, annotations: dict) -> list[int]:
    """The annotations that a ref means; none where it matches nothing. A crowd beside others is skipped."""
    ann_ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    if not ann_ids or not all(isinstance(ann_id, int) and not isinstance(ann_id, bool) for ann_id in ann_ids):
        raise ValueError(f"'ann_id' must be a list of at least one int, got {ann_ids!r:.80}")
    if NO_TARGET in ann_ids:
        if len(ann_ids) > 1:
            raise ValueError(f"'ann_id' says both that nothing matches ({NO_TARGET}) and what does: {ann_ids}")
        return []
    ann_ids = list(dict.fromkeys(ann_ids))
    single = [ann_id for ann_id in ann_ids if not (annotations.get(ann_id) or {}).get("iscrowd")]
    return single or ann_ids


def _object(annotations: dict, ann_id: int, ref: dict, sample: Sample, categories: dict) -> Object:
    annotation = annotations.get(ann_id)
    if annotation is None:
        how = "occurs twice" if ann_id in annotations else "is missing"
        raise ValueError(f"annotation {ann_id} of the ref {how} in instances.json")
    if annotation.get("image_id") != ref["image_id"]:
        wanted = f"not of image {ref['image_id']}, as the ref says"
        raise ValueError(f"annotation {ann_id} is of image {annotation.get('image_id')}, {wanted}")
    category = annotation.get("category_id")
    if not isinstance(category, int | None):
        raise ValueError(f"annotation {ann_id}: 'category_id' must be int, got {category!r:.80}")
    rle = object_mask(annotation, sample.height, sample.width)
    return Object([rle], [masks.rle_to_box(rle)], categories.get(category))


def _of_split(refs: list, split: str, refs_file: Path, name: str) -> tuple[dict[int, list[dict]], list[Reject]]:
    """The well-formed refs of a split, by picture in the order of the file, and the others as rejects."""
    several = name == "grefcoco"
    keys = {"ref_id": int, "ann_id": (int, list) if several else int, "image_id": int, "split": str, "sentences": list}
    by_image: dict[int, list[dict]] = {}
    rejects, seen, splits, chosen = [], set(), set(), False
    for number, ref in enumerate(refs):
        try:
            expect_keys(ref, keys, f"ref number {number}")
            splits.add(ref["split"])
            if ref["split"] != split and not (name == "refclef" and _is_part(split, ref["split"])):
                continue
            chosen = True
            if ref["ref_id"] in seen:
                raise ValueError(f"ref_id {ref['ref_id']} occurs twice")
            seen.add(ref["ref_id"])
            by_image.setdefault(ref["image_id"], []).append(ref)
        except ValueError as error:
            rejects.append(Reject(f"ref number {number}", str(error), str(refs_file)))
    if not chosen:
        raise ValueError(f"{refs_file} has no split {split!r}; it has {', '.join(sorted(splits))}")
    return by_image, rejects


def _is_part(split: str, of_ref: str) -> bool:
    """Whether a ref of "testAB" belongs to the split asked for: "testA", "testB", "testAB" and "test" have it."""
    return split.startswith("test") and of_ref.startswith("test") and set(split[4:]) <= set(of_ref[4:])


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, texts and numbers only. A pickle can call any function by naming it as a global, and these
    files come from the internet; the published ones need no global at all."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it names the global {module}.{name}, which plain data does not need and is not loaded")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError(f"it refers to the persistent object {pid!r:.80}, which plain data does not need")


def load_plain(path: Path) -> Any:
    """What a pickle of containers, texts and numbers holds. ValueError when damaged or more than plain data."""
    data = read_annotation(path)
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:  # Python 2 byte strings: some were typed in Latin-1
            return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as a pickle of plain data: {error}") from error


def load_refs(path: Path) -> list:
    """The list in a refs(...).p file (Python 2, protocol 0). ValueError when damaged or more than plain data."""
    refs = load_plain(path)
    if not isinstance(refs, list):
        raise ValueError(f"{path} must hold a list of refs, got a {type(refs).__name__}")
    return refs
