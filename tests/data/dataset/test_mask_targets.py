"""Masks read on the decoder's grid are, bit for bit, the masks that are painted whole and shrunk by the loss.

Run: pytest tests/data/dataset/test_mask_targets.py
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sa2va_hf import masks
from sa2va_hf.data.dataset.mask_targets import MaskGrid, mask_labels
from sa2va_hf.data.dataset.planning import Plan
from sa2va_hf.model.losses import shrink

SIZES = [(1, 1), (1, 9), (7, 3), (16, 16), (17, 31), (64, 48), (90, 161), (375, 500), (480, 640)]  # height, width
GRIDS = [1, 16, 24, 64, 256]


def drawn(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A mask of noise, of an ellipse (a few runs per column), of nothing, or of everything."""
    if kind == "noise":
        return rng.random((height, width)) < 0.4
    rows, columns = np.indices((height, width))
    center, radius = rng.random(2) * (height, width), (0.1 + rng.random(2)) * (height, width)
    ellipse = ((rows - center[0]) / radius[0]) ** 2 + ((columns - center[1]) / radius[1]) ** 2 < 0.3
    return {"ellipse": ellipse, "empty": ellipse & False, "full": ellipse | True}[kind]


class DrawnRow:
    """A clip of two annotated frames and three objects, of which one has no mask on the second frame."""

    def __init__(self, height: int, width: int):
        rng = np.random.default_rng(height * 1000 + width)
        self.kinds = [["ellipse", "noise"], ["empty", "full"], ["ellipse", None]]
        self.known = [
            [kind and masks.encode(drawn(kind, height, width, rng)) for kind in kinds] for kinds in self.kinds
        ]
        self.ignored = [masks.encode(drawn("ellipse", height, width, rng)), None]

    def __getitem__(self, name):
        return {"annotated": [3, 8]}[name]

    def mask(self, instance, position):
        return self.known[instance][position]

    def box(self, instance, position):
        return None

    def ignore(self, position):
        return self.ignored[position]


def plan_of(height: int, width: int, targets) -> Plan:
    return Plan("clip", (width, height), True, [3, 5, 8], [], targets, DrawnRow(height, width))


@pytest.mark.parametrize("how", ["nearest", "area"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_grid_holds_what_shrinking_gives(size, how):
    plan = plan_of(*size, targets=[[0], [0, 1], [2], [1, 2]])
    whole = mask_labels(plan)
    for cells in GRIDS:
        small = mask_labels(plan, MaskGrid(cells, how))
        assert small["mask_labels"].shape == (4, 3, cells, cells)
        expected = shrink(whole["mask_labels"], cells, how)
        assert torch.equal(shrink(small["mask_labels"], cells, how), expected), cells
        assert torch.equal(small["mask_labels"].float().flatten(0, 1), expected), cells
        assert torch.equal(small["mask_known"], whole["mask_known"])
        if "ignore_labels" in whole:
            ignored = shrink(whole["ignore_labels"][None], cells, "nearest").bool()
            assert torch.equal(small["ignore_labels"], ignored), cells


def test_masks_are_unions_of_what_is_meant():
    whole = mask_labels(plan_of(20, 30, targets=[[0, 1], [2]]))
    row = DrawnRow(20, 30)
    union = masks.decode(row.mask(0, 0)) | masks.decode(row.mask(1, 0))
    assert (whole["mask_labels"][0, 0].numpy() == union).all()
    assert not whole["mask_labels"][:, 1].any(), "a frame without masks"
    assert whole["mask_known"].tolist() == [[True] * 3, [True, True, False]], "an object has no mask there"


def test_no_mask_is_painted_for_nearest_cells(monkeypatch):
    monkeypatch.setattr(masks, "decode", lambda rle: pytest.fail("painted"))
    mask_labels(plan_of(48, 64, targets=[[0, 1]]), MaskGrid(16))


def test_the_grid_is_that_of_the_model():
    model = SimpleNamespace(
        grounding_encoder=SimpleNamespace(mask_size=32), config=SimpleNamespace(mask_targets="area")
    )
    assert MaskGrid.of(model) == MaskGrid(32, "area")
