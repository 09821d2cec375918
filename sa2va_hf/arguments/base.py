"""The training arguments that all trainers share: a strict `transformers.TrainingArguments`, with engines on CPUs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

__all__ = ["BaseTrainingArguments", "check_choice"]


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError where the argument `name` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}`: expected one of {', '.join(choices)}; got {value!r}")


@dataclass
class BaseTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` without the settings that our trainers would ignore or break on.

    Raises:
        ValueError: an argument of `_FIXED` has another value than the one named there; an engine cannot run here.
    """

    resolved: dict = field(init=False, repr=False, default_factory=dict)
    bf16: bool | None = field(
        default=None,
        metadata={"nargs": "?", "const": True, "help": "bfloat16 autocast; default: where CUDA supports it."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "tensorboard, wandb, ..., or none."})
    eval_only: bool = field(
        default=False,
        metadata={"help": "Train nothing: evaluate the given model, or the checkpoint in `resume_from_checkpoint`."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: media are no columns."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops the run."})

    # The metric of the best checkpoint where an evaluation is asked for and none is named.
    _DEFAULT_METRIC: ClassVar[str] = "loss"
    # Arguments that must keep this value, and why: the trainer would ignore another one, or break on it.
    _FIXED: ClassVar[dict[str, tuple[Any, str]]] = {
        "remove_unused_columns": (False, "the dataset yields messages and images, which are no model inputs"),
        "label_smoothing_factor": (0.0, "the model computes its own loss"),
        "label_names": (None, "the model computes its own loss"),
        "average_tokens_across_devices": (True, "see `loss_normalization`"),
        "torch_compile": (False, "the model as a whole is no single graph; see `compile_layers`"),
        "torch_compile_backend": (None, "see `compile_layers`"),
        "torch_compile_mode": (None, "see `compile_layers`"),
        "auto_find_batch_size": (False, "the order of the samples depends on the batch size"),
        "dataloader_drop_last": (False, "the sampler fills the last global batch"),
        "dataloader_in_order": (True, "a resumed run could not find its position in the data"),
        "train_sampling_strategy": ("random", "the order of the samples is the trainer's own"),
        "length_column_name": ("length", "the dataset counts the tokens itself"),
        "batch_eval_metrics": (False, "metrics are computed from sums per sample, which take no memory"),
        "eval_do_concat_batches": (True, "metrics are computed over all samples at once"),
        "include_for_metrics": ([], "metrics are computed from sums per sample"),
        "bf16_full_eval": (False, "evaluation uses the precision of the training"),
        "fp16_full_eval": (False, "evaluation uses the precision of the training"),
        "enable_jit_checkpoint": (False, "SIGTERM and SIGUSR1 end a run with a checkpoint anyway"),
        "do_predict": (False, "see scripts/predict.py"),
    }
    # The same of `accelerator_config`; None is accelerate's own default.
    _FIXED_ACCELERATOR: ClassVar[dict[str, tuple[Any, str]]] = {
        "split_batches": (False, "per_device_train_batch_size is the batch of one device"),
        "dispatch_batches": (False, "every process reads its own samples"),
        "even_batches": (True, "the sampler fills the last global batch"),
    }

    def __post_init__(self) -> None:
        self._refuse_ignored()
        if self.eval_only and (self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"):
            raise ValueError("`eval_only`: not with DeepSpeed, which needs an optimiser; start it with torchrun alone")
        self.metric_is_default = self.metric_for_best_model is None
        if self.metric_is_default and IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO:
            self.metric_for_best_model = "loss" if self.prediction_loss_only else self._DEFAULT_METRIC
        if self.gradient_checkpointing and "activation_checkpointing" in {item.name for item in fields(self)}:
            self.activation_checkpointing, self.gradient_checkpointing = True, None  # renamed in transformers 5.2x
        self._prepare_cpu()
        if self.bf16 is None:
            cuda = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = bool(cuda and not self.fp16 and torch.cuda.is_bf16_supported(including_emulation=False))
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise ValueError("`fp16`: float16 needs a GPU, and this run is on a CPU; use `bf16: true`, or neither")
        super().__post_init__()

    @property
    def evaluates(self) -> bool:
        """Whether this run uses evaluation data: `eval_strategy` is not "no", or `do_eval` or `eval_only` is set."""
        return bool(self.eval_only or self.do_eval)

    @property
    def device(self) -> torch.device:
        """This process's device; of several CPU processes plain "cpu", since torch 2.6 cannot load onto "cpu:1"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    # ---- settings that would be ignored ----
    def _refuse_ignored(self) -> None:
        for name, (value, why) in self._FIXED.items():
            given = getattr(self, name, value)  # older versions of transformers lack some
            given = getattr(given, "value", given)
            if given != value and (given or value):  # None, "" and [] are all "not given"
                raise ValueError(f"`{name}`: must stay {value} ({why}), got {given}")
        settings = self._accelerator_settings()
        for name, (value, why) in self._FIXED_ACCELERATOR.items():
            if settings.get(name, value) not in (value, None):
                raise ValueError(f"`accelerator_config`: {name} must stay {value} ({why}), got {settings[name]}")

    def _accelerator_settings(self) -> dict[str, Any]:
        """`accelerator_config` as a dict: it may be one, JSON text, a file of JSON, or accelerate's own object."""
        settings = self.accelerator_config or {}
        if isinstance(settings, str):
            settings = json.loads(settings if settings.startswith("{") else Path(settings).read_text())
        return settings.to_dict() if hasattr(settings, "to_dict") else settings

    # ---- engines on CPUs ----
    def _prepare_cpu(self) -> None:
        """Without a GPU: the process group that the engine needs."""
        if torch.accelerator.is_available():
            return
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            self._join_cpu_ranks()
            return
        self.use_cpu = True
        if self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            self._shard_on_cpus()

    def _join_cpu_ranks(self) -> None:
        """Let the ranks of a DeepSpeed run find each other without a GPU.

        accelerate selects the MPI or NCCL backend for DeepSpeed and then counts one process; a state made beforehand
        with gloo is kept (accelerate 1.15, `use_configured_state`).
        """
        if int(os.environ.get("LOCAL_RANK", -1)) < 0:
            raise ValueError(
                "`deepspeed` needs a launcher: accelerate launch --use_deepspeed --num_processes 2 --num_machines 1 "
                "--mixed_precision no --dynamo_backend no scripts/train.py CONFIG.yaml"
            )
        from accelerate import PartialState

        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        self._keep_state()

    def _shard_on_cpus(self) -> None:
        """Let FSDP2 work without a GPU, for tests.

        accelerate (1.15) supports FSDP on every device but CPUs and would silently run DDP. torch's FSDP2 shards on
        CPUs as well, so accelerate is told that the processes are of another kind; every tensor stays where it is.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise ValueError("FSDP needs several processes: torchrun --nproc_per_node 2 scripts/train.py CONFIG.yaml")
        from accelerate import DistributedType, PartialState

        PartialState(cpu=True, backend="gloo").distributed_type = DistributedType.MULTI_XPU
        self._keep_state()

    def _keep_state(self) -> None:
        self.accelerator_config = {**self._accelerator_settings(), "use_configured_state": True}
