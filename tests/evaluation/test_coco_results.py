"""Predictions of a benchmark as COCO files, scored by pycocotools itself.

Run: pytest tests/evaluation/test_coco_results.py
"""

import json

import numpy as np
import pytest

from sa2va_hf.data.schema import TASKS, Object, Sample
from sa2va_hf.evaluation.coco_results import coco_truth, write_coco
from sa2va_hf.evaluation.items import Answer, Item
from sa2va_hf.masks import encode

HEIGHT, WIDTH = 20, 30


def square(x: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:12, x : x + 8] = True
    return mask


def items(frames: int = 1) -> list[Item]:
    """Two questions about one picture of three objects: one means the first, the other the two others."""
    objects = [Object([encode(square(x))] * frames, [None] * frames) for x in (0, 10, 20)]
    names = [f"{frame}.jpg" for frame in range(frames)]
    sample = Sample(
        task=TASKS[0],
        id="s",
        height=HEIGHT,
        width=WIDTH,
        frames=names,
        annotated=list(range(frames)),
        objects=objects,
        turns=[],
    )
    return [Item("s/0", sample, "the left", targets=(0,)), Item("s/1", sample, "the others", targets=(1, 2))]


def ap(truth, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(str(results)), "segm")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    return evaluation.stats[0]


@pytest.mark.parametrize("merged", [True, False])
def test_right_answers_have_ap_1_and_half_of_them_half(tmp_path, merged):
    asked = items()
    both = square(10) | square(20)
    second = [both] if merged else [square(10), square(20)]
    answers = {"s/0": Answer("a", [[encode(square(0))]]), "s/1": Answer("b", [[encode(mask)] for mask in second])}
    files = tmp_path / "r.json", tmp_path / "t.json"
    write_coco(*files, asked, answers, merged)
    assert ap(files[1], files[0]) == pytest.approx(1.0)
    truth = json.loads(files[1].read_text())
    assert [image["key"] for image in truth["images"]] == ["s/0", "s/1"]
    assert len(truth["annotations"]) == (2 if merged else 3)
    answers["s/0"] = Answer("nothing")
    write_coco(*files, asked, answers, merged)
    assert ap(files[1], files[0]) == pytest.approx(0.5 if merged else 2 / 3, abs=0.02)


def test_clips_are_refused():
    with pytest.raises(ValueError, match="s/0: COCO results are for images, this is a clip of 2 frames"):
        coco_truth(items(frames=2), merged=True)
