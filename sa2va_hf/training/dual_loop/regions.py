"""Masks as region prompts: which cells of the LLM's grid an object covers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def region_cells(mask_logits: Tensor, grid: int = 16, at_least_one: bool = True) -> Tensor:
    """The cells in which the mean probability of the mask is above one half.

    Args:
        mask_logits: (N, H, W) logits of masks. grid: cells per side.
        at_least_one: see `covered_cells`.

    Returns:
        bool (N, grid, grid).
    """
    return covered_cells(F.adaptive_avg_pool2d(mask_logits.float().sigmoid(), grid), at_least_one)


def covered_cells(share: Tensor, at_least_one: bool = True) -> Tensor:
    """The cells of which an object covers more than half.

    Args:
        share: (N, grid, grid) in 0..1.
        at_least_one: the most covered cell counts where none is covered by half, so that a thin object still has a
            prompt; the reference leaves its prompt empty.

    Returns:
        bool (N, grid, grid).
    """
    cells = share > 0.5
    if at_least_one:
        flat = share.flatten(1)
        best = flat == flat.amax(1, keepdim=True)
        cells |= (best & ~cells.flatten(1).any(1, keepdim=True)).view_as(cells)
    return cells
