"""What goes wrong while a run is under way: signals, losses that are not finite, bad samples, workers that die.

`SafeTrainer` is the Trainer that copes with them; `Sa2VATrainer` is one. All ranks come to the same decisions.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..arguments import save_config
from ..data.tolerance import REJECTS, TolerantCollator, TolerantDataset
from .saving import check_fits, remove_partial, save_checkpoint

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SKIPPED = "skipped_samples.jsonl"


class SafeTrainer(Trainer):
    """Trainer whose checkpoints are whole or not there, and which stops on SIGTERM and SIGUSR1 with one.

    Its arguments are `Sa2VATrainingArguments`: `nonfinite_loss`, `max_skipped`, `bad_samples`, `max_bad_samples`.
    What is left out is counted and listed in output_dir/skipped_samples.jsonl: one line per sample that could not be
    read (step, id, reason), and one per micro-batch (step, rank, loss, loss parts, ids) whose loss was not finite or
    that was left out with one.
    """

    steps_depend_on_processes = False  # on their product with batch size and accumulation alone

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopped_by: signal.Signals | None = None  # the signal that ended the training
        self.skipped = self.bad = 0  # micro-batches, and samples, of all ranks, since this process began
        self._rejects: list[dict[str, Any]] = []  # of this rank, not yet listed
        self._signal: signal.Signals | None = None  # that this rank was sent
        self.add_callback(_Agreement(self))

    @property
    def skipped_file(self) -> Path:
        return Path(self.args.output_dir) / SKIPPED

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if self.is_world_process_zero():
            remove_partial(self.args.output_dir)
        if resume_from_checkpoint is not None:
            check_fits(self, resume_from_checkpoint)
        with signals_noted(self._note_signal), explained(self.args.output_dir):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _note_signal(self, number: int) -> None:
        self._signal = signal.Signals(number)

    def run(self, checkpoint: str | None) -> None:
        """All of a run: its settings into the output folder, the training, the results, and all processes leave."""
        if self.is_world_process_zero():
            save_config(self.args)
        result = self.train(resume_from_checkpoint=checkpoint)
        if self.stopped_by is None:
            self.finish(result.metrics)
        # gloo now and then aborts a process that leaves while another still talks to it.
        self.accelerator.wait_for_everyone()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def finish(self, metrics: dict[str, float]) -> None:
        """The model, and the scores of training and of an evaluation, into the output folder. A run that was stopped
        by a signal is not finished."""
        self.save_model()
        self.save_state()
        self.log_metrics("train", metrics)
        self.save_metrics("train", metrics)
        if self.eval_dataset is not None:
            metrics = self.evaluate()
            self.log_metrics("eval", metrics)
            self.save_metrics("eval", metrics)

    # ---- checkpoints ----
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save_checkpoint(self)

    # ---- data ----
    def get_train_dataloader(self) -> DataLoader:
        if self.args.bad_samples == "raise":
            return super().get_train_dataloader()
        dataset, collator = self.train_dataset, self.data_collator
        try:
            self.train_dataset, self.data_collator = TolerantDataset(dataset), TolerantCollator(collator)
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        for one in {loader, getattr(loader, "base_dataloader", loader)}:  # accelerate keeps the real one inside
            one.worker_init_fn = partial(begin_worker, one.worker_init_fn)
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for reject in inputs.pop(REJECTS, []):
            self._rejects.append({"step": self.state.global_step} | reject)
        return super()._prepare_inputs(inputs)

    # ---- losses that are not finite ----
    def left_out(
        self, loss: float, parts: dict[str, float], sample_ids: list[str] | None, training: bool = True
    ) -> bool:
        """Whether all ranks leave out this micro-batch, since the loss of one of them is not finite.

        Raises:
            FloatingPointError: it is not finite and may not be left out, or too many were; naming the samples.
        """
        finite, step = math.isfinite(loss), self.state.global_step
        if self.args.nonfinite_loss == "stop" or not training:
            if not finite:
                raise FloatingPointError(f"step {step}: loss {loss} ({parts}) of samples {sample_ids}")
            return False
        if not self._sums(int(not finite))[0]:
            return False
        line = {"step": step, "rank": self.args.process_index, "loss": str(loss), "finite": finite}
        self._list([line | {"parts": {name: str(part) for name, part in parts.items()}, "ids": sample_ids}])
        self.skipped += 1
        if self.skipped > self.args.max_skipped:
            raise FloatingPointError(
                f"step {step}: loss {loss} ({parts}) of samples {sample_ids}; {self.skipped} micro-batches had a loss "
                f"that is not finite on some rank, `max_skipped` is {self.args.max_skipped}: see "
                f"{self.skipped_file}"
            )
        return True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            counts = {"skipped_batches": self.skipped, "bad_samples": self.bad}
            logs = logs | {name: count for name, count in counts.items() if count}
        super().log(logs, start_time)

    # ---- agreement ----
    def _sums(self, *numbers: int) -> list[int]:
        """Over all ranks. Every rank must ask."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        return self.accelerator.reduce(torch.tensor(numbers, device=self.accelerator.device)).tolist()

    def _list(self, lines: list[dict[str, Any]]) -> None:
        """Append the lines of all ranks to the file of what was left out. Every rank must call."""
        lines = gather_object(lines) if self.accelerator.num_processes > 1 else lines
        if self.is_world_process_zero():
            with open(self.skipped_file, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def agree(self) -> None:
        """At the end of a step: whether some rank was signalled or met bad samples; then all act alike."""
        signalled, bad = self._sums(int(self._signal is not None), len(self._rejects))
        if bad:
            self._list(self._rejects)
            self._rejects = []
            self.bad += bad
        if self.bad > self.args.max_bad_samples:
            raise ValueError(
                f"{self.bad} samples could not be read, `max_bad_samples` is {self.args.max_bad_samples}: see "
                f"{self.skipped_file}"
            )
        if signalled:
            self.stopped_by = self._signal or SIGNALS[0]


class _Agreement(TrainerCallback):
    """Stops a signalled run at the end of a step, with a checkpoint and without an evaluation."""

    def __init__(self, trainer: SafeTrainer) -> None:
        self.trainer = trainer
        self.kept: tuple[bool, int | None] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.agree()
        if self.trainer.stopped_by is not None:
            logger.warning("%s: step %d is the last one", self.trainer.stopped_by.name, state.global_step)
            control.should_save, control.should_training_stop, control.should_evaluate = True, True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stopped_by is not None and self.kept is None:
            # The run is not over: at its end Trainer would load the best model and, with save_total_limit = 1, delete
            # the checkpoint that was just written.
            self.kept = args.load_best_model_at_end, args.save_total_limit
            args.load_best_model_at_end, args.save_total_limit = False, None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stopped_by is not None:  # in the middle of an epoch
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kept is not None:
            args.load_best_model_at_end, args.save_total_limit = self.kept


@contextmanager
def signals_noted(note: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, `SIGNALS` are passed to `note` instead of ending the process. Only the main thread can ask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _: note(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """In a loading process: signals that are sent to all processes of a job are the main process's to act on.

    Otherwise the workers end at once, and with them the step that is to be finished.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if then is not None:
        then(worker)


@contextmanager
def explained(output_dir: str) -> Iterator[None]:
    """Says what to do about a loading process that died: torch says only that it did."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"{str(error).strip()} A process that loads samples was ended from outside, usually for want of memory: "
            "lower `dataloader_num_workers` or `dataloader_prefetch_factor`, or find the sample with "
            f"`--dataloader_num_workers 0`. The checkpoints in {output_dir} are untouched: go on with "
            "--resume_from_checkpoint auto"
        ) from error
