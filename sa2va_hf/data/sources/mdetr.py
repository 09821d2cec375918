"""Phrases of captions and their boxes in MDETR's form (https://github.com/ashkamath/mdetr): Flickr30k, GQA and others.

    flickr30k        ROOT/final_flickr_separateGT_train.json, ROOT/flickr30k-images/1000092795.jpg
    gqa_grounding    ROOT/final_mixed_train.json (or final_mixed_train_no_coco.json)
                     ROOT/GQA/images/2370799.jpg, ROOT/train2014/COCO_train2014_000000581857.jpg

    {"images": [{"id": 7, "file_name", "width", "height", "caption": "A man drives a motorcycle", ...}, ...],
     "annotations": [{"id", "image_id": 7, "bbox": [x, y, w, h], "tokens_positive": [[15, 25]]}, ...]}

An "image" is a caption: a picture comes once for each of its captions. `tokens_positive` are the places of the phrase
in the caption, from character to character (exclusive); there may be several. Files of the same form with other
pictures, such as finetune_refcoco_train.json, are read with the option `annotations`.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sa2va_hf.boxes import from_numbers
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.coco_json import annotation_name, picture_of
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture
from sa2va_hf.data.sources.instances import read_instances

logger = logging.getLogger(__name__)

_FILES = {
    "flickr30k": ("final_flickr_separateGT_{split}.json", "final_flickr_mergedGT_{split}.json"),
    "gqa_grounding": ("final_mixed_{split}.json", "final_mixed_{split}_no_coco.json", "final_gqa_{split}.json"),
}
ANNOTATION_FILES = {
    name: tuple(
        folder + file for file in files for folder in ("", "annotations/", "mdetr_annotations/", "OpenSource/")
    )
    for name, files in _FILES.items()
}
IMAGE_FOLDERS = (
    "flickr30k-images/{split}",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k/Flickr30K",
    "GQA/images",
    "gqa/images",
    "VG_100K",
    "VG_100K_2",
    "train2014",
    "coco/train2014",
    "coco2014/train2014",
    "../coco2014/train2014",
    "images",
    "",
)


def mdetr(
    root: Path | str,
    split: str,
    *,
    name: str = "flickr30k",
    annotations: Path | str | None = None,
    images: Path | str | None = None,
) -> Iterator[Sample | Reject]:
    """One sample per caption with phrases, with one expression per phrase, which means all of the phrase's boxes.

    (V* takes one of them, so that the others become false negatives, and finds the caption of a box by its place in
    the list and not by its id.) A phrase in several pieces is these with a space between. A phrase that comes twice in
    a caption means what both mean. annotations, images: the file and the folder, where they are elsewhere. Raises
    ValueError when the file is missing or not of this form.
    """
    root = Path(root)
    usual = [root / one.format(split=split) for one in ANNOTATION_FILES[name]]
    path = annotation_file(root, annotations, usual)
    instances = read_instances(path)
    yield from instances.rejects
    if bare := len(instances.pictures) - len(instances.of_image):
        logger.info("%s: %d of %d captions have no boxes and are skipped", path, bare, len(instances.pictures))
    folders = [Path(images)] if images else [root / place.format(split=split) for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    for image_id, of_caption in instances.of_image.items():
        try:
            picture = picture_of(instances.pictures, image_id)
            expect_keys(picture, {"caption": str}, f"image {image_id}")
            file = find_picture(picture["file_name"], folders)
        except ValueError as error:
            yield Reject(f"{name}/{image_id}", str(error), str(path))
            continue
        # with the picture's name: the number alone would be taken for that of a COCO picture by `exclusion`
        size, frames = (picture["width"], picture["height"]), [os.path.abspath(file)]
        sample = Sample(f"{name}/{file.stem}#{image_id}", "referring", *size, frames=frames, source=name)
        yield from _fill(sample, picture["caption"], of_caption, str(path))
        if sample.expressions:
            yield sample


def _fill(sample: Sample, caption: str, annotations: list[dict], file: str) -> Iterator[Reject]:
    """Adds objects and expressions to the sample; yields the annotations that were skipped."""
    index_of: dict[tuple, int] = {}  # box -> object
    targets_of: dict[str, list[int]] = {}
    broken: set[str | None] = set()
    for number, annotation in enumerate(annotations):
        phrase = None
        try:
            phrase = phrase_of(caption, annotation.get("tokens_positive"))
            box = from_numbers(annotation.get("bbox"), "xywh", sample.height, sample.width)
        except ValueError as error:
            broken.add(phrase)  # one of its boxes is missing: it does not mean the others
            yield Reject(f"{sample.id}/{annotation_name(annotation, number)}", str(error), file)
            continue
        if box not in index_of:
            index_of[box] = len(sample.objects)
            sample.objects.append(Object([None], [box]))
        targets = targets_of.setdefault(phrase, [])
        if index_of[box] not in targets:
            targets.append(index_of[box])
    sample.expressions = [
        Expression(phrase, targets, "phrase") for phrase, targets in targets_of.items() if phrase not in broken
    ]


def phrase_of(caption: str, spans: Any) -> str:
    """The words at the spans of a caption, pieces joined by spaces. ValueError when a span is none of the caption."""
    if not isinstance(spans, list) or not spans:
        raise ValueError(f"'tokens_positive' must be a list of [start, end] in the caption, got {spans!r:.80}")
    phrase = " ".join(" ".join(caption[slice(*check_span(span, caption))].split()) for span in spans).strip(" .,")
    if not phrase:
        raise ValueError(f"'tokens_positive' {spans} holds no word of the caption {caption!r:.80}")
    return phrase


def check_span(span: Any, caption: str) -> tuple[int, int]:
    """(start, end) of a span, cut at the caption's end. ValueError when it is none of the caption."""
    pair = isinstance(span, list | tuple) and len(span) == 2
    if not pair or not all(isinstance(place, int) and not isinstance(place, bool) for place in span):
        raise ValueError(f"a span must be [start, end] in characters, got {span!r:.80}")
    start, end = span
    if not 0 <= start < min(end, len(caption)):
        raise ValueError(f"the span {list(span)} is none of the caption of {len(caption)} characters {caption!r:.80}")
    return start, min(end, len(caption))
