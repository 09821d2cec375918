"""`Sam2Trainer`: transformers' Trainer over clips, for SAM 2 and SAM 3, with its own optimiser groups and scores.

Only hooks are overridden. Prompts are sampled with rng(seed, step, micro-batch): alike on all ranks, and alike in a
resumed run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ...checkpoints.card import HERE, facts_of_run, sam2_card
from ...checkpoints.files import CARD, TRAINER_STATE
from ...checkpoints.trackers import holds_sam3
from ...data.clips.dataset import ClipBatchSampler, collate
from ..meter import Meter
from ..safe_trainer import SafeTrainer
from .arguments import Sam2TrainingArguments
from .networks import network_of
from .schedules import OptionScheduler, parameter_groups
from .trainable import has_lora, merged_state
from .validation import score_clip

logger = logging.getLogger(__name__)

WEIGHTS, UNMERGED = "model.safetensors", "unmerged.safetensors"
PARTS = ("mask_loss", "dice_loss", "iou_loss", "score_loss")
COUNTS = ("batches", "objects", *PARTS)
PROMPTS = 1  # the stream of random numbers of the prompts


class Sam2Trainer(SafeTrainer):
    """Trains a `Sam2ClipModel` on a `ClipDataset`; `eval_dataset` is a `VosClips`.

    Logged with the loss: mask_loss, dice_loss, iou_loss and score_loss without their weights, summed over the frames
    and clicks of a clip; objects per step. Evaluated: J, F, J&F (means over all objects of all videos) and objects.
    A checkpoint holds config.json and model.safetensors, the stock network with LoRA merged; with LoRA, what a run is
    resumed from is beside it.
    """

    arguments_class = Sam2TrainingArguments
    steps_depend_on_processes = True  # the ranks' batches are of one dataset, accumulated ones may be of several

    def __init__(self, *args: Any, phases: int = 1, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", collate)
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(f"one process sees {self.args.n_gpu} GPUs: start one process per GPU with torchrun")
        self.train_sampler: ClipBatchSampler | None = None
        if self.train_dataset is not None:
            self.train_sampler = ClipBatchSampler(
                self.train_dataset,
                world_size=self.args.world_size,
                rank=self.args.process_index,
                seed=self._data_seed,
                phases=phases,
            )
        self.objects, self.micro = 1.0, 0
        self.meter = Meter(COUNTS)
        self.add_callback(_Epochs(self))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # ---- data ----
    def get_train_dataloader(self) -> DataLoader:
        """The sampler yields whole batches, since the size of a batch depends on the dataset."""
        return self.sampled_batches()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Tensor | int | None]:
        """The batches of a step, and from them what its losses are divided by: objects, averaged over all of its
        micro-batches on all ranks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        own = torch.tensor([sum(batch["masks"].shape[1] for batch in batches), len(batches)], dtype=torch.float32)
        objects, count = self.accelerator.reduce(own.to(self.args.device)).tolist()
        self.objects, self.micro = max(objects / max(count, 1), 1.0), 0
        return batches, items

    # ---- optimiser ----
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            sam, network = self.model.sam, network_of(self.model.encoder)
            decay = network.layer_decay(self.args.layer_decay) if self.args.layer_decay < 1 else None
            self.groups = parameter_groups(sam, self.args.options(network.image_encoder), decay)
            parameters = dict(sam.named_parameters())
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = [{"params": [parameters[name] for name in group.names]} for group in self.groups]
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> OptionScheduler:
        self.lr_scheduler = OptionScheduler(optimizer or self.optimizer, self.groups, num_training_steps)
        return self.lr_scheduler

    def _renew_rates(self) -> None:
        self.lr_scheduler.apply()

    # ---- loss ----
    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        names = inputs.pop("sample_ids")
        rng = np.random.default_rng((PROMPTS, self.args.seed, self.state.global_step, self.micro))
        self.micro += 1
        with self.compute_loss_context_manager():
            outputs = model(**inputs, rng=rng, objects=self.objects)
        numbers = torch.stack([outputs.loss.detach(), *(getattr(outputs, name) for name in PARTS)]).tolist()
        parts = dict(zip(PARTS, numbers[1:], strict=True))
        self.skips_batch(numbers[0], parts, names, model.training)  # raises: SAM 2's runs skip nothing
        self.meter.add({"batches": 1, "objects": inputs["masks"].shape[1]} | parts)
        return outputs.loss, outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, written by all ranks at the same step
            totals = self.meter.totals(self.accelerator)
            batches = max(totals.pop("batches"), 1)
            logs = logs | {name: total / batches for name, total in totals.items()}
            self.meter = Meter(COUNTS)
        super().log(logs, start_time)

    # ---- evaluation ----
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """J, F and J&F of all objects of all videos; the ranks share the videos.

        The ranks add up their sums after every round of one video each: one that has the longer videos would else keep
        the others waiting for longer than the process group's time-out (`ddp_timeout`).
        """
        clips = self.evaluation_data(eval_dataset)
        encoder, sums = self.model.encoder, np.zeros(3)
        was_training = self.model.training
        self.model.eval()
        with self.compute_loss_context_manager():
            for first in range(0, len(clips), self.args.world_size):
                index = first + self.args.process_index
                scores = score_clip(encoder, clips[index], self.args.device) if index < len(clips) else []
                sums += self._sums(*(sum(score[name] for score in scores) for name in ("J", "F")), len(scores))
        self.model.train(was_training)
        j, f, objects = sums.tolist()
        if not objects:
            raise ValueError("no object of the videos in `eval_data` can be scored: they need three annotated frames")
        values = {"J": j / objects, "F": f / objects, "J&F": (j + f) / 2 / objects, "objects": objects}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- saving and loading ----
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sam = self.model.sam
        _write(merged_state(sam), folder / WEIGHTS)
        if has_lora(sam):
            _write(sam.state_dict(), folder / UNMERGED)
        self.model.config.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card that `push_to_hub` uploads: ours, from the run's settings, steps and scores."""
        folder = Path(self.args.output_dir)
        self.state.save_to_json(str(folder / TRAINER_STATE))
        model_id = getattr(self, "hub_model_id", None) or HERE
        title = folder.absolute().name if model_id == HERE else model_id.split("/")[-1]
        card = sam2_card(facts_of_run(folder), title=title, model_id=model_id, is_sam3=holds_sam3(folder))
        (folder / CARD).write_text(card, encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        sam, folder = self.model.sam, Path(resume_from_checkpoint)
        file = folder / (UNMERGED if has_lora(sam) else WEIGHTS)
        if not file.is_file():
            raise ValueError(f"{folder}: no {file.name}; was it written by a run with the same `train_...` arguments?")
        sam.load_state_dict(load_file(file))

    def _load_best_model(self) -> None:
        logger.info("loading the best checkpoint, %s", self.state.best_model_checkpoint)
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _write(state: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file, {"format": "pt"})


class _Epochs(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, trainer: Sam2Trainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.train_sampler.set_epoch(int(state.epoch or 0))
