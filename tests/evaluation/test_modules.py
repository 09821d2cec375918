"""The metrics that `evaluate.load` reads, by path and offline.

Run: pytest tests/evaluation/test_modules.py
"""

from concurrent.futures import ThreadPoolExecutor

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


def test_pairs_one_by_one_and_in_batches_are_the_pairs_at_once(tmp_path):
    drawn, true = (
        [encode(mask) for mask in (LEFT, ALL, NONE, ~LEFT)],
        [encode(mask) for mask in (ALL, ALL, NONE, LEFT)],
    )
    at_once = load("referring_iou", tmp_path).compute(predictions=drawn, references=true)
    metric = load("referring_iou", tmp_path)
    metric.add(prediction=drawn[0], reference=true[0])
    metric.add_batch(predictions=drawn[1:], references=true[1:])
    assert metric.compute() == at_once


def test_the_first_of_several_processes_computes_of_all(tmp_path):
    pairs = [([0.0, 0, width, 5], [0.0, 0, 5, 5]) for width in range(1, 10)]

    def process(number):
        names = {"num_process": 2, "process_id": number, "experiment_id": "one"}
        metric = evaluate.load(path_of("box_accuracy"), cache_dir=str(tmp_path), **names)
        for prediction, reference in pairs[number::2]:
            metric.add(prediction=prediction, reference=reference)
        return metric.compute()

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(process, (0, 1))
    alone = load("box_accuracy", tmp_path)
    assert second is None
    assert first == alone.compute(predictions=[one for one, _ in pairs], references=[one for _, one in pairs])


def test_what_is_no_mask_is_named(tmp_path):
    metric = load("referring_iou", tmp_path)
    rle = encode(LEFT)
    for wrong, got in (
        (LEFT, "ndarray"),
        (None, "NoneType"),
        ({"size": [4, 6]}, "dict"),
        (rle | {"counts": b"0"}, "dict"),
    ):
        message = rf"predictions\[1\]: expected COCO's RLE .*masks.encode makes it of a bool mask; got {got}"
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=[rle, wrong], references=[rle, rle])
        with pytest.raises(ValueError, match="reference: expected COCO's RLE"):
            metric.add(prediction=rle, reference=wrong)
    with pytest.raises(ValueError, match=r"pair 1: predictions are \(4, 6\), targets \(4, 5\)"):
        metric.compute(predictions=[rle, rle], references=[rle, encode(LEFT[:, :5])])
    with pytest.raises(ValueError, match=r"pair 0: ignore: expected bool \(4, 6\)"):
        metric.compute(predictions=[rle], references=[rle], ignore=[encode(LEFT[:, :5])])
    tracks = load("video_j_and_f", tmp_path)
    with pytest.raises(ValueError, match=r"references\[0\]\[2\]: expected COCO's RLE"):
        tracks.compute(predictions=[[rle] * 3], references=[[rle, rle, None]])
    with pytest.raises(ValueError, match=r"references\[0\]: expected a list, got dict"):
        tracks.compute(predictions=[[rle]], references=[rle])
    with pytest.raises(ValueError, match=r"references\[0\]: expected a dict of kind, instances, foreground"):
        load("revos", tmp_path).compute(predictions=[[rle]], references=[{"kind": "referring"}])


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
    with pytest.raises(ValueError, match="object 1: the prediction has 4 frames, the reference 3"):
        metric.compute(predictions=[right, right], references=[right, right[:3]])
    for convention in ("sa_v", "davis"):
        with pytest.raises(ValueError, match="object 0: expected (at least one frame|a clip of at least)"):
            metric.compute(predictions=[right[:2]], references=[right[:2]], convention=convention)


def test_a_late_object_counts_from_where_it_is_seen_in_sa_v_only(tmp_path):
    metric = load("video_j_and_f", tmp_path)
    late = [[encode(NONE)] * 2 + [encode(LEFT)] * 3]
    missed = [[encode(NONE)] * 2 + [encode(LEFT), encode(NONE), encode(LEFT)]]
    assert metric.compute(predictions=missed, references=late)["J"] == 50.0
    found = metric.compute(predictions=missed, references=late, convention="davis")
    assert found["J_mean"] == pytest.approx(200 / 3)
    never = [[encode(NONE)] * 5]
    assert metric.compute(predictions=missed + late, references=late + never)["J"] == 50.0
    with pytest.raises(ValueError, match="expected at least one score"):
        metric.compute(predictions=never, references=never)


def test_revos(tmp_path):
    metric = load("revos", tmp_path)
    parts = [[encode(LEFT)], [], [encode(LEFT)]]  # on the second frame it is away
    truth = {"kind": "referring", "instances": parts, "foreground": [encode(ALL)] * 3}
    right, wrong = [encode(LEFT), encode(NONE), encode(LEFT)], [encode(ALL)] * 3
    found = metric.compute(predictions=[right, wrong], references=[truth, truth | {"kind": "reasoning"}])
    assert found["referring"] == {"J&F": 100.0, "J": 100.0, "F": 100.0, "A": 100.0, "R": 100.0}
    assert found["reasoning"]["J"] == 33.33 and found["reasoning"]["R"] == 33.33  # 12, 24 and 12 of 24 are wrong
    assert found["overall"]["A"] == pytest.approx((100 + 33.33) / 2)
    assert metric.compute(predictions=[wrong], references=[truth | {"kind": "no_target"}]) == {}
    with pytest.raises(ValueError, match=r"expression 0: \(2, 3, 3\) frames"):
        metric.compute(predictions=[right[:2]], references=[truth])
    with pytest.raises(ValueError, match="expression 1: kind: expected one of .*, got 'reason'"):
        metric.compute(predictions=[right, right], references=[truth, truth | {"kind": "reason"}])
    with pytest.raises(ValueError, match=r"expression 0: frame 0: expected one size .*'foreground': \(4, 5\)"):
        metric.compute(predictions=[right], references=[truth | {"foreground": [encode(ALL[:, :5])] * 3}])


def test_box_accuracy(tmp_path):
    metric = load("box_accuracy", tmp_path)
    pairs = {"predictions": [[0, 0, 10, 5], [0, 0, 1, 1]], "references": [[0, 0, 10, 10], [0, 0, 1, 1]]}
    assert metric.compute(**pairs) == {"Acc@0.5": 1.0, "mIoU": 0.75}
    assert metric.compute(**pairs, strict=True) == {"Acc@0.5": 0.5, "mIoU": 0.75}
    metric.add(prediction=None, reference=[0, 0, 1, 1])
    assert metric.compute() == {"Acc@0.5": 0.0, "mIoU": 0.0}
    with pytest.raises(ValueError, match="prediction: expected boxes"):
        metric.compute(predictions=[[0, 0, 1]], references=[[0, 0, 1, 1]])


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="expected one of referring_iou"):
        path_of("ciou")
