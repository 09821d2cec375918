"""Predictions of a benchmark as COCO results, and the truth in COCO's form, for pycocotools and tools that read it.

Every question is an image of its own, since several are asked about a picture: ids count from 1 in the order of the
questions, and the truth's `images` say which question and sample an id is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf.evaluation.items import Answer, Item
from sa2va_hf.masks import RLE, area, empty, rle_to_box, union

CATEGORY = {"id": 1, "name": "object"}


def write_coco(
    results: Path | str, truth: Path | str, items: Sequence[Item], answers: Mapping[str, Answer], merged: bool
) -> None:
    """Write both files. merged: a question means all of its targets as one mask, as referring benchmarks count them.

    Raises:
        ValueError: a clip among the items.
    """
    results, truth = Path(results), Path(truth)
    truth.write_text(json.dumps(coco_truth(items, merged)) + "\n", encoding="utf-8")
    results.write_text(json.dumps(coco_results(items, answers)) + "\n", encoding="utf-8")


def coco_results(items: Sequence[Item], answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
    """An entry per mask that is predicted for an image. Scores are those of `more["scores"]`; without them 1, since a
    benchmark of one mask per question ranks none."""
    found = []
    for image_id, item in enumerate(items, start=1):
        answer = answers[item.key]
        scores = answer.more.get("scores", [1.0] * len(answer.masks))
        for track, score in zip(answer.masks, scores, strict=True):
            entry = {"image_id": image_id, "category_id": CATEGORY["id"], "segmentation": track[0], "score": score}
            found.append(entry | {"bbox": _box(track[0])})
    return found


def coco_truth(items: Sequence[Item], merged: bool) -> dict[str, Any]:
    """{"images", "annotations", "categories"} of the targets. Raises: ValueError for a clip."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(items, start=1):
        sample = item.sample
        if sample.num_frames != 1:
            raise ValueError(f"{item.key}: COCO results are for images, this is a clip of {sample.num_frames} frames")
        size = {"width": sample.width, "height": sample.height}
        images.append({"id": image_id, "file_name": sample.id, "question": item.question, "key": item.key} | size)
        blank = empty(sample.height, sample.width)
        rles = [sample.objects[target].masks[0] or blank for target in item.targets]
        for rle in [union(rles, sample.height, sample.width)] if merged and rles else rles:
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORY["id"], "iscrowd": 0}
            annotations.append(entry | {"segmentation": rle, "area": area(rle), "bbox": _box(rle)})
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def _box(rle: RLE) -> list[float]:
    """x, y, width, height; zeros for a mask without a pixel."""
    x0, y0, x1, y1 = rle_to_box(rle) or (0, 0, 0, 0)
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
