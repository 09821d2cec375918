"""How long a training may be, and how large its model, for a budget of minutes."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path

import torch

from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from ..training.sa2va.trainer import Sa2VATrainer

FEWEST, MOST = 20, 5000  # steps
LARGER_FROM = 8  # minutes from which SAM 2 sees 256 pixels instead of 128
TIMED = 3  # steps, after one that is not timed


def seconds_per_step(trainer: Sa2VATrainer) -> float:
    """The time of a training step on this machine, by a few steps without an update of the weights."""
    batches = cycle(trainer.get_train_dataloader())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    start = 0.0
    for number in range(1 + TIMED):
        if number == 1:
            start = time.perf_counter()
        with torch.enable_grad():
            trainer.training_step(trainer.model, next(batches))
        trainer.model.zero_grad()
    return 1.15 * (time.perf_counter() - start) / TIMED  # the optimiser, and the evaluations between the steps


def steps_in(minutes: float, seconds: float) -> int:
    """How many steps of so many seconds a budget holds."""
    return int(min(MOST, max(FEWEST, 60 * minutes / seconds)))


def image_side(minutes: float, side: int) -> int:
    """The side of SAM 2's input in pixels: twice that of the small model where the budget is large."""
    return 2 * side if minutes >= LARGER_FROM else side


def enlarged(name: str | Path, side: int, output: Path) -> Path:
    """A copy of a model whose SAM 2 sees `side` pixels; no weight depends on that."""
    model = Sa2VAForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
    processor = Sa2VAProcessor.from_pretrained(name)
    model.config.grounding_config.image_size = processor.grounding_image_size = side
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return output
