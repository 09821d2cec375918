"""Metrics for `evaluate.load`: folders that it reads by path, offline.

import evaluate
from sa2va_hf.evaluation.modules import path_of
metric = evaluate.load(path_of("referring_iou"))
"""

from pathlib import Path

NAMES = ("referring_iou", "video_j_and_f", "revos", "box_accuracy")


def path_of(name: str) -> str:
    """The folder to give to `evaluate.load`. ValueError for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"metric {name!r}: expected one of {', '.join(NAMES)}")
    return str(Path(__file__).parent / name)
