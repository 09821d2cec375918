"""J and F against their definitions in slow words, and packed masks against plain ones.

Run: pytest tests/evaluation/test_video_metrics.py
"""

import math
import tracemalloc

import numpy as np
import pytest

from sa2va_hf.evaluation import video_metrics as video
from sa2va_hf.evaluation.metrics import iou

rng = np.random.default_rng(0)


def blobs(*shape):
    """Masks with areas, holes and thin parts, not just noise."""
    noise = rng.normal(size=shape)
    for _ in range(3):
        noise = (noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 3
    return noise > 0.1


def slow_outline(mask):
    edges = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in np.ndindex(height, width):
        right, below = x + 1 < width, y + 1 < height
        edges[y, x] = (right and mask[y, x] != mask[y, x + 1]) or (below and mask[y, x] != mask[y + 1, x])
        edges[y, x] |= right and below and mask[y, x] != mask[y + 1, x + 1]
    return edges


def slow_widened(points, radius):
    y, x = np.mgrid[: points.shape[0], : points.shape[1]]
    wide = np.zeros_like(points)
    for cy, cx in zip(*np.nonzero(points), strict=True):
        wide |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
    return wide


def slow_f(prediction, target, radius):
    found, wanted = slow_outline(prediction), slow_outline(target)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = (found & slow_widened(wanted, radius)).sum() / found.sum()
    recall = (wanted & slow_widened(found, radius)).sum() / wanted.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("height", [1, 7, 8, 9, 21])
@pytest.mark.parametrize("width", [1, 7, 8, 30])
@pytest.mark.parametrize("margin", [0, 1, 11])
def test_packed_masks_are_plain_ones(height, width, margin):
    masks = blobs(2, height, width)
    packed = video.pack(*masks, margin=margin)
    np.testing.assert_array_equal(video.unpack(packed, height, width), masks)
    edges = video.unpack(video.outline(packed, height, width), height, width)
    np.testing.assert_array_equal(edges, [slow_outline(mask) for mask in masks])


@pytest.mark.parametrize("height", [3, 21, 64])
@pytest.mark.parametrize("width", [1, 7, 50])
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 31, 70])
def test_every_point_becomes_a_disk(height, width, radius):
    few = rng.random((2, height, width)) < 0.02
    few[0, [0, -1]], few[1, :, [0, -1]] = rng.random(width) < 0.1, rng.random(height) < 0.1  # at the edges
    few[0, 0, 0] = few[1, -1, -1] = True  # and in the corners
    wide = video.unpack(video.disks(video.pack(*few, margin=radius), radius), height, width)
    np.testing.assert_array_equal(wide, [slow_widened(points, radius) for points in few])


@pytest.mark.parametrize("size", [(20, 30), (24, 64), (13, 129)])
def test_f_is_that_of_a_dilation(size):
    for number in range(6):
        prediction, target = blobs(*size), blobs(*size)
        if number % 3 == 0:  # objects at the edges and in corners
            prediction[5:, :-7], target[:-9, 11:] = False, False
        for bound in (1, 3, 9):
            assert video.boundary_accuracy(prediction, target, bound=bound) == slow_f(prediction, target, bound)


def test_outline_of_a_square():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    drawn = ["......", ".###..", ".#.#..", ".###..", "......", "......"]
    expected = np.array([[c == "#" for c in row] for row in drawn])
    np.testing.assert_array_equal(video.unpack(video.outline(video.pack(mask), 6, 6), 6, 6)[0], expected)


def test_a_shift_within_the_bound_is_forgiven_and_no_more():
    target = np.zeros((100, 100), bool)
    target[30:60, 30:60] = True
    near, far = np.roll(target, 2, axis=1), np.roll(target, 20, axis=1)
    assert video.boundary_accuracy(target, target) == 1.0
    assert video.boundary_accuracy(near, target) == 1.0  # ceil(0.008 * 141.4) = 2 pixels
    assert video.boundary_accuracy(near, target, bound=1) < 0.7
    assert video.boundary_accuracy(far, target) < 0.7


def test_frames_without_an_outline():
    empty, full, some = np.zeros((9, 9), bool), np.ones((9, 9), bool), np.zeros((9, 9), bool)
    some[3:5, 3:5] = True
    assert video.frame_scores(empty, empty) == (1.0, 1.0)
    assert video.frame_scores(empty, some) == video.frame_scores(some, empty) == (0.0, 0.0)
    assert video.frame_scores(full, empty) == (0.0, 1.0)  # neither has one: all that F looks at
    assert video.frame_scores(some, empty, void=some) == (1.0, 1.0)


def test_void_pixels_do_not_count():
    prediction, target, void = blobs(30, 40), blobs(30, 40), blobs(30, 40)
    expected = video.frame_scores(prediction & ~void, target & ~void)
    assert video.frame_scores(prediction, target, void) == expected
    assert video.boundary_accuracy(prediction, target, void) == expected[1]


def test_a_batch_is_its_masks_one_by_one():
    a, b = blobs(2, 3, 40, 50), blobs(2, 3, 40, 50)
    for function in (video.region_similarity, video.boundary_accuracy):
        together = function(a, b)
        assert together.shape == (2, 3)
        np.testing.assert_array_equal(together, [[function(a[i, j], b[i, j]) for j in range(3)] for i in range(2)])


def test_j_and_f_are_means_over_frames():
    prediction, target = blobs(3, 40, 50), blobs(3, 40, 50)
    scores = video.j_and_f(prediction, target)
    assert scores["J"] == pytest.approx(iou(prediction, target).mean())
    assert scores["F"] == pytest.approx(video.boundary_accuracy(prediction, target).mean())
    assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)


def test_a_long_clip_is_held_one_frame_at_a_time():
    pair = blobs(120, 160), blobs(120, 160)
    peaks = []
    for frames in (10, 300):
        tracemalloc.start()
        video.clip_scores((pair[0].copy(), pair[1].copy()) for _ in range(frames))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + math.prod(pair[0].shape)  # its 290 more pairs would take 580 of these
