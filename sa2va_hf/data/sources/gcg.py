"""Grounded captions: a description of the picture in which phrases are followed by their masks (GLaMM's four sets).

    grand_f        ROOT/GranDf_HA_GCG_train.json, pictures of SA-1B
    openpsg_gcg    ROOT/OpenPsgGCG_train.json, COCO 2017; file_name says "train2017/..."
        [{"file_name", "height", "width", "image_id", "caption",
          "groundings": {"horses": {"token_positives": [29, 35], "rle_masks": [RLE, ...]}, ...}}, ...]
    refcocog_gcg   ROOT/RefCOCOg_GCG_train.json, COCO train2014
        [{"581857": {"img_file_name", "caption", "refs": [{"sentence", "segmentation": POLYGONS, "bbox"}, ...]}}, ...]
    flickr_gcg     ROOT/flickr_mergedGT_GCG_train.json, Flickr30k
        {"images": [{"id", "file_name", "width", "height", "caption"}, ...],
         "annotations": [{"id", "image_id", "bbox", "tokens_positive": [[29, 35]], "sam_mask": RLE}, ...]}

The files may lie in ROOT/annotations as well, the pictures below ROOT/images as GLaMM and Sa2VA have them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sa2va_hf import masks
from sa2va_hf.data.prompts.templates import GCG_QUESTIONS, choose
from sa2va_hf.data.schema import Object, Reject, Sample, Turn
from sa2va_hf.data.sources.coco_json import annotation_name, picture_of
from sa2va_hf.data.sources.dialogue import seeded
from sa2va_hf.data.sources.files import (
    annotation_file,
    expect_keys,
    find_picture,
    read_records,
    unique_id,
    upright_size,
)
from sa2va_hf.data.sources.instances import read_instances
from sa2va_hf.data.sources.mdetr import check_span
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

FILES = {
    "grand_f": "GranDf_HA_GCG_{split}.json",
    "openpsg_gcg": "OpenPsgGCG_{split}.json",
    "refcocog_gcg": "RefCOCOg_GCG_{split}.json",
    "flickr_gcg": "flickr_mergedGT_GCG_{split}.json",
}
FILE_FOLDERS = ("", "annotations/", "annotations/{split}/", "GranDf/annotations/{split}/")
_PLACES = {
    "grand_f": ("images/grandf/{split}", "GranDf_HA_images/{split}", "grandf/{split}", "images/{split}"),
    "openpsg_gcg": ("images/coco2017", "images/coco2017/{split}2017", "coco_2017", "coco2017", "coco"),
    "refcocog_gcg": ("images/coco2014/train2014", "coco_2014/train2014", "coco2014/train2014", "train2014"),
    "flickr_gcg": ("images/flickr30k/Flickr30K", "flikcr_30k/train", "flickr_30k/train", "flickr30k-images"),
}
IMAGE_FOLDERS = {name: (*places, "images", "") for name, places in _PLACES.items()}
MIN_WORDS = 3  # of a caption of Flickr30k, as in the reference (sa2va_data_05_gcg.py)


class Grounding(NamedTuple):
    """What a phrase of a caption means: how rejects call it, its place (start, end), its mask."""

    label: str
    span: tuple[int, int]
    segmentation: Any


class Caption(NamedTuple):
    """A record of any of the files, and what of it was skipped."""

    sample_id: str
    file_name: str
    text: str
    groundings: list[Grounding]
    rejects: list[Reject]


def gcg(
    root: Path | str,
    split: str,
    *,
    name: str = "grand_f",
    annotations: Path | str | None = None,
    images: Path | str | None = None,
) -> Iterator[Sample | Reject]:
    """One sample per caption: a request for a grounded description, and the caption with its phrases marked.

    "A man drives" becomes "A <p> man </p> [SEG] drives". Phrases stand in the order of the caption; several masks of
    one place are meant by one [SEG]; of phrases that overlap the earlier one ends where the later begins. The request
    is chosen by the id. annotations, images: the file and the folder, where they are elsewhere. Raises ValueError when
    the file is missing or not of this form.
    """
    root = Path(root)
    usual = [root / (folder + FILES[name]).format(split=split) for folder in FILE_FOLDERS]
    path = annotation_file(root, annotations, usual)
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS[name]]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    for caption in READERS[name](path, name):
        if isinstance(caption, Reject):
            yield caption
            continue
        yield from caption.rejects
        try:
            file = find_picture(caption.file_name, folders)
            size = upright_size(file)
        except ValueError as error:
            yield Reject(caption.sample_id, str(error), str(path))
            continue
        sample = Sample(caption.sample_id, "grounded_caption", *size, frames=[os.path.abspath(file)], source=name)
        yield from _fill(sample, caption, str(path))
        if sample.turns:
            yield sample
        else:
            yield Reject(sample.id, f"no phrase of its caption has a mask: {caption.text!r:.80}", str(path))


# ---------------------------------------------------------------- the files


def _of_spans(path: Path, name: str) -> Iterator[Caption | Reject]:
    """GranD-f and OpenPSG. Their spans are of the caption without the quotation marks that some have around them."""
    seen: dict[str, int] = {}
    for number, record in enumerate(read_records(path)):
        try:
            expect_keys(record, {"file_name": str, "caption": str, "groundings": dict}, f"record {number}")
            text = _unquoted(record["caption"])
        except ValueError as error:
            yield Reject(f"record {number}", str(error), str(path))
            continue
        caption = Caption(
            unique_id(f"{name}/{Path(record['file_name']).stem}", seen), record["file_name"], text, [], []
        )
        for phrase, grounding in record["groundings"].items():
            try:
                if grounding is None:
                    raise ValueError("its grounding is null")
                expect_keys(grounding, {"token_positives": list, "rle_masks": list}, "its grounding")
                span = check_span(grounding["token_positives"], text)
                caption.groundings.append(Grounding(phrase, span, grounding["rle_masks"]))
            except ValueError as error:
                caption.rejects.append(Reject(f"{caption.sample_id}/{phrase}", str(error), str(path)))
        yield caption


def _of_sentences(path: Path, name: str) -> Iterator[Caption | Reject]:
    """RefCOCOg. A ref's place is where the caption has its sentence; both are lower-cased, as in the reference."""
    seen: dict[str, int] = {}
    for number, record in enumerate(read_records(path)):
        try:
            if not isinstance(record, dict) or len(record) != 1:
                raise ValueError(f"record {number} must be a dict with one id, got {record!r:.80}")
            ((key, entry),) = record.items()
            expect_keys(entry, {"img_file_name": str, "caption": str, "refs": list}, f"record {number} ({key})")
            text = _unquoted(entry["caption"]).lower()
        except ValueError as error:
            yield Reject(f"record {number}", str(error), str(path))
            continue
        caption = Caption(unique_id(f"{name}/{key}", seen), entry["img_file_name"], text, [], [])
        for place, ref in enumerate(entry["refs"]):
            try:
                expect_keys(ref, {"sentence": str, "segmentation": (list, dict)}, "the ref")
                sentence = ref["sentence"].strip().lower()
                if not sentence or (start := text.find(sentence)) < 0:
                    raise ValueError(f"its sentence {sentence!r} is not in the caption {text!r:.80}")
                span = (start, start + len(sentence))
                caption.groundings.append(Grounding(f"ref {place}", span, ref["segmentation"]))
            except ValueError as error:
                caption.rejects.append(Reject(f"{caption.sample_id}/ref {place}", str(error), str(path)))
        yield caption


def _of_instances(path: Path, name: str) -> Iterator[Caption | Reject]:
    """Flickr30k. Of a phrase in several pieces the first one is marked, as in the reference."""
    instances = read_instances(path)
    yield from instances.rejects
    for image_id, annotations in instances.of_image.items():
        try:
            picture = picture_of(instances.pictures, image_id)
            expect_keys(picture, {"caption": str}, f"image {image_id}")
            if len(picture["caption"].split()) < MIN_WORDS:
                raise ValueError(f"its caption has fewer than {MIN_WORDS} words: {picture['caption']!r}")
        except ValueError as error:
            yield Reject(f"{name}/{image_id}", str(error), str(path))
            continue
        # with the picture's name: the number alone would be taken for that of a COCO picture by `exclusion`
        sample_id = f"{name}/{Path(picture['file_name']).stem}#{image_id}"
        caption = Caption(sample_id, picture["file_name"], picture["caption"], [], [])
        for number, annotation in enumerate(annotations):
            label = annotation_name(annotation, number)
            try:
                expect_keys(annotation, {"tokens_positive": list, "sam_mask": (dict, list)}, label)
                spans = annotation["tokens_positive"]
                span = check_span(spans[0] if spans else None, caption.text)
                caption.groundings.append(Grounding(label, span, annotation["sam_mask"]))
            except ValueError as error:
                caption.rejects.append(Reject(f"{sample_id}/{label}", str(error), str(path)))
        yield caption


READERS = {
    "grand_f": _of_spans,
    "openpsg_gcg": _of_spans,
    "refcocog_gcg": _of_sentences,
    "flickr_gcg": _of_instances,
}


def _unquoted(caption: str) -> str:
    text = caption.strip('"').strip()
    if not text:
        raise ValueError(f"its caption is empty: {caption!r}")
    return text


# ---------------------------------------------------------------- the answer


def _fill(sample: Sample, caption: Caption, file: str) -> Iterator[Reject]:
    """Adds the turn and its objects to the sample; yields the phrases that were skipped."""
    things: dict[tuple[int, int], list[Object]] = {}
    broken: set[tuple[int, int]] = set()  # phrases of which a mask is missing: they are not marked at all
    labels: dict[tuple[int, int], str] = {}
    for grounding in caption.groundings:
        try:
            rle = masks.from_segmentation(grounding.segmentation, sample.height, sample.width)
            if rle is None or masks.area(rle) == 0:
                raise ValueError("its mask covers no pixel")
        except ValueError as error:
            broken.add(grounding.span)
            yield Reject(f"{sample.id}/{grounding.label}", f"{error}; its phrase is not marked", file)
            continue
        things.setdefault(grounding.span, []).append(Object([rle], [masks.rle_to_box(rle)]))
        labels.setdefault(grounding.span, grounding.label)
    things = {span: meant for span, meant in things.items() if span not in broken}
    pieces, targets, done = [], [], 0
    for (start, given_end), (begin, end) in zip(sorted(things), trimmed(sorted(things), caption.text), strict=True):
        if begin == end:
            within = "it is empty, or begins where a longer one does"
            name = f"{sample.id}/{labels[start, given_end]}"
            yield Reject(name, f"its phrase {caption.text[start:given_end]!r} cannot be marked: {within}", file)
            continue
        pieces += [caption.text[done:begin], f"<p> {caption.text[begin:end]} </p> {SEG_TOKEN}"]
        meant = things[start, given_end]
        targets.append(list(range(len(sample.objects), len(sample.objects) + len(meant))))
        sample.objects += meant
        done = end
    if targets:
        answer = "".join(pieces) + caption.text[done:]
        sample.turns = [Turn(choose(GCG_QUESTIONS, seeded(sample.id)), answer, targets)]


def trimmed(spans: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Sorted spans without what overlaps the next one and without blanks around; (n, n) when nothing is left."""
    found = []
    for number, (start, end) in enumerate(spans):
        end = min(end, spans[number + 1][0]) if number + 1 < len(spans) else end
        words = text[start:end]
        begin = start + len(words) - len(words.lstrip())
        found.append((begin, max(begin, start + len(words.rstrip()))))
    return found
