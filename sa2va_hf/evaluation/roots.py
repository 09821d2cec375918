"""Evaluation data that is no training data and so no source: V*Bench, GranD-f's val and test, clips without masks.

Each is a function (root, split) -> iterator of samples, and of rejects with reasons, as the sources are.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from sa2va_hf import masks
from sa2va_hf.boxes import from_numbers
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, Turn
from sa2va_hf.data.sources.clips import clip_size, named_frames, paths
from sa2va_hf.data.sources.files import expect_keys, find_picture, first_existing, read_json, upright_size
from sa2va_hf.data.sources.video_referring import FRAME_FOLDERS, expression_files

VSTAR_KINDS = ("direct_attributes", "relative_position")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GCG_FILES = ("{split}_gcg_coco_mask_gt.json", "{split}_gcg_coco_caption_gt.json")
GCG_FOLDERS = ("", "annotations/val_test", "annotations", "GranDf/annotations/val_test", "GranDf")
GCG_IMAGES = ("GranDf_HA_images/val_test", "images/grandf/val_test", "grandf/val_test", "val_test", "images", "")


def vstar_bench(root: Path | str, split: str = "") -> Iterator[Sample | Reject]:
    """ROOT/direct_attributes/X.jpg and X.json, ROOT/relative_position/...: {"question", "options": the first is right,
    "target_object": [...], "bbox": [[x, y, width, height], ...]}. Options become turns of one question.

    Raises Raises: ValueError when there are no such files.
    """
    files = [path for kind in VSTAR_KINDS for path in sorted((Path(root) / kind).glob("*.json"))]
    if not files:
        raise ValueError(f"{root}: no V*Bench; expected ROOT/{VSTAR_KINDS[0]}/X.json beside X.jpg")
    for path in files:
        name = f"{path.parent.name}/{path.stem}"
        try:
            record = read_json(path, dict)
            expect_keys(record, {"question": str, "options": list}, path.name)
            options = record["options"]
            if len(options) < 2 or not all(isinstance(option, str) and option.strip() for option in options):
                raise ValueError(f"{path.name}: 'options' must be at least two texts, got {options!r:.80}")
            photos = [path.with_name(path.name.split(".")[0] + suffix) for suffix in SUFFIXES]
            photo = next((photo for photo in photos if photo.is_file()), None) or find_picture(
                photos[0].name, [path.parent]
            )
            width, height = upright_size(photo)
            turns = [Turn(record["question"].strip(), option.strip()) for option in options]
            sample = Sample(name, "question", width, height, frames=[os.path.abspath(photo)], source="vstar_bench")
            sample.turns, sample.objects = turns, _vstar_targets(record, height, width)
            yield sample
        except ValueError as error:
            yield Reject(name, str(error), str(path))


def _vstar_targets(record: dict, height: int, width: int) -> list[Object]:
    """What a question is about: "target_object" with its "bbox", where the record has them. ValueError for others."""
    names, numbers = record.get("target_object") or [], record.get("bbox") or []
    if not isinstance(names, list) or not isinstance(numbers, list) or len(names) != len(numbers):
        raise ValueError(
            f"'target_object' and 'bbox' must be lists of one length, got {names!r:.40} and {numbers!r:.40}"
        )
    boxes = [from_numbers(box, "xywh", height, width) for box in numbers]
    return [Object([None], [box], str(name)) for name, box in zip(names, boxes, strict=True)]


def grand_f_eval(root: Path | str, split: str) -> Iterator[Sample | Reject]:
    """GLaMM's evaluation files: SPLIT_gcg_coco_mask_gt.json (a mask per phrase) and SPLIT_gcg_coco_caption_gt.json
    ({"image_id", "caption", "labels"}); pictures GranDf_HA_images/val_test/IMAGE_ID.jpg.

    The objects of a sample are the masks in the order of the file, each called by its label.
    """
    root = Path(root)
    places = [[root / folder / name.format(split=split) for folder in GCG_FOLDERS] for name in GCG_FILES]
    advice = "It comes with GranD-f's annotations/val_test"
    mask_file, caption_file = (first_existing(files, f"GranD-f's {split} annotations", advice) for files in places)
    of_picture: dict[str, list[dict]] = defaultdict(list)
    drawn, captions = read_json(mask_file, dict), read_json(caption_file, dict)
    for annotation in drawn.get("annotations", []):
        of_picture[str(annotation.get("image_id"))].append(annotation)
    folders = [root / folder for folder in GCG_IMAGES if (root / folder).is_dir()]
    for record in captions.get("annotations", []):
        name = (
            f"grand_f/{record['image_id']}" if isinstance(record, dict) and "image_id" in record else str(record)[:40]
        )
        try:
            expect_keys(record, {"image_id": (str, int), "caption": str, "labels": list}, caption_file.name)
            photo = find_picture(f"{record['image_id']}.jpg", folders)
            width, height = upright_size(photo)
            parts = of_picture[str(record["image_id"])]
            if len(parts) != len(record["labels"]):
                raise ValueError(f"expected a label per mask, got {len(parts)} masks, {len(record['labels'])} labels")
            sample = Sample(name, "grounded_caption", width, height, frames=[os.path.abspath(photo)], source="grand_f")
            for part, label in zip(parts, record["labels"], strict=True):
                rle = masks.from_segmentation(part.get("segmentation"), height, width)
                if rle is None:
                    raise ValueError(f"annotation {part.get('id')} has no segmentation")
                sample.objects.append(Object([rle], [masks.rle_to_box(rle)], str(label)))
            sample.turns = [Turn("", record["caption"].strip())]
            yield sample
        except ValueError as error:
            yield Reject(name, str(error), str(caption_file))


def unmasked_clips(root: Path | str, split: str, *, version: int | str = 1) -> Iterator[Sample | Reject]:
    """Expressions of clips whose masks are kept secret (MeViS val, Ref-YouTube-VOS valid): a sample per expression,
    "VIDEO/EXPRESSION". A submission is all that can be made of them. version: of MeViS, see `video_referring`."""
    root = Path(root)
    path = first_existing(
        [root / place.format(split=split) for place in expression_files(version)],
        f"the expressions of {split}",
        "expected one of ROOT/" + ", ROOT/".join(expression_files(version)[:2]).format(split=split),
    )
    folders = [root / place.format(split=split) for place in FRAME_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()]
    for video, record in read_json(path, dict).get("videos", {}).items():
        try:
            expect_keys(record, {"frames": list, "expressions": dict}, f"video {video}")
            files = named_frames(sorted(map(str, record["frames"])), video, folders)
            size = clip_size(files)
            for key, expression in record["expressions"].items():
                expect_keys(expression, {"exp": str}, f"expression {key}")
                expressions = [Expression(expression["exp"], [])]  # asked as it is, spaces and all
                frames = paths(files)
                yield Sample(
                    f"{video}/{key}", "referring", *size, frames=frames, annotated=[], expressions=expressions
                )
        except ValueError as error:
            yield Reject(str(video), str(error), str(path))
