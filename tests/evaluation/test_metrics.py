"""IoU and its sums: definitions by slow words. The original evaluation code's numbers are in test_golden_metrics.py.

Run: pytest tests/evaluation/test_metrics.py
"""

import numpy as np
import pytest

from sa2va_hf.evaluation import metrics

rng = np.random.default_rng(0)


def random_blobs(*shape):
    """Masks with areas, holes and thin parts, not just noise."""
    noise = rng.normal(size=shape)
    for _ in range(3):
        noise = (noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 3
    return noise > 0.1


# ---------------------------------------------------------------- IoU


def test_iou_by_counting():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    a[:2], b[1:3] = True, True
    assert metrics.iou(a, b) == 5 / 15
    assert metrics.iou(a, a) == 1.0
    assert metrics.iou(a, ~a) == 0.0
    assert metrics.iou(np.zeros_like(a), np.zeros_like(a)) == 1.0


def test_ignored_pixels_do_not_count():
    a, b = random_blobs(9, 11), random_blobs(9, 11)
    ignore = np.zeros((9, 11), bool)
    ignore[:, 4:] = True
    assert metrics.iou(a, b, ignore) == metrics.iou(a[:, :4], b[:, :4])


def test_a_batch_is_its_masks_one_by_one():
    a, b = random_blobs(2, 3, 40, 50), random_blobs(2, 3, 40, 50)
    a[0, 0] = b[0, 1] = False
    together = metrics.iou(a, b)
    assert together.shape == (2, 3)
    np.testing.assert_array_equal(together, [[metrics.iou(a[i, j], b[i, j]) for j in range(3)] for i in range(2)])


def test_sums_weigh_pixels_and_means_weigh_masks():
    scores = metrics.CumulativeIoU()
    large, small = np.ones((10, 10), bool), np.zeros((10, 10), bool)
    small[0, 0] = True
    scores.add(large, large)  # IoU 1 over 100 pixels
    scores.add(small, np.roll(small, 1))  # IoU 0 over 2 pixels
    assert scores.ciou() == 100 / 102
    assert scores.giou() == 0.5
    assert scores.precision(0.5) == 0.5


def test_no_target_and_none_found_counts_as_right():
    scores, empty = metrics.CumulativeIoU(), np.zeros((3, 4, 4), bool)
    scores.add(empty, empty)
    assert (scores.ciou(), scores.giou()) == (1.0, 1.0)
    scores.add(~empty[0], empty[0])  # something drawn where nothing is
    assert (scores.ciou(), scores.giou()) == (0.0, 0.75)


def test_parts_of_a_data_set_merge_to_the_whole():
    a, b = random_blobs(6, 20, 20), random_blobs(6, 20, 20)
    whole, first, second = metrics.CumulativeIoU(), metrics.CumulativeIoU(), metrics.CumulativeIoU()
    whole.add(a, b)
    first.add(a[:2], b[:2])
    for prediction, target in zip(a[2:], b[2:], strict=True):
        second.add(prediction, target)
    first.merge(second)
    assert len(first) == len(whole) == 6
    assert (first.ciou(), first.giou(), first.precision(0.3)) == (whole.ciou(), whole.giou(), whole.precision(0.3))


def test_what_cannot_be_compared_is_an_error():
    mask = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        metrics.iou(mask, np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="targets: expected bool masks, got uint8"):
        metrics.iou(mask, mask.astype(np.uint8) * 255)
    with pytest.raises(ValueError, match=r"ignore: expected bool \(4, 4\) \(H, W\), got uint8 \(4, 4\)"):
        metrics.iou(mask, mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match=r"ignore: expected .* got bool \(5, 4\)"):
        metrics.iou(mask, mask, np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="expected at least one pair of masks"):
        metrics.CumulativeIoU().giou()


def test_the_order_of_adding_and_merging_does_not_change_the_last_digit():
    pairs = [(random_blobs(13, 17), random_blobs(13, 17)) for _ in range(60)]
    for kind in (metrics.CumulativeIoU, metrics.GeneralizedIoU):
        results = []
        for order, parts in ((pairs, 1), (pairs[::-1], 3), (rng.permutation(60), 7)):
            scores = [kind() for _ in range(parts)]
            for number, pair in enumerate(order):
                scores[number % parts].add(*(pairs[pair] if isinstance(pair, np.integer) else pair))
            for other in scores[1:]:
                scores[0].merge(other)
            results.append(scores[0].result())
        assert results[0] == results[1] == results[2]


# ---------------------------------------------------------------- expressions that match nothing


def test_nothing_is_right_only_where_there_is_nothing():
    mask, empty = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    scores = metrics.GeneralizedIoU()
    scores.add(empty, empty)  # rightly nothing: IoU 1, no pixels
    scores.add(mask, empty)  # wrongly something: IoU 0, 20 pixels of union
    scores.add(mask, mask)
    scores.add(empty, mask)  # wrongly nothing
    found = scores.result()
    assert (found["gIoU"], found["cIoU"], found["N_acc"], found["T_acc"]) == (0.5, 20 / 60, 0.5, 0.5)
    assert found["Pr@0.5"] == 0.5  # of the two expressions with a target


def test_a_model_that_says_nothing_of_its_own_is_believed():
    mask = np.ones((4, 5), bool)
    scores = metrics.GeneralizedIoU()
    scores.add(mask, mask, says_nothing=True)
    assert scores.result()["gIoU"] == scores.result()["cIoU"] == scores.result()["T_acc"] == 0.0


def test_without_samples_there_is_no_figure():
    with pytest.raises(ValueError, match="expected at least one pair of masks"):
        metrics.GeneralizedIoU().result()
    with pytest.raises(ValueError, match="expected at least one value"):
        metrics.mean([])
