"""What a prompt of SAM 2 should say of a target, written down: where it is, and what it looks like.

The LLM is trained to write this code and the mask decoder to read it, each alone and in quick steps, before both are
trained together. A place is SAM 2's own position code, averaged over the cells that the target covers: 64 cells span
half of the prompt's dimensions. The words for its looks are directions of the other half, so neither hides the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.shapes.scene import Options, Shape
from ...data.shapes.text import ATTRIBUTES, FAMILIES
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration

WORD_NORM = 4.0  # four words are as long as a position code of 128 numbers


class PromptCode:
    """places: (cells, C). words: (words of the world, C), orthogonal to each other and to the places (in a narrow
    prompt to what the places mostly are)."""

    def __init__(self, model: Sa2VAForConditionalGeneration) -> None:
        self.places = dense_positions(model)
        self.names = [(name, word) for name in ATTRIBUTES for word in Options().words(FAMILIES[name])]
        width = self.places.shape[1]
        generator = torch.Generator().manual_seed(0)
        free = torch.randn(len(self.names), width, generator=generator).double()
        basis = torch.linalg.svd(self.places.double(), full_matrices=False)[2][: width - len(self.names)]
        free = free - free @ basis.T @ basis
        self.words = (WORD_NORM * torch.linalg.qr(free.T)[0].T).float()

    def looks(self, shapes: Sequence[Shape]) -> Tensor:
        """(words,): the share of the shapes that each word is true of."""
        return torch.tensor([[getattr(s, name) == word for name, word in self.names] for s in shapes]).float().mean(0)

    def encode(self, cover: Tensor, looks: Tensor) -> Tensor:
        """cover (N, cells) of the targets, over all frames that are shown, and looks (N, words) -> codes (N, C)."""
        return cover / cover.sum(1, keepdim=True).clamp(min=1e-6) @ self.places + looks @ self.words


@torch.no_grad()
def dense_positions(model: Sa2VAForConditionalGeneration) -> Tensor:
    """(cells, C): SAM 2's position code of every cell of its coarsest features, which is the LLM's grid here."""
    return model.grounding_encoder.sam2_model.sam_prompt_encoder.get_dense_pe()[0].flatten(1).T.contiguous()
