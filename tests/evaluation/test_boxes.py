"""Box metrics by hand.

Run: pytest tests/evaluation/test_boxes.py
"""

import numpy as np
import pytest

from sa2va_hf.evaluation import boxes

A, HALF, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [20.0, 20, 30, 30]
ABSENT = [np.nan] * 4


def test_iou_and_giou():
    assert boxes.box_iou(A, HALF) == 0.5
    assert boxes.box_iou(A, FAR) == 0.0
    assert boxes.box_giou(A, FAR) == pytest.approx(-(900 - 200) / 900)
    assert boxes.box_iou([5, 5, 5, 5], [5, 5, 5, 5]) == 0.0
    np.testing.assert_array_equal(boxes.box_iou(np.array([A, FAR])[:, None], np.array([[A, FAR]])), np.eye(2))


def test_exactly_the_threshold_is_a_hit_but_not_for_v_star():
    for strict, expected in ((False, 2 / 3), (True, 1 / 3)):
        first, second = boxes.BoxAccuracy(strict=strict), boxes.BoxAccuracy(strict=strict)
        first.add(A, A)
        second.add(HALF, A)
        second.add(None, A)
        first.merge(second)
        assert first.result() == {"Acc@0.5": expected, "mIoU": 0.5}
    with pytest.raises(ValueError, match="nothing was added"):
        boxes.BoxAccuracy().result()


def test_a_track_is_right_where_it_is_rightly_absent():
    assert boxes.track_iou(np.array([A, HALF, ABSENT, A, ABSENT]), np.array([A, A, ABSENT, ABSENT, A])) == 2.5 / 5
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(2, 4\)"):
        boxes.track_iou(np.array([A]), np.array([A, A]))


def test_grec_needs_every_box_and_no_other():
    scores = boxes.GeneralizedBoxes()
    scores.add([A, FAR], [0.9, 0.8], [FAR, A])  # right, in another order
    scores.add([A], [0.9], [A, FAR])  # one is missing
    scores.add([A, FAR], [0.9, 0.6], [A])  # right: the second one is not sure enough
    scores.add([], [], [])  # rightly nothing
    scores.add([A], [0.9], [])
    assert scores.result() == {"F1": 3 / 5, "N_acc": 1 / 2, "T_acc": 1.0}


def test_choices_by_kind():
    answers = [("relative_position", True), ("direct_attributes", True), ("direct_attributes", False)]
    found = boxes.choice_accuracy(answers)
    assert found == {"direct_attributes": 0.5, "relative_position": 1.0, "overall": 2 / 3}
