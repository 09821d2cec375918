"""`SafeTrainer`: the Trainer that all trainers of this package share.

It handles signals, losses that are not finite, samples that cannot be read and workers that die. All ranks come to the
same decisions.
"""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..arguments import BaseTrainingArguments, save_config
from ..data.tolerance import REJECTS, TolerantCollator, TolerantDataset
from .faults import SIGNALS, begin_worker, explained, signals_noted, workers_ended
from .saving import broken_weight, check_fits, mend, remove_partial, save_checkpoint

logger = logging.getLogger(__name__)

SKIPPED = "skipped_samples.jsonl"


class SafeTrainer(Trainer):
    """Trainer whose checkpoints are complete or absent, and which stops on SIGTERM and SIGUSR1 with one.

    Samples that cannot be read and micro-batches whose loss is not finite stop the run, or are skipped where the
    arguments say so (`bad_samples`, `nonfinite_loss`, and how many at most). What is skipped is counted and listed in
    output_dir/skipped_samples.jsonl: one line per sample that could not be read (step, id, reason), and one per
    micro-batch (step, rank, loss, loss parts, ids) that was skipped for the loss of some rank.

    Raises:
        ValueError: `args` are not this trainer's own arguments.
    """

    arguments_class: type[BaseTrainingArguments] = BaseTrainingArguments
    steps_depend_on_processes = False  # on their product with batch size and accumulation alone

    def __init__(self, model: Any = None, args: Any = None, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(model, self.checked(args), *arguments, **kwargs)
        self.stopped_by: signal.Signals | None = None  # the signal that ended the training
        # SAM 2's arguments have neither: it can skip nothing.
        self.skips_losses = getattr(self.args, "nonfinite_loss", "stop") == "skip"
        self.skips_samples = getattr(self.args, "bad_samples", "raise") == "skip"
        self.skipped = self.bad = 0  # micro-batches, and samples, of all ranks, since this process began
        self._rejects: list[dict[str, Any]] = []  # of this rank, not yet listed
        self._signal: signal.Signals | None = None  # that this rank was sent
        self.add_callback(_Agreement(self))

    @classmethod
    def checked(cls, args: Any) -> BaseTrainingArguments:
        """`args`, or the defaults for None. Raises: ValueError where they are not this trainer's own."""
        kind = cls.arguments_class
        if args is None or isinstance(args, kind):
            return kind() if args is None else args
        raise ValueError(
            f"`args`: expected {kind.__name__} ({kind.__module__}), which has all fields of "
            f"transformers.TrainingArguments and defaults of its own, got {type(args).__name__}"
        )

    @property
    def skipped_file(self) -> Path:
        return Path(self.args.output_dir) / SKIPPED

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if self.is_world_process_zero():
            remove_partial(self.args.output_dir)
        if resume_from_checkpoint is not None:
            check_fits(self, resume_from_checkpoint)
        with signals_noted(self._note_signal), self._workers_of_this_call():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, which would take one more step where a run is resumed from the checkpoint of its last one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; outside of a training no data-loading process is left afterwards."""
        with nullcontext() if self.is_in_train else self._workers_of_this_call():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _workers_of_this_call(self) -> Iterator[None]:
        try:
            with explained(self.args.output_dir), workers_ended():
                yield
        finally:
            getattr(self, "_eval_dataloaders", {}).clear()  # kept with `persistent_workers`, which have ended

    def _note_signal(self, number: int) -> None:
        self._signal = signal.Signals(number)

    def run(self, checkpoint: str | None = None) -> None:
        """A whole run: its settings into the output folder, the training, the results; then all processes leave.

        Raises:
            ValueError: `eval_only` without evaluation data.
        """
        if self.args.eval_only:
            self.only_evaluate(checkpoint)
        else:
            if self.is_world_process_zero():
                save_config(self.args)
            result = self.train(resume_from_checkpoint=checkpoint)
            if self.stopped_by is None:
                self.finish(result.metrics)
        # gloo now and then aborts a process that leaves while another still talks to it.
        self.accelerator.wait_for_everyone()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def only_evaluate(self, checkpoint: str | None) -> dict[str, float]:
        """The scores of the model as it was given, or of a checkpoint: into the output folder, and returned."""
        if self.eval_dataset is None:
            raise ValueError("`eval_only`: expected `eval_data`, there is none")
        if checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
        metrics = self.evaluate()
        self.log_metrics("eval", metrics)
        self.save_metrics("eval", metrics, combined=False)
        return metrics

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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in Trainer; then the learning rates are those of this run's schedule, which may be longer than the one
        that the checkpoint was written in: its last rate, 0 after a whole run, would hold for another step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.lr_scheduler is None:
            return
        before = _rates(self.lr_scheduler)
        self._renew_rates()
        now = _rates(self.lr_scheduler)
        if any(
            not math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12) for one, other in zip(before, now, strict=True)
        ):
            logger.warning(
                "the schedule of the learning rate is another one than in %s: the run resumes at %g instead of %g",
                checkpoint,
                max(now),
                max(before),
            )

    def _renew_rates(self) -> None:
        """Set the learning rates to those that the schedule has at its present step."""
        scheduler = self.lr_scheduler
        if isinstance(scheduler, LambdaLR):
            pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            rates = [base * rate(scheduler.last_epoch) for base, rate in pairs]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    # ---- data ----
    def get_train_dataloader(self) -> DataLoader:
        if not self.skips_samples:
            return super().get_train_dataloader()
        dataset, collator = self.train_dataset, self.data_collator
        try:
            self.train_dataset, self.data_collator = TolerantDataset(dataset), TolerantCollator(collator)
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def sampled_batches(self) -> DataLoader:
        """Batches of this rank for a trainer whose sampler yields whole batches and shares them out itself."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=partial(begin_worker, None),
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        for one in {loader, getattr(loader, "base_dataloader", loader)}:  # accelerate keeps the real one inside
            one.worker_init_fn = partial(begin_worker, one.worker_init_fn)
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for reject in inputs.pop(REJECTS, []):
            self._rejects.append({"step": self.state.global_step} | reject)
        return super()._prepare_inputs(inputs) if inputs else {}  # of a micro-batch no sample may be left

    # ---- losses ----
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss.

        Raises:
            FloatingPointError: naming the samples, when it is not finite.
        """
        loss, outputs = self.loss_and_outputs(model, dict(inputs))
        return (loss, outputs) if return_outputs else loss

    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The loss of a micro-batch, counted in the meter, and what the model returned. Each trainer has its own."""
        raise NotImplementedError

    def skips_batch(
        self, loss: float, parts: dict[str, float], sample_ids: list[str] | None, training: bool = True
    ) -> bool:
        """Whether all ranks skip this micro-batch, since the loss of one of them is not finite.

        Raises:
            FloatingPointError: it is not finite and may not be skipped, or too many were; naming the samples.
        """
        finite, step = math.isfinite(loss), self.state.global_step
        if not self.skips_losses or not training:
            if not finite:
                raise FloatingPointError(f"step {step}: loss {loss} ({parts}) of samples {sample_ids}{self._cause()}")
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

    def _cause(self) -> str:
        """Of a loss that is not finite: the weights, where they are the cause, and what to do."""
        name = broken_weight(self.model)
        return "" if name is None else f"; the weight {name} is not finite: {mend(self.state.global_step)}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            counts = {"skipped_batches": self.skipped, "bad_samples": self.bad}
            logs = logs | {name: count for name, count in counts.items() if count}
        super().log(logs, start_time)

    def evaluation_data(self, given: Any = None) -> Any:
        """The given data, or those of the run.

        Raises:
            ValueError: if there are neither.
        """
        found = self.eval_dataset if given is None else given
        if found is None:
            raise ValueError(
                "eval_data: expected data to evaluate on, got none; set `eval_data`, and `eval_strategy` or `do_eval` "
                "(with `eval_strategy: no` alone the data are not opened)"
            )
        return found

    # ---- agreement ----
    def _sums(self, *numbers: float) -> list[float]:
        """Over all ranks. A collective call: every rank must make it."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        dtype = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        return self.accelerator.reduce(torch.tensor(numbers, dtype=dtype, device=self.accelerator.device)).tolist()

    def _list(self, lines: list[dict[str, Any]]) -> None:
        """Append the lines of all ranks to the list of what was skipped. A collective call of every rank."""
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
            self.bad += int(bad)
        if self.skips_samples and self.bad > self.args.max_bad_samples:
            raise ValueError(
                f"{self.bad} samples could not be read, `max_bad_samples` is {self.args.max_bad_samples}: see "
                f"{self.skipped_file}"
            )
        if signalled:
            self.stopped_by = self._signal or SIGNALS[0]


def _rates(scheduler: Any) -> list[float]:
    optimizer = getattr(scheduler, "optimizer", None)
    return [float(group["lr"]) for group in optimizer.param_groups] if optimizer is not None else []


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
