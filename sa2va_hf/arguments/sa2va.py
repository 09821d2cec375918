"""The arguments of a Sa2VA run. The defaults are the released training: AdamW 4e-5, weight decay 0.05 on every
parameter, gradient norm clipped at 1, linear warm-up over 5 % of the steps, then a cosine to 0, one epoch, LoRA on the
language model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers.trainer_utils import SchedulerType

from ..mixtures import mixture
from .base import BaseTrainingArguments, check_choice

LLM_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
    quantization: Literal["bnb_4bit", "bnb_8bit", "torchao_int8"] | None = field(
        default=None,
        metadata={
            "help": "Load the language model's layers in 4 or 8 bits, for LoRA: bnb_4bit, bnb_8bit, torchao_int8."
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
    box_tokens: bool = field(
        default=False,
        metadata={
            "help": "Where mixture entries are answered with boxes: add the tokens of the spatial form that the "
            "tokenizer lacks, and train them. Without, boxes are written in the form of the LLM's family."
        },
    )
    box_loss_weight: float | None = field(
        default=None, metadata={"help": "Of masks that are known by boxes alone; default: the model config's (1.0)."}
    )
    object_score_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "Of SAM 2's object score, whether the object is on the frame (not with an empty mask); default: "
            "the model config's (0.0)."
        },
    )
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
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_choice("train_llm", self.train_llm, ("lora", "full", "none"))
        check_choice("train_grounding_encoder", self.train_grounding_encoder, ("decoder", "all", "none"))
        if self.object_score_loss_weight and self.train_grounding_encoder == "none":
            raise ValueError(
                "`object_score_loss_weight`: the head that it trains is part of SAM 2; set `train_grounding_encoder: "
                f"decoder` (or all), or the weight to 0, got {self.object_score_loss_weight}"
            )
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
            raise ValueError("`lora_targets` is empty: remove it for all linear layers, or set `train_llm: none`")
        if isinstance(self.lora_options, str):
            self.lora_options = json.loads(self.lora_options)
        if self.quantization is not None:
            self._check_quantization()
        if self.box_tokens and not self.trains_embeddings:
            raise ValueError(
                "`box_tokens`: new tokens need trained embeddings; set `train_embeddings: true` with `train_llm: "
                "lora`, or `train_llm: full`"
            )

    def _check_quantization(self) -> None:
        check_choice("quantization", self.quantization, ("bnb_4bit", "bnb_8bit", "torchao_int8"))
        if self.train_llm != "lora":
            raise ValueError(
                f"`quantization` needs `train_llm: lora`, got {self.train_llm!r}: its weights stay as they are"
            )
        start = str((self.lora_options or {}).get("init_lora_weights", True)).lower()
        if start in ("pissa", "olora"):
            raise ValueError(
                f"`lora_options`: init_lora_weights {start!r} changes the base weights, which are quantised"
            )

    @property
    def trains_embeddings(self) -> bool:
        return self.train_llm == "full" or (self.train_llm == "lora" and self.train_embeddings)

    def config_overrides(self) -> dict[str, Any]:
        """The loss settings that were given, as fields of `Sa2VAConfig`."""
        names = ("mask_loss_weight", "dice_loss_weight", "iou_loss_weight", "box_loss_weight", "num_points")
        names = (*names, "object_score_loss_weight", "objects_per_frame")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given.get("objects_per_frame") == 0:
            given["objects_per_frame"] = None
        return given


@dataclass
class DataArguments:
    """The training and evaluation data, and how a row becomes a conversation."""

    train_data: list[dict] | str | None = field(
        default=None,
        metadata={"help": "List of {path, repeats}, or a YAML file with that list, or one prepared folder."},
    )
    eval_data: list[dict] | str | None = field(default=None, metadata={"help": "As `train_data`; repeats must be 1."})
    num_frames: int = field(default=5, metadata={"help": "Frames taken from a video."})
    max_expressions: int = field(default=5, metadata={"help": "Expressions of one image or clip in one item."})
    max_length: int = field(default=8192, metadata={"help": "Tokens of a sample; turns are dropped until it fits."})
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
        self.train_entries = mixture(self.train_data, "train_data")
        self.eval_entries = mixture(self.eval_data, "eval_data")
        if not self.train_entries:
            raise ValueError("`train_data` is missing: a list of {path: DIR, repeats: 1.0}, a YAML file, or a folder")
        for entry in self.eval_entries:
            given = {"repeats": entry.repeats} if entry.samples is None else {"samples": entry.samples}
            if given != {"repeats": 1}:
                key, amount = given.popitem()
                raise ValueError(f"`eval_data` {entry.path}: every sample counts once, got `{key}: {amount}`")
        for name in ("num_frames", "max_expressions", "max_length", "eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected at least 1, got {getattr(self, name)}")


@dataclass
class Sa2VATrainingArguments(BaseTrainingArguments):
    """`transformers.TrainingArguments` with the released recipe as defaults; all its fields can be set."""

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
    contrastive_weight: float = field(
        default=0.0,
        metadata={
            "help": "Ties the embedding of each [SEG] to the names of its object's class, over all ranks "
            "(training/sa2va/contrastive.py); default: off."
        },
    )
    contrastive_temperature: float = field(default=0.07, metadata={"help": "Of the contrastive term's cosines."})
    nonfinite_loss: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "A loss that is not finite: stop, or skip that micro-batch on all ranks and list its samples "
            "in skipped_samples.jsonl."
        },
    )
    max_skipped: int = field(default=10, metadata={"help": "Stop when more micro-batches than this were skipped."})
    bad_samples: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "A sample that cannot be read: stop, or skip it and list it in skipped_samples.jsonl."},
    )
    progress: Literal["lines", "bar"] = field(
        default="lines",
        metadata={"help": "lines: a line of numbers per log; bar: one progress bar with the loss and the last cIoU."},
    )
    max_bad_samples: int = field(default=10, metadata={"help": "Stop when more samples than this were skipped."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Default where there is an evaluation: cIoU."}
    )

    _DEFAULT_METRIC: ClassVar[str] = "cIoU"

    def __post_init__(self) -> None:
        check_choice("loss_normalization", self.loss_normalization, ("batch", "global"))
        check_choice("nonfinite_loss", self.nonfinite_loss, ("stop", "skip"))
        check_choice("bad_samples", self.bad_samples, ("raise", "skip"))
        check_choice("progress", self.progress, ("lines", "bar"))
        again = self.gradient_checkpointing or getattr(self, "activation_checkpointing", False)
        if self.recompute_every < 1 or (self.recompute_every > 1 and not again):
            raise ValueError(
                "`recompute_every`: expected 1, or more together with `gradient_checkpointing: true`, got "
                f"{self.recompute_every}"
            )
        if not self.contrastive_weight >= 0:
            raise ValueError(f"`contrastive_weight`: expected 0 or more, got {self.contrastive_weight}")
        if not self.contrastive_temperature > 0:
            raise ValueError(f"`contrastive_temperature`: expected more than 0, got {self.contrastive_temperature}")
        if self.contrastive_weight and self.bad_samples == "skip":
            raise ValueError(
                "`contrastive_weight`: not with `bad_samples: skip` (a rank with no readable sample left in its "
                "micro-batch would not take part); set `bad_samples: raise`"
            )
        if isinstance(self.learning_rate_scales, str):
            self.learning_rate_scales = json.loads(self.learning_rate_scales)
        super().__post_init__()
        self._refuse_for_engine()

    def _refuse_for_engine(self) -> None:
        """Flags that cannot work with the engine or device of this run, before anything is loaded."""
        plugin = self.deepspeed_plugin
        zero3 = plugin is not None and plugin.zero_stage == 3
        fsdp = bool(self.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if self.count_flops and (zero3 or fsdp):
            raise ValueError(
                f"`count_flops`: not with {'ZeRO-3' if zero3 else 'FSDP'} (one rank measures parts of the model, "
                "whose weights are spread over all ranks); remove it, or use DDP or ZeRO-2"
            )
        if self.contrastive_weight and zero3:
            raise ValueError("`contrastive_weight`: not with ZeRO-3 (not tested there); use ZeRO-2, FSDP2 or DDP")
        if self.compile_layers and zero3:
            raise ValueError(
                "`compile_layers`: not with ZeRO-3 (the weights are exchanged while a layer runs); remove it, or use "
                "ZeRO-2 or FSDP"
            )
        if fsdp and self.optim == "sgd" and "momentum" not in str(self.optim_args):
            raise ValueError(
                "`optim: sgd`: not with FSDP and no momentum (the optimiser has no state, and a checkpoint of none "
                "cannot be resumed from); set `optim_args: momentum=0.9`, or use DDP or ZeRO-2"
            )
        if self.use_liger_kernel and self.device.type == "cpu":
            raise ValueError("`use_liger_kernel`: its kernels need a GPU, and this run is on a CPU; remove it")


ARGUMENTS = (ModelArguments, DataArguments, Sa2VATrainingArguments)
