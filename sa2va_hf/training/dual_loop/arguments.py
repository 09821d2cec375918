"""The arguments of a dual-loop run. The defaults are the published ones.

Source: `train_pseudo_gumbel_v2.py` of Sa2VA's fork ANS_sft.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...arguments import ModelArguments, Sa2VATrainingArguments
from ...data.pairs.dataset import PairSettings
from ...mixtures import mixture

CAPTION = "{caption}"  # where the caption stands in `segment_question`


@dataclass
class DualLoopDataArguments:
    """The objects without text, the captions, and the supervised data."""

    train_data: list[dict] | str | None = field(
        default=None,
        metadata={
            "help": "Objects with masks, for caption -> mask: a list of {path, repeats}, a YAML file, or one folder. "
            "Captions that a row has are used, others are written by the teacher."
        },
    )
    caption_data: list[dict] | str | None = field(
        default=None, metadata={"help": "Objects with masks and captions, for mask -> caption; default: no such loop."}
    )
    supervised_data: list[dict] | str | None = field(
        default=None, metadata={"help": "Data with text, trained on as scripts/train.py does; default: none."}
    )
    supervised_share: float = field(
        default=0.2, metadata={"help": "Share of the micro-batches that are of `supervised_data`, spread evenly."}
    )
    eval_data: list[dict] | str | None = field(
        default=None, metadata={"help": "Pairs to measure on: described in one frame, found again in the other."}
    )
    allow_missing: list[str] = field(
        default_factory=list,
        metadata={"help": "Paths of datasets that may be missing; any other missing one is an error."},
    )
    min_gap: int = field(default=1, metadata={"help": "Frames between the two of a pair, at least."})
    max_gap: int | None = field(default=None, metadata={"help": "Frames between the two of a pair, at most."})
    views: Literal["same", "flip", "crops"] = field(
        default="same", metadata={"help": "The two views of a single picture: same, mirrored, or two crops."}
    )
    use_captions: bool = field(
        default=True,
        metadata={"help": "Use the captions that rows of `train_data` have; false: the teacher writes all."},
    )
    num_frames: int = field(default=5, metadata={"help": "Frames taken from a supervised video."})
    max_expressions: int = field(default=5, metadata={"help": "Expressions of one supervised image or clip."})
    max_length: int = field(default=8192, metadata={"help": "Tokens of a supervised sample."})

    def __post_init__(self) -> None:
        for name in ("train", "caption", "supervised", "eval"):
            setattr(self, f"{name}_entries", mixture(getattr(self, f"{name}_data"), f"{name}_data"))
        if not self.train_entries:
            raise ValueError("`train_data` is missing: a list of {path: DIR, repeats: 1.0}, a YAML file, or a folder")
        if not 0 <= self.supervised_share < 1:
            raise ValueError(f"`supervised_share`: expected a share from 0 to below 1, got {self.supervised_share}")
        for name in ("num_frames", "max_expressions", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected at least 1, got {getattr(self, name)}")
        self.pairs()

    def pairs(self, captioned: bool = False) -> PairSettings:
        """How pairs are made; captioned: for mask -> caption, which needs one picture with a caption."""
        views = "same" if captioned else self.views
        return PairSettings(self.min_gap, self.max_gap, views, captioned, captioned or self.use_captions)


@dataclass
class LoopSettings:
    """The two loops: how captions are written, corrupted and passed on, and what their losses weigh."""

    caption_length: int = field(default=256, metadata={"help": "Tokens of a caption, at most."})
    caption_question: str = field(
        default="Please describe region1 in the image.", metadata={"help": "Asks for the caption of a region."}
    )
    segment_question: str = field(
        default="Please segment the object that is described as follows.\n{caption}",
        metadata={"help": "Asks for the mask; `{caption}` is where the caption stands."},
    )
    answer: str = field(default="Sure, [SEG].", metadata={"help": "The answer to it, with one [SEG]."})
    corruption: float = field(default=0.25, metadata={"help": "Share of a caption's tokens replaced at random."})
    top_k: int = field(default=512, metadata={"help": "Candidates per token of the straight-through sample."})
    temperature: float = field(default=0.7, metadata={"help": "Of the straight-through sample."})
    chunk: int = field(default=8, metadata={"help": "Tokens whose candidates' embeddings are held at a time."})
    ema_decay: float = field(default=0.999, metadata={"help": "Of the teacher, per step of the optimizer."})
    answer_weight: float = field(default=1.0, metadata={"help": "Loss of the answer, which keeps [SEG] alive."})
    denoising_weight: float = field(default=0.0, metadata={"help": "Loss of the tokens that were corrupted."})
    cosine_weight: float = field(
        default=0.0,
        metadata={"help": "1 - cosine of the region's state and [SEG]'s, a cheaper rival of the loop; default: off."},
    )
    caption_gradient: bool = field(
        default=True,
        metadata={"help": "Pass the mask's gradient on to the caption; false: read the teacher's caption as text."},
    )
    caption_weight: float = field(default=0.5, metadata={"help": "Weight of the mask -> caption loop (beta)."})
    gradient_surgery: bool = field(
        default=False,
        metadata={"help": "Take from the second loop's gradient what points along the first's; DDP or one process."},
    )
    surgery_on_conflict_only: bool = field(
        default=True, metadata={"help": "Only where the two gradients disagree; false: always, as published."}
    )
    on_collapse: Literal["stop", "warn"] = field(
        default="stop", metadata={"help": "What to do when one caption stands for most regions."}
    )
    collapse_share: float = field(default=0.5, metadata={"help": "Share of the regions that counts as most."})
    collapse_regions: int = field(default=64, metadata={"help": "Regions after which captions are looked at."})

    def __post_init__(self) -> None:
        for name in ("caption_length", "top_k", "collapse_regions"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected at least 1, got {getattr(self, name)}")
        for name in ("corruption", "collapse_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}`: expected a share from 0 to 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"`temperature`: expected a number above 0, got {self.temperature}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay`: expected a number in [0, 1), got {self.ema_decay}")
        for name in ("answer_weight", "denoising_weight", "cosine_weight", "caption_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}`: expected 0 or more, got {getattr(self, name)}")
        if self.segment_question.count(CAPTION) != 1:
            raise ValueError(f"`segment_question`: expected {CAPTION} once, got {self.segment_question!r}")
        if self.answer.count("[SEG]") != 1:
            raise ValueError(f"`answer`: expected one [SEG], got {self.answer!r}")


@dataclass
class DualLoopTrainingArguments(Sa2VATrainingArguments):
    """`Sa2VATrainingArguments` with the published learning rate; a micro-batch is of one kind."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Default where there is an evaluation: cross_cIoU."}
    )

    _DEFAULT_METRIC: ClassVar[str] = "cross_cIoU"
    _FIXED: ClassVar[dict[str, tuple[Any, str]]] = Sa2VATrainingArguments._FIXED | {
        "loss_normalization": ("batch", "the losses of a pair are means over a micro-batch"),
        "bad_samples": ("raise", "a micro-batch of pairs must stay whole"),
        "contrastive_weight": (0.0, "the loops have no classes; see `cosine_weight`"),
        "count_flops": (False, "the two loops have no count"),
        "prediction_loss_only": (False, "evaluation measures masks, no loss"),
    }

    def _refuse_for_engine(self) -> None:
        super()._refuse_for_engine()
        if self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "`deepspeed`: not ZeRO-3 (no rank has a whole weight that the teacher's could take the place of); use "
                "ZeRO-2, FSDP2 or DDP"
            )

    def refuse_for(self, settings: LoopSettings) -> None:
        """Raises ValueError where this run's engine cannot do what `settings` ask for."""
        fsdp = bool(self.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if settings.gradient_surgery and (fsdp or self.deepspeed_plugin is not None):
            engine = "FSDP" if fsdp else "DeepSpeed"
            raise ValueError(
                f"`gradient_surgery`: not with {engine} (no rank has the whole gradient of each loss); use DDP, or "
                "leave it off: the losses are then added with `caption_weight`"
            )


DUAL_LOOP_ARGUMENTS = (ModelArguments, DualLoopDataArguments, LoopSettings, DualLoopTrainingArguments)
