"""Gradients of two losses combined: the second one without what points along the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """How two gradients lie to each other, over the parameters that have both.

    dot: their inner product. norm1, norm2: their lengths. coefficient: what is taken away, in lengths of the first.
    """

    dot: float
    norm1: float
    norm2: float
    coefficient: float

    @property
    def cosine(self) -> float:
        return self.dot / (self.norm1 * self.norm2) if self.norm1 and self.norm2 else 0.0


def combine(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], beta: float = 0.5, on_conflict_only: bool = False
) -> tuple[dict[str, Tensor], Overlap]:
    """g1 + beta (g2 - (g1 . g2 / |g1|^2) g1), with one coefficient for all parameters.

    Args:
        first, second: gradients by parameter name; a parameter that a loss does not reach is missing.
        beta: weight of the second gradient.
        on_conflict_only: project only where the two point against each other, as PCGrad does (arXiv 2001.06782); the
            reference always projects, which removes the second gradient wholly where both agree.

    Returns:
        The combined gradient of every parameter that has one, and how the two lie to each other.
    """
    both = [name for name in first if name in second]
    dot = sum(float((first[name].float() * second[name].float()).sum()) for name in both)
    square1 = sum(float(first[name].float().square().sum()) for name in both)
    square2 = sum(float(second[name].float().square().sum()) for name in both)
    coefficient = dot / square1 if square1 else 0.0
    if on_conflict_only and dot >= 0:
        coefficient = 0.0
    combined = {name: gradient.clone() for name, gradient in first.items() if name not in second}
    combined |= {name: beta * gradient for name, gradient in second.items() if name not in first}
    for name in both:
        combined[name] = first[name] + beta * (second[name] - coefficient * first[name])
    return combined, Overlap(dot, square1**0.5, square2**0.5, coefficient)
