"""The projection term by hand, and that masks are learned from it.

Run: pytest tests/model/test_box_losses.py
"""

import pytest
import torch

from sa2va_hf.model.box_losses import box_cells, projection_loss
from sa2va_hf.model.losses import weighted_mean


def box(x0, y0, x1, y1, size=12):
    mask = torch.zeros(size, size)
    mask[y0:y1, x0:x1] = 1
    return mask


def test_a_mask_that_touches_all_sides_costs_nothing_whatever_its_shape():
    cross = torch.full((12, 12), -20.0)
    cross[5, 2:9] = 20
    cross[3:8, 4] = 20
    loss = projection_loss(cross[None], box(2, 3, 9, 8)[None])
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_the_term_by_hand():
    found = torch.full((12, 12), -20.0)
    found[3:8, 2:5] = 20  # 3 of 7 columns, all rows
    loss = projection_loss(found[None], box(2, 3, 9, 8)[None])
    assert loss.item() == pytest.approx(1 - 2 * 3 / (3 + 7), abs=1e-4)
    outside = projection_loss(torch.full((1, 12, 12), 20.0), box(2, 3, 9, 8)[None])
    assert outside.item() == pytest.approx((1 - 2 * 7 / 19) + (1 - 2 * 5 / 17), abs=1e-4)


def test_masks_without_a_weight_do_not_count():
    losses, weights = torch.tensor([0.5, 1.7, 0.8]), torch.tensor([2.0, 0.0, 1.0])
    assert weighted_mean(losses, weights) == pytest.approx((2 * 0.5 + 0.8) / 3)
    assert weighted_mean(losses, weights * 0) == 0


def test_cells_of_boxes_are_those_whose_middle_is_inside():
    boxes = torch.tensor(
        [[2 / 12, 3 / 12, 9 / 12, 8 / 12], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.99, 0, 1, 1]]
    )
    cells = box_cells(boxes, torch.tensor([0, 2, 2, 3]), 4, 12)
    assert torch.equal(cells[0], box(2, 3, 9, 8)) and not cells[1].any()
    assert torch.equal(cells[2], torch.maximum(box(0, 0, 6, 6), box(6, 6, 12, 12)))
    assert torch.equal(cells[3], box(11, 0, 12, 12)), "a thin box has a column all the same"


def test_gradients_pull_a_mask_to_its_box():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 12, 12, generator=generator).requires_grad_()
    target = box(2, 3, 9, 8)[None]
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        projection_loss(logits, target).sum().backward()
        optimizer.step()
    columns, rows = (logits[0] > 0).any(0), (logits[0] > 0).any(1)
    assert torch.equal(columns, target[0].bool().any(0)) and torch.equal(rows, target[0].bool().any(1))
