"""Sides of square inputs that a config may ask for."""

from __future__ import annotations

from typing import Any

MAX_SIDE = 4096  # pixels of a square input; a config with more asks for all memory


def check_side(name: str, side: Any) -> None:
    """Raises: ValueError unless `side` is a whole number of pixels in 1..MAX_SIDE."""
    if not isinstance(side, int) or isinstance(side, bool) or not 0 < side <= MAX_SIDE:
        raise ValueError(f"{name}: expected a whole number of pixels from 1 to {MAX_SIDE}, got {side!r}")
