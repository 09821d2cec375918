"""A Sa2VA run from its arguments: its datasets, collator, model and trainer.

trainer = build_trainer(*parse(["run.yaml"]))
trainer.train()
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from ...arguments import DataArguments, ModelArguments, Sa2VATrainingArguments, parse
from ...data.collator import Sa2VACollator
from ...data.dataset.dataset import Sa2VADataset
from ...data.dataset.entries import Share
from ...data.dataset.length_cache import default_folder
from ...data.dataset.mask_targets import MaskGrid
from ...mixtures import MixtureEntry
from ...model.frames import uniform_frames
from ...model.processing_sa2va import Sa2VAProcessor
from ..mixture import entries_to_evaluate, open_entry
from ..rejects import list_rejects
from ..saving import find_checkpoint
from .given import WITH_MASKS, settle_metric
from .trainable import load_model, load_processor
from .trainer import Sa2VATrainer


class EvalSelection(Subset):
    """Some of the items of an evaluation dataset."""

    def modalities(self, epoch: int) -> np.ndarray:
        return self.dataset.modalities(epoch)[self.indices]


def build_dataset(
    entries: Sequence[MixtureEntry], data: DataArguments, processor: Sa2VAProcessor, seed: int, train: bool
) -> Dataset:
    """The training or evaluation dataset of a mixture.

    Raises:
        ValueError: an entry that cannot be opened, or a mixture without a usable row.
    """
    dataset = Sa2VADataset(
        [
            (open_entry(entry, data.verify_data), Share(entry.repeats, entry.samples, entry.replacement, entry.answer))
            for entry in entries
        ],
        processor,
        seed=seed,
        num_frames=data.num_frames,
        max_expressions=data.max_expressions,
        max_length=data.max_length,
        train=train,
        length_cache=default_folder(),
    )
    if train or data.eval_samples is None or data.eval_samples >= len(dataset):
        return dataset
    return EvalSelection(dataset, uniform_frames(len(dataset), data.eval_samples))


def build_trainer(
    model_arguments: ModelArguments, data: DataArguments, training: Sa2VATrainingArguments
) -> Sa2VATrainer:
    """The trainer of a run. The data are opened and checked before the model is loaded."""
    if training.use_cpu:  # the CPU's flash kernel is slow backwards on SAM 2's many small windows
        torch.backends.cuda.enable_flash_sdp(False)
    answers = {entry.answer for entry in (*data.train_entries, *data.eval_entries)}
    processor = load_processor(model_arguments, boxes=answers != {"masks"})
    seed = training.seed if training.data_seed is None else training.data_seed
    datasets = {
        name: build_dataset(entries, data, processor, seed, train=name == "train_data") if entries else None
        for name, entries in (
            ("train_data", [] if training.eval_only else data.train_entries),
            ("eval_data", entries_to_evaluate(data.eval_entries, training)),
        )
    }
    list_rejects(training, datasets)
    settle_metric(training, datasets["eval_data"])
    masks = answers != {"boxes"} or any(_has_masks(dataset) for dataset in datasets.values() if dataset is not None)
    model = load_model(model_arguments, training, len(processor.tokenizer), masks)
    if datasets["train_data"] is not None:  # evaluation compares at the size of the image
        datasets["train_data"].mask_grid = MaskGrid.of(model)
        datasets["train_data"].classes = training.contrastive_weight > 0
    return Sa2VATrainer(
        model=model,
        args=training,
        data_collator=Sa2VACollator(
            processor, data.max_length, data.join_samples, masks, classes=training.contrastive_weight > 0
        ),
        train_dataset=datasets["train_data"],
        eval_dataset=datasets["eval_data"],
        processing_class=processor,
    )


def _has_masks(dataset: Dataset) -> bool:
    """Whether an item has masks: of expressions that are answered so, or a dialogue with [SEG]."""
    return bool(np.isin(dataset.modalities(0), WITH_MASKS).any())


def build(argv: list[str]) -> tuple[Sa2VATrainer, str | None]:
    """The trainer of a command line, and the checkpoint that it resumes from.

    Raises:
        ValueError: naming the argument, the file or the dataset that is wrong, before the model is loaded.
    """
    model_arguments, data, training = parse(argv)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.INFO if training.process_index == 0 else logging.WARNING,
    )
    checkpoint = find_checkpoint(training.resume_from_checkpoint, training)
    return build_trainer(model_arguments, data, training), checkpoint
