"""A progress bar that shows the loss, in place of a line of numbers per log."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback


class LossBar(ProgressCallback):
    """One bar for the whole run: the loss, and the cIoU of the last evaluation where there is one.

    `ProgressCallback` prints every log as a dictionary and opens a second bar for each evaluation.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        names = {"loss": "loss", "eval_cIoU": "cIoU"}
        self.shown |= {shown: f"{logs[name]:.3f}" for name, shown in names.items() if name in (logs or {})}
        if self.training_bar is not None and self.shown:
            self.training_bar.set_postfix(self.shown)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No bar of its own."""
