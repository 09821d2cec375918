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
    found = metric.compute(predictions=[right, wrong], references=[right, right], convention="davis")
    assert (found["J_mean"], found["J_recall"], found["J_decay"]) == (50.0, 50.0, 0.0)
    with pytest.raises(ValueError, match="expected one of sa_v, davis, mevis"):
        metric.compute(predictions=[edges], references=[right], convention="vos")


def test_revos(tmp_path):
    metric = load("revos", tmp_path)
    parts = [[encode(LEFT)], [], [encode(LEFT)]]  # on the second frame it is away
    truth = {"kind": "referring", "instances": parts, "foreground": [encode(ALL)] * 3}
    right, wrong = [encode(LEFT), encode(NONE), encode(LEFT)], [encode(ALL)] * 3
    found = metric.compute(predictions=[right, wrong], references=[truth, truth | {"kind": "reasoning"}])
    assert found["referring"] == {"J&F": 100.0, "J": 100.0, "F": 100.0, "A": 100.0, "R": 100.0}
    assert found["reasoning"]["J"] == 33.33 and found["reasoning"]["R"] == 33.33  # 12, 24 and 12 of 24 are wrong
    assert found["overall"]["A"] == pytest.approx((100 + 33.33) / 2)
    with pytest.raises(ValueError, match=r"expression 0: \(2, 3, 3\) frames"):
        metric.compute(predictions=[right[:2]], references=[truth])


def test_box_accuracy(tmp_path):
    metric = load("box_accuracy", tmp_path)
    pairs = {"predictions": [[0, 0, 10, 5], [0, 0, 1, 1]], "references": [[0, 0, 10, 10], [0, 0, 1, 1]]}
    assert metric.compute(**pairs) == {"Acc@0.5": 1.0, "mIoU": 0.75}
    assert metric.compute(**pairs, strict=True) == {"Acc@0.5": 0.5, "mIoU": 0.75}


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="expected one of referring_iou"):
        path_of("ciou")
