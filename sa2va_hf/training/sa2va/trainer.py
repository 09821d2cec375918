"""`Sa2VATrainer`: transformers' Trainer with our order of data, our loss parts in the log and mask scores.

Only hooks are overridden, never the loop. What they keep: a run that was killed and resumed sees the same samples,
uses the same random points and logs the same losses as one that was not.
"""

from __future__ import annotations

import logging
import re
import time
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from ...arguments import Sa2VATrainingArguments
from ...data.sampler import Sa2VASampler
from ...model.configuration_sa2va import IGNORE_INDEX
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration, Sa2VAOutput
from ...model.processing_sa2va import Sa2VAProcessor
from ..meter import Meter
from ..progress import LossBar
from ..safe_trainer import SafeTrainer
from ..saving import mend
from .contrastive import contrastive_over_ranks
from .flops import StepFlops
from .given import as_dataset, default_collator, processor_of, refuse_undecided, settle_metric
from .progress import CONTRASTIVE, COUNTS, batch_counts, box_counts, logged, mask_counts
from .pushing import push_checkpoint, push_run
from .scores import first_tokens, predicted_ids, sample_sums, scores
from .speed import RecomputeEvery
from .trainable import mark_zero3_leaves, name_fsdp_units

logger = logging.getLogger(__name__)

MODEL_PARTS = tuple(item.name for item in fields(Sa2VAOutput) if item.name.endswith("_loss"))
PARTS = (*MODEL_PARTS, CONTRASTIVE)


class Sa2VATrainer(SafeTrainer):
    """Trains a Sa2VA model, plain or wrapped by peft, on a `Sa2VADataset`.

    Logged with the loss, over all ranks and the steps since the last log:
        lm_loss: mean over micro-batches. mask_loss, dice_loss, ...: mean over the micro-batches that have masks, whose
        share is mask_batches; so loss = lm_loss + mask_batches * (mask_loss + dice_loss + ...). box_loss: mean over
        those with masks that are known by boxes alone. contrastive_loss (with `contrastive_weight`): mean over
        micro-batches. masks, boxes: masks (an object on a frame) per step.
        padding_efficiency: real tokens / tokens after padding.
        tokens_per_second (real ones), samples_per_second, masks_per_second: wall time, without evaluation and saving.
        With `count_flops`, tflops: of one device, per second; mfu: its share of the bfloat16 peak (`flops.py`).
        data_wait: share of that time in which a step waited for its samples. memory_gib: the device's peak so far.
    Evaluated: see `scores.py`; `metric_for_best_model` may name any of them.

    Args:
        model: as `make_trainable` returns it.
        data_collator: default: `Sa2VACollator` with the processor.
        train_dataset, eval_dataset: `Sa2VADataset`, or the Arrow rows of a prepared dataset, which become one.
        processing_class: the processor; default: that of the collator or of a dataset.

    Raises:
        ValueError: a model in which every weight would be trained; a dataset or arguments of another class.
    """

    arguments_class = Sa2VATrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Sa2VATrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Sa2VAProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_undecided(model)
        args = self.checked(args)
        processing_class = processing_class or processor_of(data_collator, train_dataset, eval_dataset)
        kwargs.setdefault("compute_metrics", scores)
        given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(
            model=model,
            args=args,
            **{name: as_dataset(one, name, processing_class, args) for name, one in given.items()},
            data_collator=data_collator or default_collator(processing_class, args.contrastive_weight > 0),
            processing_class=processing_class,
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs: start one process per GPU with accelerate launch "
                "--multi_gpu, or show it a single one with CUDA_VISIBLE_DEVICES=0"
            )
        if self.args.contrastive_weight and not getattr(self.data_collator, "classes", False):
            raise ValueError("`contrastive_weight`: expected batches with classes; use Sa2VACollator(classes=True)")
        if self.compute_metrics is scores:
            settle_metric(self.args, self.eval_dataset)
        mark_zero3_leaves(self.model)
        if self.is_fsdp_enabled:
            name_fsdp_units(self.model, self.accelerator.state.fsdp_plugin)
        self.train_sampler: Sa2VASampler | None = None
        self.meter = Meter((*COUNTS, *PARTS))
        self.step_flops: StepFlops | None = None
        self.add_callback(_Clock(self))
        self.add_callback(RecomputeEvery(self.args.recompute_every))
        if self.args.progress == "bar" and not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)
        trainable, total = (get_model_param_count(self.model, trainable_only=only) for only in (True, False))
        logger.info("%s of %s parameters are trained", f"{trainable:,}", f"{total:,}")

    # ---- data ----
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self.train_sampler = Sa2VASampler(
            dataset.lengths,
            dataset.modalities,
            batch_size=self.args.per_device_train_batch_size,
            world_size=self.args.world_size,
            accumulation=self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            entries_fn=dataset.entry_indices,
        )
        return self.train_sampler

    # ---- optimiser ----
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them: the released training decays norms and biases as well."""
        return [name for name, _ in model.named_parameters()]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        scales = self.args.learning_rate_scales
        if self.optimizer is None and scales:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(scaled_groups(self.model, self.args.learning_rate, scales), **options)
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.args.weight_decay
        return super().create_optimizer(*args, **kwargs)

    # ---- loss ----
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        """A step's micro-batches. How long they were waited for is measured, and what is in them counted."""
        start = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.add({"waiting": time.perf_counter() - start})
        if self.args.loss_normalization == "global":
            amounts = torch.tensor([self._amounts(batch) for batch in batches], dtype=torch.float64).sum(0)
            self._step_amounts = self.accelerator.reduce(amounts.to(self.accelerator.device)).tolist()
        return batches, None

    def _amounts(self, inputs: dict[str, Any]) -> tuple[int, int, int]:
        """Answer tokens, masks as the mask losses weigh them, and those that boxes teach, in a micro-batch."""
        if "labels" not in inputs:  # no sample of it could be read
            return 0, 0, 0
        limit = self._unwrapped().config.objects_per_frame
        masks, boxes = (
            sum(limit or objects for frames in counts(inputs) for objects in frames)
            for counts in (mask_counts, box_counts)
        )
        return int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum()), masks, boxes

    def _normalized(self, parts: dict[str, Tensor | None], inputs: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch such that the step's is the mean over all tokens, and all masks, of all ranks.

        Trainer divides by the number of micro-batches and the engine averages over ranks; both are undone here.
        """
        shares = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        tokens, masks, boxes = (
            shares * own / max(everyone, 1)
            for own, everyone in zip(self._amounts(inputs), self._step_amounts, strict=True)
        )
        factors = dict.fromkeys(parts, masks) | {"lm_loss": tokens, "box_loss": boxes}
        return sum(part * factors[name] for name, part in parts.items() if part is not None)

    def _unwrapped(self) -> nn.Module:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        if not inputs:
            return self._loss_of_nothing(model), None
        inputs["return_logits"] = False  # they are not used
        sample_ids = inputs.pop("sample_ids", None)
        classes = self._classes(inputs, model.training)
        loss, outputs = Trainer.compute_loss(self, model, inputs, return_outputs=True)
        parts = loss_parts(outputs)
        if model.training and self.args.loss_normalization == "global":
            loss = self._normalized(parts, inputs)
        parts[CONTRASTIVE] = None if classes is None else self._contrastive(outputs, *classes)
        loss = loss if classes is None else loss + parts[CONTRASTIVE]
        zero = loss.new_zeros(())
        tokens = inputs["attention_mask"].sum()
        numbers = [loss, tokens, *(zero if part is None else part for part in parts.values())]
        # One transfer for all: reading them one by one would wait for the device each time.
        value, tokens, *values = torch.stack([number.detach().double() for number in numbers]).tolist()
        parts = dict(zip(parts, values, strict=True))
        if self.skips_batch(value, parts, sample_ids, model.training):
            del loss, outputs
            return self._no_loss(model), None
        if model.training:
            masks, boxes = (sum(map(sum, counts(inputs))) for counts in (mask_counts, box_counts))
            samples = len(inputs["input_ids"]) if sample_ids is None else len(sample_ids)
            padded = inputs["input_ids"].numel()
            self.meter.add(
                batch_counts(parts, masks=masks, boxes=boxes, tokens=tokens, padded=padded, samples=samples)
            )
            if self.args.count_flops:
                self.step_flops = self.step_flops or StepFlops(self._unwrapped())
                self.meter.add({"flops": self.step_flops.count(inputs)})
        return loss, outputs

    def _classes(self, inputs: dict[str, Any], training: bool) -> tuple[list[int | None], list[str]] | None:
        """The class of each [SEG] and the classes' names, with a contrastive term; the model is given neither."""
        index, names = inputs.pop("class_index", None), inputs.pop("class_names", None)
        if training and self.args.contrastive_weight:
            return index, names
        for name in ("class_ids", "class_mask"):
            inputs.pop(name, None)
        return None

    def _contrastive(self, outputs: Sa2VAOutput, index: list[int | None], names: list[str]) -> Tensor:
        known = [seg for seg, one in enumerate(index) if one is not None]
        rows, classes = [index[seg] for seg in known], outputs["class_embeddings"]
        loss = contrastive_over_ranks(
            outputs["seg_embeddings"][known],
            classes[rows],
            [names[row] for row in rows],
            self.args.contrastive_temperature,
            gather_object,
            self.args.process_index,
            self.args.world_size,
        )
        # A batch whose objects are all of unknown class still differentiates what its classes went through.
        return self.args.contrastive_weight * loss + 0.0 * classes.sum()

    def _loss_of_nothing(self, model: nn.Module) -> Tensor:
        """The loss, 0, of a micro-batch without a sample that could be read; all ranks make the same collective calls
        as for one with samples."""
        loss = self._no_loss(model)
        skipped = self.skips_batch(0.0, {}, [], model.training)
        return self._no_loss(model) if skipped else loss

    def _no_loss(self, model: nn.Module) -> Tensor:
        """A loss of 0 with a gradient of 0 for every trained weight, which all ranks and engines can reduce.

        It comes from a few words without an image: a loss that is not finite, times 0, has no finite gradient.
        """
        device = self.args.device
        words = torch.arange(4, device=device).unsqueeze(0)  # in every vocabulary
        empty = [torch.zeros(0, 1, 1, 1, dtype=torch.bool, device=device)]
        given = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words, "mask_labels": empty}
        outputs = model(**given, return_logits=False)
        # ZeRO-3 expects the order in which a forward's outputs are differentiated to be the same on every rank: where
        # other batches' losses are sums of the parts, so is this one.
        of_parts = self.args.loss_normalization == "global"
        loss = sum(part for part in loss_parts(outputs).values() if part is not None) if of_parts else outputs.loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"step {self.state.global_step}: the loss is {loss.item()} on any text, so the weights are not "
                f"finite; {mend(self.state.global_step)}"
            )
        return loss * 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, written by all ranks at the same step
            steps = self.state.global_step - self.meter.step
            totals = self.meter.totals(self.accelerator)
            logs = logs | logged(totals, steps, self.accelerator.num_processes, self.accelerator.device)
            if self.args.device.type == "cuda":
                logs["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            self.meter = Meter((*COUNTS, *PARTS), self.state.global_step)
        super().log(logs, start_time)

    # ---- evaluation ----
    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As in Trainer; a row per sample, since scores are per sample."""
        collator = self.data_collator
        try:
            if getattr(collator, "join", False):
                self.data_collator = copy(collator)
                self.data_collator.join = False
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; its random numbers are its own, so that evaluating more often does not change the run."""
        self.evaluation_data(eval_dataset)
        cuda = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss and one row of sums per sample (`scores.COLUMNS`); full-size masks never leave the device."""
        inputs = self._prepare_inputs(inputs)
        torch.manual_seed(self.args.seed)  # the loss is taken at random points; the same ones every time
        head = self._unwrapped().get_output_embeddings()
        with torch.no_grad(), self.compute_loss_context_manager(), first_tokens(head) as firsts:
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        sums = sample_sums(
            predicted_ids(torch.cat(firsts), inputs["labels"]),
            inputs["input_ids"],
            inputs["labels"],
            self.model.config.seg_token_id,
            outputs.pred_masks,
            inputs["mask_labels"],
            inputs.get("ignore_labels"),
            inputs.get("mask_known"),
        )
        return loss.detach(), sums, sums.new_zeros(len(sums))

    # ---- the Hub ----
    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Save the model, complete it with its card and code, and upload it; returns the commit's address.

        As in Trainer, but always blocking. Every process must call it; the first one uploads.
        """
        if getattr(self, "hub_model_id", None) is None:
            if private is not None:  # transformers 5.3 knows the argument of the run alone
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        return push_run(self, commit_message, revision, token) if self.is_world_process_zero() else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            push_checkpoint(self, Path(checkpoint_folder))

    # ---- loading ----
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if isinstance(model, PeftModel) or self._is_sharded(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            _load_weights(model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if isinstance(self.model, PeftModel) or self.is_deepspeed_enabled or self._is_sharded(best):
            super()._load_best_model()
        else:
            logger.info("loading the best checkpoint, %s", best)
            _load_weights(self.model, best)

    def _is_sharded(self, folder: str) -> bool:
        """Whether FSDP saved the weights in pieces alone (FSDP_STATE_DICT_TYPE SHARDED_STATE_DICT)."""
        return self.is_fsdp_enabled and not any(Path(folder).glob("model*.safetensors"))


def loss_parts(outputs: Sa2VAOutput) -> dict[str, Tensor | None]:
    """What the model's loss is the sum of, by name; None where a batch has nothing for a part."""
    return {name: getattr(outputs, name) for name in MODEL_PARTS}


def _load_weights(model: nn.Module, folder: str) -> None:
    """Weights of a saved model into a live one, all of them.

    Trainer's own way reads the file's names as the module's and ignores what does not fit; but `save_pretrained`
    writes InternVL's published names, so the whole language model would silently keep its old weights.

    Under FSDP2 every rank holds a part of each weight. The first rank reads the folder and sends the others theirs:
    transformers loads nothing on the others.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    state = {}
    if not sharded or torch.distributed.get_rank() == 0:
        state = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    if sharded:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, state, options=options)
    else:
        model.load_state_dict(state)


def scaled_groups(model: nn.Module, learning_rate: float, scales: dict[str, float]) -> list[dict[str, Any]]:
    """Parameter groups with learning_rate * factor of the first regex that matches the name, 1 where none does.

    Raises:
        ValueError: a regex matches no trained parameter.
    """
    groups: dict[str | None, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = next((pattern for pattern in scales if re.search(pattern, name)), None)
            groups.setdefault(first, []).append(parameter)
    unused = sorted(set(scales) - set(groups))
    if unused:
        raise ValueError(f"`learning_rate_scales`: no trained parameter has a name that matches {unused}")
    return [{"params": found, "lr": learning_rate * scales.get(key, 1.0)} for key, found in groups.items()]


class _Clock(TrainerCallback):
    """Tells the sampler which epoch begins, and the meter how long the steps took."""

    def __init__(self, trainer: Sa2VATrainer) -> None:
        self.trainer, self.since = trainer, time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.meter = Meter((*COUNTS, *PARTS), self.trainer.state.global_step)
        self.since = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate passes the epoch on to the sampler itself, but not when several processes resume inside an epoch.
        self.trainer.train_sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.trainer.meter.add({"seconds": now - self.since})
        self.since = now

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.perf_counter()

    on_save = on_evaluate
