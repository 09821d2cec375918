"""The metrics that `evaluate.load` reads, by path and offline.

Run: pytest tests/evaluation/test_modules.py
"""

import evaluate
import numpy as np
import pytest

from sa2va_hf.evaluation.modules import path_of
from sa2va_hf.masks import encode

LEFT, ALL, NONE = np.zeros((4, 6), bool), np.ones((4, 6), bool), np.zeros((4, 6), bool)
LEFT[:, :3] = True


def load(name, tmp_path):
    return evaluate.load(path_of(name), cache_dir=str(tmp_path))


def test_referring_iou(tmp_path):
    metric = load("referring_iou", tmp_path)
    found = metric.compute(predictions=[encode(LEFT), encode(ALL)], references=[encode(ALL), encode(ALL)])
    assert found["cIoU"] == pytest.approx(36 / 48)
    assert found["gIoU"] == pytest.approx(0.75, abs=1e-5)
    assert found["Pr@0.6"] == 0.5
    ignored = metric.compute(predictions=[encode(LEFT)], references=[encode(ALL)], ignore=[encode(~LEFT)])
    assert ignored["gIoU"] == pytest.approx(1.0, abs=1e-5)
    pairs = {"predictions": [encode(NONE), encode(LEFT)], "references": [encode(NONE), encode(NONE)]}
    assert metric.compute(**pairs, no_target=True)["N_acc"] == 0.5


def test_video_j_and_f(tmp_path):
    metric = load("video_j_and_f", tmp_path)
    right, wrong = [encode(LEFT)] * 4, [encode(~LEFT)] * 4
    found = metric.compute(predictions=[right, wrong], references=[right, right])
    assert found["J"] == 50.0
    edges = [encode(NONE), *right[:2], encode(NONE)]
    assert metric.compute(predictions=[edges], references=[right])["J"] == 100.0  # the first and last do not count
    assert metric.compute(predictions=[edges], references=[right], convention="mevis")["J"] == 50.0
    with pytest.raises(ValueError, match="expected one of sa_v, mevis"):
        metric.compute(predictions=[edges], references=[right], convention="davis")


def test_box_accuracy(tmp_path):
    metric = load("box_accuracy", tmp_path)
    pairs = {"predictions": [[0, 0, 10, 5], [0, 0, 1, 1]], "references": [[0, 0, 10, 10], [0, 0, 1, 1]]}
    assert metric.compute(**pairs) == {"Acc@0.5": 1.0, "mIoU": 0.75}
    assert metric.compute(**pairs, strict=True) == {"Acc@0.5": 0.5, "mIoU": 0.75}


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="expected one of referring_iou"):
        path_of("ciou")
