"""A lesson: a training loop of its own on scenes that are drawn as it runs, for what masks alone teach slowly.

Step `n` is a pure function of (lesson, seed, n): a resumed lesson continues with the scenes it would have had.
"""

from __future__ import annotations

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .muon import Muon

logger = logging.getLogger(__name__)


class Lesson(ABC):
    """One lesson about a model.

    Subclasses name the modules that are trained (`trained`), hold further ones that are thrown away afterwards
    (`helpers`, for example the heads that read labels off a token), and compute the loss of a step.
    """

    name = "lesson"

    def __init__(self, model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor) -> None:
        self.model, self.processor = model, processor
        self.helpers = nn.ModuleDict()

    @abstractmethod
    def trained(self) -> Iterable[nn.Module]:
        """Modules of the model whose weights are trained."""

    @abstractmethod
    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step on scenes drawn with `rng`, and what the log shows of it."""

    def prepare(self, folder: Path | None) -> None:
        """What has to be there before the first step; `folder` is the stage's, None where nothing is kept."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, each parameter once."""
        modules = [*self.trained(), self.helpers]
        return list({id(p): p for module in modules for p in module.parameters()}.values())

    def matrices(self) -> list[nn.Parameter]:
        """Those of `parameters` that Muon updates: the weights of hidden linear layers."""
        linear = [m for module in self.trained() for m in module.modules() if type(m) is nn.Linear]
        return list({id(m.weight): m.weight for m in linear if m is not self.model.mllm.lm_head}.values())

    def run(
        self,
        folder: Path,
        steps: int,
        learning_rate: float,
        seed: int = 0,
        warmup: int = 30,
        weight_decay: float = 0.05,
        save_every: int = 100,
        log_every: int = 25,
        stop_at: float | None = None,
    ) -> None:
        """Train for `steps` steps with a cosine to zero; continues from `folder/state.pt` where there is one.

        stop_at: seconds since the epoch (`time.time()`) at which the lesson stops early, after saving its state.
        """
        self.prepare(folder)
        parameters = self.parameters()
        matrices = [p for p in self.matrices() if p.requires_grad]
        chosen = set(map(id, matrices))
        others = [p for p in parameters if id(p) not in chosen]
        optimizer = Muon(matrices, others, lr=learning_rate, weight_decay=weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        state, first = folder / "state.pt", 0
        if state.exists():
            first = self._load(torch.load(state, weights_only=True), optimizer, schedule)
        started = time.process_time()
        for step in range(first, steps):
            loss, shown = self.loss(random.Random(f"{self.name}/{seed}/{step}"))
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if step % log_every == 0 or step == steps - 1:
                spent = (time.process_time() - started) / (step - first + 1)
                text = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
                logger.info(
                    "%s: step %d, loss %.3f, %s (%.2f CPU s a step)", self.name, step, loss.item(), text, spent
                )
            if (step + 1) % save_every == 0 or step == steps - 1:
                self._save(state, step + 1, optimizer, schedule)
            if stop_at is not None and time.time() > stop_at:
                self._save(state, step + 1, optimizer, schedule)
                logger.info("%s: stopped after step %d", self.name, step)
                return

    def _save(self, path: Path, step: int, optimizer: Any, schedule: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"step": step, "model": self.model.state_dict(), "helpers": self.helpers.state_dict()}
        parts |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save(parts, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def _load(self, parts: dict[str, Any], optimizer: Any, schedule: Any) -> int:
        self.model.load_state_dict(parts["model"])
        self.helpers.load_state_dict(parts["helpers"])
        optimizer.load_state_dict(parts["optimizer"])
        schedule.load_state_dict(parts["schedule"])
        logger.info("%s: resumed at step %d", self.name, parts["step"])
        return int(parts["step"])
