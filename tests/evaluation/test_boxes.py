"""Box metrics by hand.

Run: pytest tests/evaluation/test_boxes.py
"""

import numpy as np
import pytest

from sa2va_hf.evaluation import boxes

A, HALF, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [20.0, 20, 30, 30]
ABSENT = [np.nan] * 4


def test_exactly_the_threshold_is_a_hit_but_not_for_v_star():
    for strict, expected in ((False, 2 / 3), (True, 1 / 3)):
        first, second = boxes.BoxAccuracy(strict=strict), boxes.BoxAccuracy(strict=strict)
        first.add(A, A)
        second.add(HALF, A)
        second.add(None, A)
        first.merge(second)
        assert first.result() == {"Acc@0.5": expected, "mIoU": 0.5}
    with pytest.raises(ValueError, match="expected at least one value"):
        boxes.BoxAccuracy().result()


def test_what_is_no_box_is_an_error():
    scores = boxes.BoxAccuracy()
    for prediction in ([0.0, 0, 10], [], [A], ["x"] * 4):
        with pytest.raises(ValueError, match=r"prediction: expected boxes \[x0, y0, x1, y1\], got"):
            scores.add(prediction, A)
    with pytest.raises(ValueError, match=r"target: expected boxes"):
        scores.add(A, [0.0, 0, 10])
    with pytest.raises(ValueError, match="target: expected .* of an object that is there"):
        scores.add(A, ABSENT)
    assert len(scores) == 0
    grec = boxes.GeneralizedBoxes()
    for given, message in (
        (([A[:3]] * 4, [0.9] * 4, [A]), "boxes: expected boxes"),
        (([A], [0.9], [A + [0.5]] * 4), "targets: expected boxes"),
        (([A, FAR], [0.9], [A]), r"scores: expected one for each of 2 boxes, got the shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            grec.add(*given)


def test_a_prediction_that_was_not_made_is_a_miss():
    scores = boxes.BoxAccuracy()
    for prediction in (None, ABSENT, [0.0, 0, np.inf, 10]):
        scores.add(prediction, A)
    assert scores.result() == {"Acc@0.5": 0.0, "mIoU": 0.0}


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


def test_tubes_of_boxes_by_hand():
    clip = boxes.BoxTubes()
    first = clip.add([[A], [HALF], [], None, [A]], [[A], [A], [], [A], []])
    assert first == pytest.approx((1 + 0.5 + 0 + 0) / 4)  # of the frames with a box in either; the third has none
    other = boxes.BoxTubes()
    assert other.add([[FAR, A]], [[A, FAR]]) == 1.0  # the order within a frame does not count
    assert other.add([[A]], [[A, FAR]]) == 0.5
    assert other.add([[]], [[]]) == 1.0
    clip.merge(other)
    found = clip.result()
    assert found["m_vIoU"] == pytest.approx((0.375 + 1 + 0.5 + 1) / 4)
    assert found["vIoU@0.3"] == 1.0 and found["vIoU@0.5"] == 0.5
    assert found["Acc@0.5"] == pytest.approx(4 / 5) and found["mIoU"] == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    assert found["absent"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="expected boxes of 2 frames"):
        clip.add([[A]], [[A], [A]])
    with pytest.raises(ValueError, match="expected at least one value"):
        boxes.BoxTubes().result()
