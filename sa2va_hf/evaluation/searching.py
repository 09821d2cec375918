"""V*Bench with visual search: the targets are searched first; then the question is asked about the crop that holds
them, with their boxes as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from sa2va_hf.boxes import Box, box_iou, normalized
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation.metrics import mean
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.search import SearchResult, search
from sa2va_hf.search.locator import Sa2VALocator
from sa2va_hf.search.picture import LargePicture

HINT = "Additional visual information to focus on: {}.\n{}"  # V*'s words (vstar_bench_eval.py)
SCALE, LEAST = 1.2, 224  # of the crop: relative to the boxes in it, and its shortest side in pixels
HIT = 0.5  # IoU above which a box counts as the target, as in V*'s search evaluation
IMAGE_TAG = "<image>\n"


def focus(
    predictor: Sa2VAPredictor, picture: Image.Image, question: str, targets: Sequence[str]
) -> tuple[Image.Image, str, list[dict[str, Any]]]:
    """The crop of an image that holds the targets that were found, the question with their boxes, and a record per
    target. Where no target is found, image and question are unchanged."""
    source, locator = LargePicture(picture), Sa2VALocator(predictor)
    results = [search(source, target, locator) for target in targets]
    records = [
        {"target": one.target, "found": one.found, "box": one.box, "crops": one.path_length, "ended": one.ended}
        for one in results
    ]
    found = [one for one in results if one.found]
    if not found:
        return picture, question, records
    part = around([one.box for one in found], *picture.size)
    return picture.crop(part), IMAGE_TAG + HINT.format(_places(found, part), question.removeprefix(IMAGE_TAG)), records


def around(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The crop (x0, y0, x1, y1) that holds the boxes, in whole pixels: SCALE times as large as they are together, at
    least LEAST pixels wide and high, and shifted into the image where it would extend beyond."""
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    left, right = _span(x0, x1, width)
    top, bottom = _span(y0, y1, height)
    return left, top, right, bottom


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    length = min(max(round(SCALE * (high - low)), LEAST), side)
    start = min(max(round((low + high - length) / 2), 0), side - length)
    return start, start + length


def _places(found: Sequence[SearchResult], part: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = part
    texts = []
    for one in found:
        box = [one.box[0] - left, one.box[1] - top, one.box[2] - left, one.box[3] - top]
        shares = normalized(box, right - left, bottom - top)
        texts.append(f"{one.target} at location [{','.join(f'{share:.3f}' for share in shares)}]")
    return "; ".join(texts)


def search_figures(samples: Sequence[Sample], records: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """{"targets", "search accuracy": share of targets whose box has an IoU above HIT, in percent, "search length":
    mean crops of those}, as V* scores its search. Targets without a true box do not count."""
    hits, lengths = [], []
    for sample, of_sample in zip(samples, records, strict=True):
        true = {one.category: one.boxes[0] for one in sample.objects}
        for record in of_sample:
            if true.get(record["target"]) is None:
                continue
            hit = record["box"] is not None and bool(box_iou(record["box"], true[record["target"]]) > HIT)
            hits.append(hit)
            lengths += [record["crops"]] if hit else []
    if not hits:
        return {}
    found: dict[str, float] = {"targets": len(hits), "search accuracy": 100 * mean(hits)}
    return found | ({"search length": mean(lengths)} if lengths else {})
