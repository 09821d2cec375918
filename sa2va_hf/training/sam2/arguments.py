"""The arguments of a fine-tuning of SAM 2 or SAM 3, from one YAML file and the command line, which wins. The defaults
are those of SAM 2's fine-tuning on MOSE (sam2: `sam2.1_hiera_b+_MOSE_finetune.yaml`).

    model, data, prompts, losses, augmentation, training = parse(["configs/sam2/mose_finetune.yaml"], SAM2_ARGUMENTS)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...arguments import BaseTrainingArguments
from ...data.clips.transforms import Augmentation
from ...mixtures import MixtureEntry, mixture
from .losses import LossSettings
from .prompting import PromptSettings


@dataclass
class Sam2ModelArguments:
    """Which SAM 2 or SAM 3, and which of its parts are trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A .pt of SAM 2 or 3, a folder that one was converted to, or a Sa2VA."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the square input: a multiple of 32, of 336 for SAM 3. Default: the checkpoint's."},
    )
    train_image_encoder: Literal["full", "lora", "none"] = field(
        default="full", metadata={"help": "How the image encoder is trained; none freezes it."}
    )
    train_memory_attention: Literal["full", "lora", "none"] = field(
        default="full", metadata={"help": "How the memory attention is trained."}
    )
    train_mask_decoder: Literal["full", "lora", "none"] = field(
        default="full", metadata={"help": "How the mask decoder is trained."}
    )
    train_others: bool = field(
        default=True, metadata={"help": "Train the prompt encoder, the memory encoder and the embeddings beside them."}
    )
    lora_rank: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA alpha; default: twice the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA branch."})
    drop_path: float = field(default=0.1, metadata={"help": "Chance to skip the image encoder's last block."})
    memory_dropout: float = field(default=0.1, metadata={"help": "Dropout in the memory attention."})
    gate_masks_in_loss: bool = field(
        default=True,
        metadata={"help": "Losses see masks blanked by the object score, as in the original; false: unblanked ones."},
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("`model_name_or_path` is missing: set it to a .pt of SAM 2 or 3, or a folder")
        for name in ("lora_dropout", "drop_path", "memory_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected a number in [0, 1), got {getattr(self, name)}")
        if self.lora_alpha is None:
            self.lora_alpha = 2 * self.lora_rank
        if self.lora_rank < 1 or self.lora_alpha < 1:
            raise ValueError(
                f"`lora_rank` and `lora_alpha` must be positive, got {self.lora_rank} and {self.lora_alpha}"
            )


@dataclass
class Sam2Entry(MixtureEntry):
    """A prepared dataset in a mixture of clips: see `ClipEntry`."""

    batch_size: int | None = None  # default: per_device_train_batch_size
    num_frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_frames"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` of {self.path}: expected at least 1, got {getattr(self, name)}")


@dataclass
class Sam2DataArguments:
    """The training and validation data, and how a row becomes a clip."""

    train_data: list[dict] | str | None = field(
        default=None,
        metadata={
            "help": "List of {path, repeats, samples, batch_size, num_frames}, a YAML file with it, or one folder."
        },
    )
    eval_data: list[dict] | str | None = field(default=None, metadata={"help": "List of {path}, or one folder."})
    num_frames: int = field(default=8, metadata={"help": "Frames of a clip; images are clips of one."})
    max_objects: int = field(default=3, metadata={"help": "Objects of a clip, sampled from those on its first frame."})
    reverse_probability: float = field(default=0.0, metadata={"help": "Chance that a clip runs backwards."})
    augment: bool = field(default=True, metadata={"help": "Vary the clips (see `Augmentation`)."})
    phases_per_epoch: int = field(
        default=1, metadata={"help": "Parts that a pass over the data is cut into; an epoch of the Trainer is one."}
    )
    eval_frames: int | None = field(
        default=None, metadata={"help": "Validate on the first so many frames of a video."}
    )

    def __post_init__(self) -> None:
        self.train_entries = mixture(self.train_data, "train_data", Sam2Entry)
        self.eval_entries = mixture(self.eval_data, "eval_data")
        if not self.train_entries:
            raise ValueError("`train_data` is missing: a list of {path: DIR, repeats: 1.0}, a YAML file, or a folder")
        for name in ("num_frames", "max_objects", "phases_per_epoch", "eval_frames"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.reverse_probability <= 1:
            raise ValueError(f"`reverse_probability`: expected a number in [0, 1], got {self.reverse_probability}")


@dataclass
class Sam2TrainingArguments(BaseTrainingArguments):
    """`transformers.TrainingArguments` with the MOSE recipe as defaults. `num_train_epochs`: passes over the data."""

    learning_rate: float = field(default=5e-6, metadata={"help": "Learning rate of all but the image encoder."})
    vision_learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate of the image encoder."})
    final_learning_rate: float = field(default=0.1, metadata={"help": "Share of both at the end of their cosine."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW weight decay, but for biases and LayerNorms."})
    layer_decay: float = field(
        default=0.9, metadata={"help": "Factor on the learning rate per block of the image encoder; 1: alike in all."}
    )
    optimizer_schedules: dict | str | None = field(
        default=None, metadata={"help": "Instead of the rates above: {lr: [...], weight_decay: [...]}, schedules.py."}
    )
    max_grad_norm: float = field(default=0.1, metadata={"help": "Gradient norm is clipped at this."})
    warmup_steps: float = field(default=0, metadata={"help": "Must stay 0: a warm-up is part of a schedule."})
    num_train_epochs: float = field(default=40, metadata={"help": "Passes over the data."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Clips per device and micro-batch."})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Needed: what a batch's prompts do not use gets no gradient."}
    )
    metric_for_best_model: str | None = field(default=None, metadata={"help": "Default with an evaluation: J&F."})

    _DEFAULT_METRIC: ClassVar[str] = "J&F"
    _FIXED: ClassVar[dict[str, tuple[Any, str]]] = BaseTrainingArguments._FIXED | {
        "average_tokens_across_devices": (True, "losses are divided by the objects of a whole step"),
        "torch_compile": (False, "only for Sa2VA, see its `compile_layers`"),
        "torch_compile_backend": (None, "only for Sa2VA, see its `compile_layers`"),
        "torch_compile_mode": (None, "only for Sa2VA, see its `compile_layers`"),
        "warmup_steps": (0, "compose a warm-up in `optimizer_schedules`"),
        "lr_scheduler_type": ("linear", "see `final_learning_rate` and `optimizer_schedules`"),
        "lr_scheduler_kwargs": (None, "see `optimizer_schedules`"),
        "prediction_loss_only": (False, "evaluation measures J and F, no loss"),
        "use_liger_kernel": (False, "only for language models"),
        "deepspeed": (None, "a SAM fits one device; start one process per device with torchrun"),
        "fsdp": (None, "a SAM fits one device; start one process per device with torchrun"),
    }

    def __post_init__(self) -> None:
        if isinstance(self.optimizer_schedules, str):
            self.optimizer_schedules = json.loads(self.optimizer_schedules)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay`: expected a number above 0, up to 1, got {self.layer_decay}")
        super().__post_init__()

    def options(self, image_encoder: str = "image_encoder") -> dict[str, list[dict]]:
        """The schedules of the optimiser's options: those given, or the MOSE recipe's with these rates.

        image_encoder: what the part with the `vision_learning_rate` is called.
        """
        if self.optimizer_schedules:
            return self.optimizer_schedules

        def falling(start: float) -> dict[str, Any]:
            return {"type": "cosine", "start": start, "end": start * self.final_learning_rate}

        vision = {"match": [f"{image_encoder}.*"], "schedule": falling(self.vision_learning_rate)}
        bare = {"match": ["*bias*"], "modules": ["LayerNorm"], "schedule": 0.0}
        return {
            "lr": [{"schedule": falling(self.learning_rate)}, vision],
            "weight_decay": [{"schedule": self.weight_decay}, bare],
        }


SAM2_ARGUMENTS = (
    Sam2ModelArguments,
    Sam2DataArguments,
    PromptSettings,
    LossSettings,
    Augmentation,
    Sam2TrainingArguments,
)
