"""IoU sums, J and F: definitions by slow words, and numbers of the original evaluation code where they are at hand.

Run: pytest tests/evaluation/test_metrics.py
"""

import json
import math

import numpy as np
import pytest

from sa2va_hf.evaluation import metrics

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden(shared_data):
    """Numbers that the original code of LISA, Sa2VA and DAVIS produced on small masks."""
    folder = shared_data.parent / "golden" / "refs"
    if not folder.is_dir():
        pytest.skip("no golden numbers beside the sample data")

    def read(name):
        return json.loads((folder / f"{name}.json").read_text()), np.load(folder / f"{name}.npz")

    return read


def unpack(bits, shape):
    return np.unpackbits(bits)[: math.prod(shape)].reshape(shape).astype(bool)


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
    for function in (metrics.iou, metrics.region_similarity, metrics.boundary_accuracy):
        together = function(a, b)
        assert together.shape == (2, 3)
        alone = [[function(a[i, j], b[i, j]) for j in range(3)] for i in range(2)]
        np.testing.assert_array_equal(together, alone)


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
    with pytest.raises(ValueError, match="no masks were added"):
        metrics.CumulativeIoU().giou()


# ---------------------------------------------------------------- J and F


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 30])
def test_near_means_within_a_disk(radius):
    points, others = rng.random((2, 3, 17, 23)) < 0.1, rng.random((2, 3, 17, 23)) < 0.02
    others[0, 0, 0, 0] = others[0, 1, -1, -1] = True
    others[1, 0] = points[1, 1] = False
    y, x = np.mgrid[:17, :23]
    expected = np.ones((2, 3))
    for i, j in np.ndindex(2, 3):
        dilated = np.zeros((17, 23), bool)
        for cy, cx in zip(*np.nonzero(others[i, j]), strict=True):
            dilated |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        if points[i, j].any():
            expected[i, j] = dilated[points[i, j]].mean()
    np.testing.assert_allclose(metrics.share_within(points, others, radius), expected)


def test_outline_of_a_square():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    drawn = ["......", ".###..", ".#.#..", ".###..", "......", "......"]
    np.testing.assert_array_equal(metrics.outline(mask), np.array([[c == "#" for c in row] for row in drawn]))


def test_boundary_accuracy_forgives_a_shift_within_the_bound_and_no_more():
    target = np.zeros((100, 100), bool)
    target[30:60, 30:60] = True
    near, far = np.roll(target, 2, axis=1), np.roll(target, 20, axis=1)
    assert metrics.boundary_accuracy(target, target) == 1.0
    assert metrics.boundary_accuracy(near, target) == 1.0  # ceil(0.008 * 141.4) = 2 pixels
    assert metrics.boundary_accuracy(near, target, bound=1) < 0.7
    assert metrics.boundary_accuracy(far, target) < 0.7
    empty = np.zeros_like(target)
    assert metrics.boundary_accuracy(empty, target) == metrics.boundary_accuracy(target, empty) == 0.0
    assert metrics.boundary_accuracy(empty, empty) == 1.0


def test_j_and_f_are_means_over_frames():
    prediction, target = random_blobs(3, 40, 50), random_blobs(3, 40, 50)
    scores = metrics.j_and_f(prediction, target)
    assert scores["J"] == pytest.approx(metrics.iou(prediction, target).mean())
    assert scores["F"] == pytest.approx(metrics.boundary_accuracy(prediction, target).mean())
    assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)


# ---------------------------------------------------------------- the original code's numbers


def test_lisa_and_sa2va_values(golden):
    expected, arrays = golden("E_res")
    shape = (expected["N"], expected["H"], expected["W"])
    gt, pred, ignore = (unpack(arrays[name], shape) for name in ("gt", "pred", "ignore"))
    without_seg = pred.copy()
    without_seg[expected["sa2va_prediction_is_none"]] = False
    lisa, sa2va = expected["lisa"], expected["sa2va"]["grouped"]
    cases = [
        (pred, None, lisa["one_mask_per_image"]["ciou"], lisa["one_mask_per_image"]["giou_without_all_reduce_eps"]),
        (pred, ignore, lisa["with_ignore_255"]["ciou"], lisa["with_ignore_255"]["giou_without_all_reduce_eps"]),
        (without_seg, None, sa2va["ciou"], sa2va["giou"]),
    ]
    for prediction, ignored, ciou, giou in cases:
        scores = metrics.CumulativeIoU()
        scores.add(prediction, gt, ignored)
        assert scores.ciou(metrics.LISA_SUM_EPS) == pytest.approx(ciou, abs=1e-6)
        assert scores.giou(metrics.LISA_IOU_EPS) == pytest.approx(giou, abs=1e-6)
        assert scores.giou() == pytest.approx(giou, abs=1e-4)  # the epsilon is all that differs


def test_precision_values(golden):
    expected, arrays = golden("E_res")
    shape = (expected["N"], expected["H"], expected["W"])
    pred, gt = unpack(arrays["pred"], shape), unpack(arrays["gt"], shape)
    has_target = gt.any((1, 2))
    for kind, chosen in (("all", slice(None)), ("targets_only", has_target)):
        scores = metrics.CumulativeIoU()
        scores.add(pred[chosen], gt[chosen])
        for name, value in expected["precision"][kind].items():
            assert scores.precision(float(name.removeprefix("Pr@"))) == pytest.approx(value["ge"], abs=1e-9), name


def test_davis_values_frame_by_frame(golden):
    expected, arrays = golden("D_vos")
    compared = 0
    for name in expected["sequences"]:
        gt, pred = arrays[f"{name}.gt"], arrays[f"{name}.pred"]
        for number, figures in expected["davis"][name].items():
            masks = pred == int(number), gt == int(number)
            for suffix, void in (("", None), ("_void", gt == 255)):
                if f"J{suffix}" in figures:
                    j, f = figures[f"J{suffix}"], figures[f"F{suffix}"]
                    np.testing.assert_allclose(metrics.region_similarity(*masks, void), j, atol=1e-9)
                    np.testing.assert_allclose(metrics.boundary_accuracy(*masks, void), f, atol=1e-9)
                    compared += len(j)
    assert compared > 50
