"""Which frames of a clip the LLM reads: one rule for training, evaluation and inference."""

from __future__ import annotations

from typing import Any

import numpy as np


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """`count` indices from the first to the last, evenly spaced and truncated; all of them in a shorter clip.

    The only such rule: key frames of training and inference, frames of a contact sheet, samples of a short evaluation.
    """
    return np.linspace(0, num_frames - 1, min(count, num_frames), dtype=int).tolist()  # as the released code rounds


def first_frames(num_frames: int, count: int) -> list[int]:
    """The first `count` frame indices; all of them in a shorter clip."""
    return list(range(min(count, num_frames)))


def check_count(name: str, count: Any) -> int:
    """`count`, if it is a whole number from 1 on. Raises: ValueError naming the argument."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: expected a whole number from 1 on, got {count!r}")
    return count
