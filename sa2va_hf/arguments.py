"""What a run can be told: three dataclasses, filled from one YAML file, where the command line wins.

    model, data, training = parse(["configs/quickstart.yaml", "--learning_rate", "1e-4"])

Defaults are the released Sa2VA training: AdamW 4e-5, weight decay 0.05 on every parameter, gradient norm clipped at 1,
linear warm-up over 5 % of the steps, then a cosine to 0, one epoch, LoRA on the language model.
Relative paths, those inside YAML files too, are relative to the directory the command is started from.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from .mixtures import mixture
from .yaml_values import coerce, read_yaml, suggest

LLM_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG_NAME = "train_config.yaml"


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}`: expected one of {', '.join(choices)}; got {value!r}")


@dataclass
class ModelArguments:
    """Which model, and which of its parts are trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Sa2VA folder or Hub id to start from (also a finished fine-tuning run)."}
    )
    template: str | None = field(default=None, metadata={"help": "Chat template name; default: the checkpoint's."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of the MLLM: eager, sdpa, flash_attention_2; default: the model's."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Type of the frozen weights: float32, bfloat16, float16, or auto (bfloat16 in a bf16 run, else "
            "float32). Trained weights are float32 always (DeepSpeed keeps its own float32 copies)."
        },
    )
    train_llm: Literal["lora", "full", "none"] = field(
        default="lora", metadata={"help": "How the language model is trained."}
    )
    train_embeddings: bool = field(
        default=True, metadata={"help": "With LoRA: train full copies of the token embedding and the output head."}
    )
    train_projector: bool | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": True,
            "help": "Train the vision-to-language projector; default as released: InternVL's yes, Qwen-VL's no.",
        },
    )
    train_vision: bool = field(default=False, metadata={"help": "Train the MLLM's vision encoder."})
    train_text_hidden_fcs: bool = field(default=True, metadata={"help": "Train the [SEG] to SAM 2 projection."})
    train_grounding_encoder: Literal["decoder", "all", "none"] = field(
        default="decoder", metadata={"help": "Train SAM 2's mask decoder, all of SAM 2, or none of it."}
    )
    lora_rank: int = field(default=128, metadata={"help": "LoRA rank."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA alpha; default: twice the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the input of the LoRA branch."})
    lora_targets: list[str] = field(
        default_factory=lambda: list(LLM_LINEARS),
        metadata={"help": "Linear layers of the language model (last part of their names) that get LoRA."},
    )
    lora_options: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further fields of peft's LoraConfig, e.g. {use_dora: true, use_rslora: true, init_lora_weights: "
            "pissa}."
        },
    )
    mask_loss_weight: float | None = field(default=None, metadata={"help": "Default: the model config's (2.0)."})
    dice_loss_weight: float | None = field(default=None, metadata={"help": "Default: the model config's (0.5)."})
    iou_loss_weight: float | None = field(default=None, metadata={"help": "Default: the model config's (0.0)."})
    num_points: int | None = field(
        default=None, metadata={"help": "Points per mask in the mask losses, 0 = every cell; default: the config's."}
    )
    objects_per_frame: int | None = field(
        default=None,
        metadata={"help": "Every frame weighs as this many masks, 0 = every object once; default: the config's."},
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("`model_name_or_path` is missing: set it to a Sa2VA folder or Hub id")
        _choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _choice("train_llm", self.train_llm, ("lora", "full", "none"))
        _choice("train_grounding_encoder", self.train_grounding_encoder, ("decoder", "all", "none"))
        if self.lora_alpha is None:
            self.lora_alpha = 2 * self.lora_rank
        if self.lora_rank < 1 or self.lora_alpha < 1:
            raise ValueError(
                f"`lora_rank` and `lora_alpha` must be positive, got {self.lora_rank} and {self.lora_alpha}; "
                "to train the language model without LoRA set `train_llm: full` (or none)"
            )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout`: expected a number in [0, 1), got {self.lora_dropout}")
        if self.train_llm == "lora" and not self.lora_targets:
            raise ValueError("`lora_targets` is empty: leave it out for all linear layers, or set `train_llm: none`")
        if isinstance(self.lora_options, str):
            self.lora_options = json.loads(self.lora_options)

    def config_overrides(self) -> dict[str, Any]:
        """The loss settings that were given, as fields of `Sa2VAConfig`."""
        names = ("mask_loss_weight", "dice_loss_weight", "iou_loss_weight", "num_points", "objects_per_frame")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given.get("objects_per_frame") == 0:
            given["objects_per_frame"] = None
        return given


@dataclass
class DataArguments:
    """What is trained on, what is evaluated on, and how a row becomes a conversation."""

    train_data: list[dict] | str | None = field(
        default=None,
        metadata={"help": "List of {path, repeats}, or a YAML file with that list, or one prepared folder."},
    )
    eval_data: list[dict] | str | None = field(default=None, metadata={"help": "As `train_data`; repeats must be 1."})
    num_frames: int = field(default=5, metadata={"help": "Frames taken from a video."})
    max_expressions: int = field(default=5, metadata={"help": "Expressions of one picture or clip in one sample."})
    max_length: int = field(default=8192, metadata={"help": "Tokens of a sample; turns are left out until it fits."})
    join_samples: bool = field(
        default=False,
        metadata={
            "help": "Batches without padding: samples follow each other in one row (pays with attn_implementation "
            "flash_attention_2)."
        },
    )
    verify_data: bool = field(
        default=False, metadata={"help": "Compare the prepared files with their manifest (sha256) before training."}
    )
    eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many samples, spread evenly over eval_data; default: all."}
    )

    def __post_init__(self) -> None:
        self.train_parts = mixture(self.train_data, "train_data")
        self.eval_parts = mixture(self.eval_data, "eval_data")
        if not self.train_parts:
            raise ValueError("`train_data` is missing: a list of {path: DIR, repeats: 1.0}, a YAML file, or a folder")
        for part in self.eval_parts:
            if part.repeats_of(1) != 1:
                key, amount = ("repeats", part.repeats) if part.samples is None else ("samples", part.samples)
                raise ValueError(f"`eval_data` {part.path}: every sample counts once, got `{key}: {amount}`")
        for name in ("num_frames", "max_expressions", "max_length", "eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected at least 1, got {getattr(self, name)}")


@dataclass
class Sa2VATrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the released recipe as defaults; all its fields can be set."""

    resolved: dict = field(init=False, repr=False, default_factory=dict)
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW weight decay, on every trained parameter."})
    learning_rate_scales: dict | str | None = field(
        default=None,
        metadata={
            "help": "{regex: factor} on the learning rate of parameters whose name it matches; first match wins."
        },
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm is clipped at this."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Learning rate after the warm-up."}
    )
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: a number of steps, or below 1 a share."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the mixture."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Samples per device and micro-batch."})
    per_device_eval_batch_size: int = field(default=2, metadata={"help": "Samples per device in evaluation."})
    bf16: bool | None = field(
        default=None,
        metadata={"nargs": "?", "const": True, "help": "bfloat16 autocast; default: where CUDA supports it."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "tensorboard, wandb, ..., or none."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: media are no columns."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops the run."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every rank touches every trained parameter."}
    )
    count_flops: bool = field(
        default=False, metadata={"help": "Count the model's operations: tflops and, on known GPUs, mfu in the log."}
    )
    recompute_every: int = field(
        default=1,
        metadata={
            "help": "With gradient_checkpointing: only every n-th layer's activations are computed again, the others' "
            "kept."
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "torch.compile the language model's and the vision encoder's layers and SAM 2's encoder."},
    )
    loss_normalization: Literal["batch", "global"] = field(
        default="batch",
        metadata={
            "help": "batch, as released: means over a micro-batch, averaged over micro-batches and ranks. global: "
            "means over all tokens and all masks of a step, whatever the ranks and accumulation steps."
        },
    )
    nonfinite_loss: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "A loss that is not finite: stop, or leave out that micro-batch on all ranks and list its samples "
            "in skipped_samples.jsonl."
        },
    )
    max_skipped: int = field(default=10, metadata={"help": "Stop when more micro-batches than this were left out."})
    bad_samples: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "A sample that cannot be read: stop, or go on without it and list it in skipped_samples.jsonl."
        },
    )
    max_bad_samples: int = field(default=10, metadata={"help": "Stop when more samples than this were left out."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Default where there is an evaluation: cIoU."}
    )

    # Settings that would be silently ignored or break what the trainer promises.
    _FIXED: ClassVar[dict[str, tuple[Any, str]]] = {
        "remove_unused_columns": (False, "the dataset yields messages and pictures, which are no model inputs"),
        "label_smoothing_factor": (0.0, "the model computes its own loss"),
        "torch_compile": (False, "the model as a whole is no one graph; `compile_layers` compiles its layers"),
        "torch_compile_backend": (None, "see `compile_layers`"),
        "torch_compile_mode": (None, "see `compile_layers`"),
        "auto_find_batch_size": (False, "the sampler's order depends on the batch size"),
        "dataloader_drop_last": (False, "the sampler fills the last global batch"),
    }

    def __post_init__(self) -> None:
        for name, (value, why) in self._FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"`{name}`: must stay {value} ({why}), got {getattr(self, name)}")
        _choice("loss_normalization", self.loss_normalization, ("batch", "global"))
        _choice("nonfinite_loss", self.nonfinite_loss, ("stop", "skip"))
        _choice("bad_samples", self.bad_samples, ("raise", "skip"))
        again = self.gradient_checkpointing or getattr(self, "activation_checkpointing", False)
        if self.recompute_every < 1 or (self.recompute_every > 1 and not again):
            raise ValueError(
                "`recompute_every`: expected 1, or more together with `gradient_checkpointing: true`, got "
                f"{self.recompute_every}"
            )
        if isinstance(self.learning_rate_scales, str):
            self.learning_rate_scales = json.loads(self.learning_rate_scales)
        if self.metric_for_best_model is None and IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO:
            self.metric_for_best_model = "cIoU"
        if self.gradient_checkpointing and "activation_checkpointing" in {item.name for item in fields(self)}:
            self.activation_checkpointing, self.gradient_checkpointing = True, None  # renamed in transformers 5.2x
        deepspeed = self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
        if not torch.accelerator.is_available():
            if deepspeed:
                self._join_cpu_ranks()
            else:
                self.use_cpu = True
                if self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
                    self._shard_on_cpus()
        if self.bf16 is None:
            cuda = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = bool(cuda and not self.fp16 and torch.cuda.is_bf16_supported(including_emulation=False))
        super().__post_init__()

    @property
    def device(self) -> torch.device:
        """This process's device; of several CPU processes plain "cpu", since torch 2.6 cannot load onto "cpu:1"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def _join_cpu_ranks(self) -> None:
        """Let the ranks of a DeepSpeed run find each other without a GPU.

        accelerate picks the MPI or NCCL backend for DeepSpeed and then counts one process; a state made beforehand
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

        accelerate (1.15) knows FSDP for every device but CPUs and would silently run DDP. torch's FSDP2 shards on CPUs
        as well, so accelerate is told that the processes are of another kind; every tensor stays where it is.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise ValueError("FSDP needs several processes: torchrun --nproc_per_node 2 scripts/train.py CONFIG.yaml")
        from accelerate import DistributedType, PartialState

        PartialState(cpu=True, backend="gloo").distributed_type = DistributedType.MULTI_XPU
        self._keep_state()

    def _keep_state(self) -> None:
        settings = self.accelerator_config or {}
        if isinstance(settings, str):
            settings = json.loads(settings if settings.startswith("{") else Path(settings).read_text())
        self.accelerator_config = {**settings, "use_configured_state": True}


ARGUMENTS = (ModelArguments, DataArguments, Sa2VATrainingArguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"command line: {message}")


def parse(argv: list[str], kinds: tuple[type, ...] = ARGUMENTS) -> tuple[Any, ...]:
    """Read `[CONFIG.yaml] [--name value ...]` into dataclasses, the last of which are training arguments: dataclass
    default < YAML < command line.

    Errors: ValueError naming the key, its file (or the command line), what was expected and what came.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    names = [item.name for kind in kinds for item in fields(kind) if item.init]
    parser = _Parser(kinds, allow_abbrev=False)
    if argv and argv[0].endswith((".yaml", ".yml")):
        path, argv = argv[0], argv[1:]
        config = read_yaml(path, dict)
        for key in config:
            if key not in names:
                raise ValueError(f"{path}: unknown key `{key}`{suggest(key, names)}")
        parser.set_defaults(**{key: coerce(value, hints[key], key, path) for key, value in config.items()})
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"command line: unknown argument {unknown[0]!r}{suggest(unknown[0].lstrip('-'), names)}")
    built = tuple(
        kind(**{item.name: getattr(namespace, item.name) for item in fields(kind) if item.init}) for kind in kinds
    )
    built[-1].resolved = _resolved(namespace, kinds)
    return built


def _resolved(namespace: Namespace, kinds: tuple[type, ...]) -> dict[str, Any]:
    """All model and data settings, and the training settings that differ from plain `TrainingArguments`."""
    plain = {item.name: item.default for item in fields(TrainingArguments)}
    plain["include_for_metrics"] = []
    values = {}
    for kind in kinds:
        for item in fields(kind):
            value = getattr(namespace, item.name, None)
            if item.init and value is not None and "token" not in item.name and value != plain.get(item.name, item):
                values[item.name] = getattr(value, "value", value)
    return values


def save_config(training: Sa2VATrainingArguments) -> Path:
    """Write what `parse` resolved into the run's folder, as a YAML file that `parse` reads back."""
    folder = Path(training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_NAME
    path.write_text(yaml.safe_dump(training.resolved, sort_keys=False, allow_unicode=True))
    return path
