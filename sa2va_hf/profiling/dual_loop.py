"""What the dual loop learns from clips without text, beside supervised training with the same steps and labels.

Drawn shapes. Every arm begins with the same supervised steps on a few labelled images (a caption of a region, phrases
by attributes); then it has as many further steps: on those labels alone, or on clips without text and those labels.
Measured on held-out clips: a region of one frame is described, and found again in another frame from those words.
"""

import argparse
import copy
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import datasets
import torch

from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.pairs.dataset import Pair, PairDataset, PairSettings
from sa2va_hf.data.schema import FEATURES, to_row
from sa2va_hf.data.shapes.source import shapes
from sa2va_hf.data.shapes.text import FAMILIES
from sa2va_hf.data.shapes.world import WORLDS, vocabulary
from sa2va_hf.model.modeling_sa2va import Sa2VAForConditionalGeneration
from sa2va_hf.model.processing_sa2va import Sa2VAProcessor
from sa2va_hf.profiling.report import table
from sa2va_hf.training.dual_loop.arguments import DualLoopTrainingArguments, LoopSettings
from sa2va_hf.training.dual_loop.batches import LoopCollator, LoopDataset
from sa2va_hf.training.dual_loop.build import vocabulary_of
from sa2va_hf.training.dual_loop.model import DualLoopModel
from sa2va_hf.training.dual_loop.trainer import DualLoopTrainer
from sa2va_hf.training.dual_loop.validation import pair_sums
from sa2va_hf.training.sa2va.trainable import make_trainable
from sa2va_hf.training.sa2va.trainer import Sa2VATrainer

logger = logging.getLogger(__name__)

LOOP = {"caption_length": 16, "top_k": 64, "ema_decay": 0.95, "on_collapse": "warn"}
ARMS = {  # the settings of the loop in each arm; None: no loop
    "supervised": None,
    "loop": {},
    "cosine": {"caption_gradient": False, "cosine_weight": 1.0},
}
COLUMNS = ["model", "steps", "attributes named", "cross-frame cIoU", "from true captions", "[SEG] emission", "CPU s"]


def run(arguments: argparse.Namespace) -> Iterator[str]:
    logging.getLogger("sa2va_hf").setLevel(logging.INFO)
    processor = Sa2VAProcessor.from_pretrained(arguments.model)
    begun = arguments.begun if arguments.begun and (arguments.begun / "config.json").is_file() else None
    model = Sa2VAForConditionalGeneration.from_pretrained(begun or arguments.model)
    world = _World(arguments, processor)
    rows = []
    if begun is None:
        first = arguments.first_steps
        rows.append(["as it ships", 0, *world.score(model), 0.0])
        seconds = world.train(model, None, first, arguments.first_rate or arguments.learning_rate)
        rows.append(["labels", first, *world.score(model), seconds])
        logger.info("%s", rows)
        if arguments.begun:
            model.save_pretrained(arguments.begun)
    for arm in arguments.arms:
        one = copy.deepcopy(model)
        seconds = world.train(one, arm, arguments.steps, arguments.learning_rate)
        rows.append([f"then {arm}", arguments.first_steps + arguments.steps, *world.score(one), seconds])
        logger.info("%s", rows[-1])
    yield table(COLUMNS, rows)


class _World:
    """The data of a comparison, and how models are trained and measured on it."""

    def __init__(self, arguments: argparse.Namespace, processor: Sa2VAProcessor) -> None:
        self.arguments, self.processor = arguments, processor
        count = arguments.labelled
        captions = _rows(count=count, tasks=("region_caption",))
        phrases = _rows(count=count, seed=1, tasks=("referring",), kinds=("attribute",))
        moving = {"clip_fraction": 1.0, "num_frames": 5, "tasks": ("region_caption",), "max_objects": 3}
        clips = _rows(count=arguments.clips, seed=2, **moving)
        self.labelled = Sa2VADataset([(captions, 1), (phrases, 1)], processor)
        captioned = PairDataset([(captions, 1)], PairSettings(captioned=True))
        self.loop = LoopDataset(PairDataset([(clips, 1)], PairSettings(use_captions=False)), captioned, self.labelled)
        held_out = _rows(split="val", count=arguments.held_out, **moving)
        self.held_out = PairDataset([(held_out, 1)], PairSettings(captioned=True), train=False)

    def train(self, model: Sa2VAForConditionalGeneration, arm: str | None, steps: int, rate: float) -> float:
        """Train `model` in place; the CPU seconds that it took."""
        start = time.process_time()
        make_trainable(model, ModelArguments(self.arguments.model, train_llm="full"))
        model.config.num_points = 0
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(model, ARMS.get(arm), steps, rate, folder)
            trainer.train()
        logger.info("%s: %s", arm, trainer.state.log_history[-2:])
        return time.process_time() - start

    def _trainer(self, model: Any, loop: dict | None, steps: int, rate: float, folder: str) -> Sa2VATrainer:
        training = {
            "output_dir": folder,
            "max_steps": steps,
            "learning_rate": rate,
            "per_device_train_batch_size": self.arguments.batch,
            "logging_steps": 10,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": True,  # where `score` measures
        }
        if loop is None:
            collator = Sa2VACollator(self.processor)
            return Sa2VATrainer(model, Sa2VATrainingArguments(**training), collator, self.labelled)
        settings = LoopSettings(**(LOOP | loop))
        return DualLoopTrainer(
            DualLoopModel(model, settings, vocabulary_of(self.processor)),
            DualLoopTrainingArguments(**training),
            LoopCollator(self.processor, settings),
            self.loop,
            supervised_share=0.5,
            processing_class=self.processor,
        )

    @torch.no_grad()
    def score(self, model: Sa2VAForConditionalGeneration) -> tuple[float, float, float, float]:
        """Share of the attributes that captions name rightly; cross-frame cIoU from these captions, and from the true
        ones; [SEG] emission with the former."""
        settings = LoopSettings(**LOOP)
        model.eval()
        loop = DualLoopModel(model, settings, vocabulary_of(self.processor))
        collator = LoopCollator(self.processor, settings)
        right, own, true = 0.0, Counter[str](), Counter[str]()
        for start in range(0, len(self.held_out), 16):
            pairs = [self.held_out[index] for index in range(start, min(start + 16, len(self.held_out)))]
            batch = collator.pairs(pairs)
            captions = loop(write=batch["describe"])
            texts = self.processor.batch_decode(captions)
            right += sum(named(text, pair) for text, pair in zip(texts, pairs, strict=True))
            for sums, read in ((own, captions), (true, batch["captions"])):
                sums.update(pair_sums(loop(answer=batch["segment"], captions=read), batch))
        logger.info("captions: %s", texts[:4])
        cious = [sums["intersection"] / sums["union"] for sums in (own, true)]
        return right / len(self.held_out), *cious, own["seg_said"] / own["seg_total"]


def named(text: str, pair: Pair) -> float:
    """The share of the attributes in the true caption that a caption names, and names no other of their kind."""
    words = vocabulary(WORLDS["default"])
    said, true = (set(one.lower().strip(" .").split()) for one in (text, pair.caption))
    families = [set(words[plural]) for plural in FAMILIES.values()]
    asked = [family for family in families if family & true]
    return sum(said & family == true & family for family in asked) / len(asked)


def _rows(split: str = "train", **options: Any) -> datasets.Dataset:
    return datasets.Dataset.from_list([to_row(sample) for sample in shapes(split=split, **options)], features=FEATURES)
