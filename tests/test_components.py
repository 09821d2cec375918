"""Connected components: the pieces that flooding finds, their boxes and areas.

Run: pytest tests/test_components.py
"""

import numpy as np
import pytest

from sa2va_hf.components import components, keep_components, masks_to_boxes
from sa2va_hf.masks import mask_to_box


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 40, 2)
        yield rng.random((height, width)) < rng.choice([0, 0.02, 0.3, 0.5, 0.98, 1])


def flooded(mask):
    """Components by the obvious way: from pixel to pixel, to all eight neighbours."""
    labels, count = np.zeros(mask.shape, int), 0
    for y, x in np.argwhere(mask):
        if labels[y, x]:
            continue
        count += 1
        todo = [(y, x)]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return labels


def test_components_are_what_flooding_finds():
    for mask in random_masks(150):
        assert (components(mask) == flooded(mask)).all()


def test_a_winding_line_is_one_component():
    mask = np.zeros((41, 41), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True  # a snake
    assert components(mask).max() == 1
    mask[20, 20] = False
    assert components(mask).max() == 2


def test_boxes_and_areas_of_the_pieces_largest_first():
    for mask in random_masks(60, seed=1):
        labels, found = flooded(mask), masks_to_boxes(mask)
        assert [one.area for one in found] == sorted((np.bincount(labels[mask])[1:].tolist()), reverse=True)
        for box, area, number in found:
            assert area == (labels == number).sum() and box == mask_to_box(labels == number)
        large = [one for one in found if one.area >= 3]
        assert masks_to_boxes(mask, min_area=3) == large
        assert masks_to_boxes(mask, min_area=3, keep="largest") == large[:1]
        kept = np.isin(labels, [one.number for one in large]) & mask
        assert (keep_components(mask, min_area=3) == kept).all()


def test_unusable_input_for_components_is_named():
    with pytest.raises(ValueError, match=r"must be bool of the shape \(height, width\), got uint8 \(2, 3\)"):
        masks_to_boxes(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="keep must be 'all' or 'largest', got 'first'"):
        masks_to_boxes(np.zeros((2, 3), bool), keep="first")
