"""Osprey-724K (https://huggingface.co/datasets/AntGroup-MI/Osprey-724K): questions about marked regions of pictures.

    ROOT/osprey_conversation.json            dialogues about all regions of a picture
    ROOT/osprey_detail_description.json      one description per region
    ROOT/osprey_short_form.json, osprey_part_level.json, osprey_lvis_positive_negative.json    answered by a few words
        [{"id", "file_name", "height", "width", "annotation": [{"bbox", "segmentation": POLYGONS or RLE}, ...],
          "conversations": [{"from": "human", "value": "What is <region1>?"}, ...]      or
          "description": [TEXT per region]}, ...]

The files may lie in ROOT/Osprey-724K or osprey-724k, the pictures (COCO 2014 and 2017, Visual Genome, PASCAL) in any
of `IMAGE_FOLDERS`.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf import masks
from sa2va_hf.data.prompts.templates import region_question
from sa2va_hf.data.schema import Object, Reject, Sample, Turn
from sa2va_hf.data.sources.dialogue import MIN_CELLS, read_turns, region_mask, seeded
from sa2va_hf.data.sources.files import annotation_file, expect_keys, find_picture, read_records, unique_id

logger = logging.getLogger(__name__)

FILES = {
    "osprey_conversation": "osprey_conversation.json",
    "osprey_detail": "osprey_detail_description.json",
    "osprey_short": "osprey_short_form.json",
    "osprey_part": "osprey_part_level.json",
    "osprey_positive_neg": "osprey_lvis_positive_negative.json",
}
FILE_FOLDERS = ("", "Osprey-724K", "osprey-724k", "annotations")
_COCO = tuple(
    f"{folder}{part}" for folder in ("", "coco/", "images/") for part in ("train2017", "train2014", "val2017")
)
IMAGE_FOLDERS = (
    *_COCO,
    "images/coco2017/train2017",
    "images/coco2014/train2014",
    "coco2014/train2014",
    "VG_100K",
    "VG_100K_2",
    "vg/VG_100K",
    "vg/VG_100K_2",
    "VOCdevkit/VOC2010/JPEGImages",
    "images",
    "imgs",
    "",
)
SHORTLY = " Answer the question using a single word or phrase."
TASK = {"osprey_conversation": "conversation", "osprey_detail": "region_caption"}  # the others: question


def osprey(
    root: Path | str,
    split: str,
    *,
    name: str = "osprey_conversation",
    annotations: Path | str | None = None,
    images: Path | str | Sequence[Path | str] | None = None,
    min_cells: int = MIN_CELLS,
) -> Iterator[Sample | Reject]:
    """One sample per record, with all its regions as prompts; "<region1>" becomes "region1".

    Descriptions are asked for by questions chosen by the id. Questions of the sets with few words say so. All is the
    split "train". annotations, images: the file, and the folder or folders, where they are elsewhere. min_cells: a
    record with a region that covers fewer cells of the 16 x 16 that the model sees regions in is rejected. Messages
    without a counterpart (see `read_turns`) are skipped. Raises ValueError when the file is missing or no list.
    """
    if split not in ("train", "all"):
        raise ValueError(f"{name} has no split {split!r}: all of it is 'train'")
    if not isinstance(min_cells, int) or min_cells < 1:
        raise ValueError(f"option min_cells must be a whole number from 1 on, got {min_cells!r}")
    root = Path(root)
    path = annotation_file(root, annotations, [root / folder / FILES[name] for folder in FILE_FOLDERS])
    given = [images] if isinstance(images, str | Path) else images
    folders = [Path(one) for one in given] if given else [root / place for place in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    seen: dict[str, int] = {}
    left_out = 0
    for number, record in enumerate(read_records(path)):
        try:
            keys = {"file_name": str, "height": int, "width": int, "annotation": list}
            expect_keys(record, keys, f"record {number}")
            sample_id = unique_id(f"{name}/{Path(record['file_name']).stem}", seen)
            file = _find(record["file_name"], folders)
            size = (record["width"], record["height"])
            sample = Sample(sample_id, TASK.get(name, "question"), *size, frames=[os.path.abspath(file)], source=name)
            _add_regions(sample, record["annotation"], min_cells)
            sample.turns, single = _turns(record, sample, name)
            left_out += single
            yield sample
        except ValueError as error:
            label = record.get("file_name", "") if isinstance(record, dict) else ""
            yield Reject(f"record {number} ({label})" if label else f"record {number}", str(error), str(path))
    if left_out:
        logger.info("%s: %d messages without a question or an answer are skipped", path, left_out)


def _add_regions(sample: Sample, annotations: list, min_cells: int) -> None:
    if not annotations:
        raise ValueError("'annotation' is empty: a region is needed")
    for number, annotation in enumerate(annotations, start=1):
        try:
            expect_keys(annotation, {"segmentation": (list, dict)}, "its annotation")
            rle = region_mask(annotation["segmentation"], sample.height, sample.width, min_cells)
        except ValueError as error:
            raise ValueError(f"region{number}: {error}") from error
        sample.regions.append(len(sample.objects))
        sample.objects.append(Object([rle], [masks.rle_to_box(rle)]))


def _turns(record: dict, sample: Sample, name: str) -> tuple[list[Turn], int]:
    """The turns, and how many messages are in none of them."""
    if name == "osprey_detail":
        texts = record.get("description", record.get("descriptions"))
        return describing_turns([texts] if isinstance(texts, str) else texts, sample), 0
    pairs, left_out = read_turns(record.get("conversations"))
    turns = [Turn(_plain(question), _plain(answer)) for question, answer in pairs]
    if name != "osprey_conversation":
        for turn in turns:
            turn.question = turn.question.removesuffix(SHORTLY) + SHORTLY
    return turns, left_out


def describing_turns(texts: Any, sample: Sample) -> list[Turn]:
    """A turn per region: a question chosen by the sample's id, and its text."""
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"'description' must be a list of texts, got {texts!r:.80}")
    if len(texts) != len(sample.regions):
        raise ValueError(f"'description' has {len(texts)} texts for {len(sample.regions)} regions")
    rng = seeded(sample.id)
    return [Turn(region_question(number, rng), _plain(text)) for number, text in enumerate(texts, start=1)]


def _plain(text: str) -> str:
    return text.replace("<", "").replace(">", "").strip()


def _find(file_name: str, folders: list[Path]) -> Path:
    """The file of a picture. COCO's are called COCO_train2014_000000000009.jpg or 000000000009.jpg, here and there."""
    own = Path(file_name).name
    for name in (file_name, own, own.rsplit("_", 1)[-1], f"COCO_train2014_{own}"):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return find_picture(file_name, folders)  # says where it was looked for
