"""`DualLoopTrainer`: a Sa2VA run whose micro-batches are of pairs, or supervised ones.

Everything random about a pair follows from the pair and the epoch, so that neither the number of processes nor an
interruption changes it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..ema import Ema
from ..meter import Meter
from ..sa2va.trainer import Sa2VATrainer
from .arguments import DualLoopTrainingArguments
from .batches import CAPTIONS, PAIRS, LoopBatches, LoopCollator, LoopDataset
from .model import COUNTS, LOSSES, DualLoopModel
from .surgery import combine
from .validation import cross_frame_scores
from .watch import CaptionWatch, caption_counts

logger = logging.getLogger(__name__)

SUMS = ("loops", "captions", "caption_tokens", "distinct", "cosine", "surgeries", *LOSSES, *COUNTS)


class DualLoopTrainer(Sa2VATrainer):
    """Trains a `DualLoopModel` on a `LoopDataset`; `eval_dataset` is a `PairDataset`.

    Logged with the loss, over all ranks and the micro-batches of pairs since the last log:
        loop_...: the loss parts of both loops, with their weights, per micro-batch. loops: such micro-batches.
        caption_length: tokens of a caption. distinct_tokens: share of different tokens in one. same_caption: share of
        the regions that the commonest caption stands for. seg_emission: how often [SEG] comes first where it belongs.
        cross_cIoU: of the masks that the captions led to. agreement: how often the student's likeliest token is the
        teacher's. With gradient surgery, gradient_cosine: of the two losses.
    Supervised micro-batches are logged as in `Sa2VATrainer`. Evaluated: see `validation.py`.

    A checkpoint holds what one of `Sa2VATrainer` does, of the student, and the teacher in `ema*.safetensors`.

    Args:
        supervised_share: of the micro-batches.
    """

    arguments_class = DualLoopTrainingArguments
    steps_depend_on_processes = True  # which pairs fill a batch, and which samples lie beside them

    def __init__(
        self,
        model: DualLoopModel,
        args: DualLoopTrainingArguments,
        data_collator: LoopCollator,
        train_dataset: LoopDataset | None = None,
        eval_dataset: Any = None,
        supervised_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        args.refuse_for(model.settings)
        kwargs.setdefault("compute_metrics", None)
        super().__init__(model, args, data_collator, None, eval_dataset, **kwargs)
        self.train_dataset, self.loop_settings = train_dataset, model.settings
        self.train_sampler = None
        if train_dataset is not None:
            self.train_sampler = LoopBatches(
                train_dataset,
                args.per_device_train_batch_size,
                supervised_share,
                world_size=args.world_size,
                rank=args.process_index,
                seed=args.seed if args.data_seed is None else args.data_seed,
            )
        self.ema: Ema | None = None  # the teacher, from the first step on
        self.loop_meter = Meter(SUMS)
        settings = model.settings
        decode = self.processing_class.tokenizer.decode
        self.watch = CaptionWatch(settings.collapse_share, settings.collapse_regions, settings.on_collapse, decode)
        self.add_callback(_Teacher(self))

    def _unwrapped(self) -> nn.Module:
        return self.model.base

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.ema = None  # of this training
        return super().train(*args, **kwargs)

    # ---- data ----
    def get_train_dataloader(self) -> DataLoader:
        """The sampler yields whole batches, since a micro-batch is of one kind on all ranks."""
        return self.sampled_batches()

    # ---- loss ----
    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Of a supervised micro-batch as in `Sa2VATrainer`, else of the loops."""
        if PAIRS not in inputs:
            return super().loss_and_outputs(model, inputs)
        losses = self._loops(model, inputs)
        if self.skips_batch(losses["loss"].item(), self._note(losses), inputs[PAIRS]["sample_ids"], model.training):
            return self._no_loss(model), None
        return losses["loss"], losses

    def _loops(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        captions = self.captions(model, inputs[PAIRS])
        self.loop_meter.add(caption_counts(captions))
        return model(pairs=inputs[PAIRS], captions=captions, captioned=inputs.get(CAPTIONS))

    def _note(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Count a micro-batch; its loss parts. One transfer for all of its numbers."""
        names = (*LOSSES, *COUNTS)
        values = torch.stack([losses[name].detach().double() for name in names]).tolist()
        found = dict(zip(names, values, strict=True))
        if all(map(math.isfinite, values)):
            self.loop_meter.add({"loops": 1} | found)
        return {name: found[name] for name in LOSSES}

    def captions(self, model: nn.Module, pairs: dict[str, Any]) -> list[Tensor]:
        """The ids of each pair's caption: the given one, or the teacher's."""
        given = pairs["captions"]
        if all(one is not None for one in given) and not self.is_fsdp_enabled:
            return given
        written = self.written(model, pairs["describe"])
        self.watch.add([one for one, known in zip(written, given, strict=True) if known is None])
        return [one if known is None else known for one, known in zip(written, given, strict=True)]

    def written(self, model: nn.Module, describe: dict[str, Any]) -> list[Tensor]:
        """What the teacher says about regions. FSDP gathers weights by forward calls of what it has wrapped."""
        caller = model if self.is_fsdp_enabled else self.model
        was_training = self.model.training
        caller.eval()
        with torch.no_grad(), self.ema.applied(self.model.sa2va):
            captions = caller(write=describe, may_end_early=not self.is_fsdp_enabled)
            self._reshard()
        caller.train(was_training)
        return captions

    def _reshard(self) -> None:
        """Let FSDP2 gather the student's weights anew: those that it keeps gathered are the teacher's."""
        if self.is_fsdp_enabled:
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    # ---- gradient surgery ----
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in Trainer; with `gradient_surgery` every micro-batch reduces its own gradients over the ranks, since
        those of the two losses are combined afterwards."""
        if not self.loop_settings.gradient_surgery:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        with self._without_reduction(model), self.compute_loss_context_manager():
            if CAPTIONS in inputs:
                losses = self._loops(model, inputs)
                self.skips_batch(losses["loss"].item(), self._note(losses), inputs[PAIRS]["sample_ids"])
                found = self._combined([losses["first"], losses["second"]], weights)
                loss = losses["loss"].detach()
            else:
                loss = self.compute_loss(model, inputs)
                (found,) = self._gradients([loss], weights)
        for name, gradient in found.items():
            gradient = gradient / self.current_gradient_accumulation_steps
            weight = weights[name]
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        return loss.detach() / self.current_gradient_accumulation_steps

    @contextmanager
    def _without_reduction(self, model: nn.Module) -> Iterator[None]:
        if not hasattr(model, "no_sync"):
            yield
            return
        with model.no_sync():
            yield

    def _combined(self, losses: list[Tensor], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        settings = self.loop_settings
        first, second = self._gradients(losses, weights)
        found, overlap = combine(first, second, settings.caption_weight, settings.surgery_on_conflict_only)
        self.loop_meter.add({"cosine": overlap.cosine, "surgeries": 1})
        return found

    def _gradients(self, losses: list[Tensor], weights: dict[str, nn.Parameter]) -> list[dict[str, Tensor]]:
        """Of each loss, by name, averaged over the ranks; what a loss does not reach on any rank is missing."""
        found = []
        for number, loss in enumerate(losses):
            keep = number + 1 < len(losses)
            own = torch.autograd.grad(loss, list(weights.values()), retain_graph=keep, allow_unused=True)
            found.append(self._averaged(dict(zip(weights, own, strict=True)), weights))
        return found

    def _averaged(self, gradients: dict[str, Tensor | None], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        if self.accelerator.num_processes == 1:
            return {name: gradient for name, gradient in gradients.items() if gradient is not None}
        reached = self._sums(*(int(gradient is not None) for gradient in gradients.values()))
        averaged = {}
        for (name, gradient), ranks in zip(gradients.items(), reached, strict=True):
            if ranks:
                own = torch.zeros_like(weights[name]) if gradient is None else gradient
                averaged[name] = self.accelerator.reduce(own, "mean")
        return averaged

    # ---- log ----
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, written by all ranks at the same step
            logs = logs | loop_figures(self.loop_meter.totals(self.accelerator))
            self.loop_meter = Meter(SUMS)
            several = self.accelerator.num_processes > 1
            share = self.watch.check(self.state.global_step, gather_object if several else lambda seen: seen)
            logs |= {} if share is None else {"same_caption": share}
        super().log(logs, start_time)

    # ---- evaluation ----
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Cross-frame scores of the student, see `validation.py`; the ranks share the pairs."""
        pairs = self.evaluation_data(eval_dataset)
        was_training = self.model.training
        caller = self.model_wrapped if self.is_fsdp_enabled else self.model
        caller.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            found = cross_frame_scores(self, caller, pairs)
        caller.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- saving and loading ----
    @contextmanager
    def _student(self) -> Iterator[None]:
        """While this lasts, `self.model` is the Sa2VA model, which is what is saved, loaded and published."""
        whole, self.model = self.model, self.model.sa2va
        try:
            yield
        finally:
            self.model = whole

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is not None:
            state_dict = {name.removeprefix("sa2va."): value for name, value in state_dict.items()}
        with self._student():
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._student():
            super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with self._student():
            super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.ema is not None and (self.is_fsdp_enabled or self.args.process_index == 0):
            state = {name: _local(average).cpu().contiguous() for name, average in self.ema.state_dict().items()}
            save_file(state, self._ema_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in Trainer, and the teacher; that of a new run is the student as it begins."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.ema = Ema(self.model.sa2va, self.loop_settings.ema_decay)
        file = self._ema_file(checkpoint)
        if not file.is_file():
            raise ValueError(f"{checkpoint}: no {file.name}, the teacher; was it written by another trainer?")
        saved, own = load_file(file), {name: _local(one) for name, one in self.ema.state_dict().items()}
        if different := sorted(saved.keys() ^ own.keys()):
            raise ValueError(
                f"{file}: expected the teacher of this run's trained weights, {len(different)} of them differ, "
                f"{different[0]} for example; restore the `train_...` and `lora_...` arguments"
            )
        for name, average in own.items():
            average.copy_(saved[name])

    def _ema_file(self, folder: str) -> Path:
        return Path(folder) / (
            f"ema-{self.args.process_index}.safetensors" if self.is_fsdp_enabled else "ema.safetensors"
        )


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 has spread over the ranks; else all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def loop_figures(sums: dict[str, float]) -> dict[str, float]:
    """What the log shows of micro-batches of pairs, from their sums; nothing where there were none."""
    if not sums["loops"]:
        return {}
    figures = {f"loop_{name}": sums[name] / sums["loops"] for name in LOSSES if sums[name]}
    return figures | {
        "loops": sums["loops"],
        "caption_length": sums["caption_tokens"] / sums["captions"],
        "distinct_tokens": sums["distinct"] / sums["captions"],
        "seg_emission": sums["seg_said"] / sums["seg_total"],
        "cross_cIoU": sums["intersection"] / max(sums["union"], 1),
        "agreement": sums["agreed"] / sums["tokens"],
        **({"gradient_cosine": sums["cosine"] / sums["surgeries"]} if sums["surgeries"] else {}),
    }


class _Teacher(TrainerCallback):
    """Moves the teacher after every step of the optimizer."""

    def __init__(self, trainer: DualLoopTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.loop_meter = Meter(SUMS)
        trainer.ema = trainer.ema or Ema(trainer.model.sa2va, trainer.loop_settings.ema_decay)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.ema.update(self.trainer.model.sa2va)
