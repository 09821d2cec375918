"""A dual-loop run from its arguments: its datasets, collator, model and trainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...arguments import ModelArguments, parse
from ...data.dataset.dataset import Sa2VADataset
from ...data.dataset.entries import Share
from ...data.pairs.dataset import PairDataset
from ...mixtures import HUB, MixtureEntry
from ...model.processing_sa2va import Sa2VAProcessor
from ..mixture import entries_to_evaluate, open_entry
from ..rejects import list_rejects
from ..sa2va.trainable import load_model, load_processor
from ..saving import find_checkpoint
from .arguments import DUAL_LOOP_ARGUMENTS, DualLoopDataArguments, DualLoopTrainingArguments, LoopSettings
from .batches import LoopCollator, LoopDataset
from .model import DualLoopModel
from .tokens import Vocabulary
from .trainer import DualLoopTrainer

logger = logging.getLogger(__name__)


def vocabulary_of(processor: Sa2VAProcessor) -> Vocabulary:
    """What a caption may be made of."""
    tokenizer = processor.tokenizer
    special = sorted(set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    context = tokenizer.convert_tokens_to_ids(processor.pictures.context)
    return Vocabulary(len(tokenizer), tuple(processor.stop_ids), tuple(special), context, pad)


def present(entries: Sequence[MixtureEntry], name: str, allow_missing: Sequence[str]) -> list[MixtureEntry]:
    """The entries of a mixture whose datasets are there. A missing one that may be missing is a warning, with the
    shares of those that are left.

    Raises:
        ValueError: nothing is left of it. A dataset that may not be missing is refused where it is opened.
    """
    gone = [entry.path for entry in entries if entry.path in allow_missing and not _is_there(entry)]
    left = [entry for entry in entries if entry.path not in gone]
    if not gone:
        return left
    if not left:
        raise ValueError(
            f"`{name}`: every dataset of it is missing ({', '.join(gone)}); prepare one, or remove `{name}`"
        )
    amounts = [f"{entry.path} {_amount(entry)}" for entry in left]
    logger.warning("`%s`: missing, as `allow_missing` says: %s; left: %s", name, ", ".join(gone), ", ".join(amounts))
    return left


def _is_there(entry: MixtureEntry) -> bool:
    return entry.path.startswith(HUB) or (Path(entry.path) / "dataset_info.json").is_file()


def _amount(entry: MixtureEntry) -> str:
    return f"x {entry.repeats:g}" if entry.samples is None else f"{entry.samples:g} samples"


def build_datasets(
    data: DualLoopDataArguments, processor: Sa2VAProcessor, training: DualLoopTrainingArguments
) -> tuple[LoopDataset | None, PairDataset | None]:
    """The training and the evaluation data.

    Raises:
        ValueError: an entry that cannot be opened, or one that gives nothing.
    """

    seed = training.seed if training.data_seed is None else training.data_seed

    def opened(name: str) -> list[tuple[Any, Share]]:
        entries = present(getattr(data, f"{name}_entries"), f"{name}_data", data.allow_missing)
        return [(open_entry(one), Share(one.repeats, one.samples, one.replacement)) for one in entries]

    evaluated = None
    if entries_to_evaluate(data.eval_entries, training):
        evaluated = PairDataset(opened("eval"), data.pairs(), seed=seed, train=False)
    if training.eval_only:
        return None, evaluated
    captioned = PairDataset(opened("caption"), data.pairs(True), seed=seed) if data.caption_entries else None
    supervised = None
    if data.supervised_entries and data.supervised_share:
        supervised = Sa2VADataset(
            opened("supervised"),
            processor,
            seed=seed,
            num_frames=data.num_frames,
            max_expressions=data.max_expressions,
            max_length=data.max_length,
        )
    return LoopDataset(PairDataset(opened("train"), data.pairs(), seed=seed), captioned, supervised), evaluated


def build_trainer(
    model_arguments: ModelArguments,
    data: DualLoopDataArguments,
    settings: LoopSettings,
    training: DualLoopTrainingArguments,
) -> DualLoopTrainer:
    """The trainer of a run. The data are opened and checked before the model is loaded.

    Raises:
        ValueError: naming what is wrong; a model that reads no regions.
    """
    training.refuse_for(settings)
    if training.use_cpu:  # the CPU's flash kernel is slow backwards on SAM 2's many small windows
        torch.backends.cuda.enable_flash_sdp(False)
    processor = load_processor(model_arguments)
    if not processor.takes_regions:
        raise ValueError(
            f"`model_name_or_path`: {processor.backbone} has no form for regions, which captions are written of; use "
            "a model on InternVL"
        )
    train, evaluated = build_datasets(data, processor, training)
    list_rejects(training, {"train_data": train, "eval_data": evaluated})
    model = DualLoopModel(load_model(model_arguments, training), settings, vocabulary_of(processor))
    return DualLoopTrainer(
        model,
        training,
        LoopCollator(processor, settings, data.max_length),
        train,
        evaluated,
        data.supervised_share,
        processing_class=processor,
    )


def build(argv: list[str]) -> tuple[DualLoopTrainer, str | None]:
    """The trainer of a command line, and the checkpoint that it resumes from.

    Raises:
        ValueError: naming the argument, the file or the dataset that is wrong, before the model is loaded.
    """
    *arguments, training = parse(argv, DUAL_LOOP_ARGUMENTS)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.INFO if training.process_index == 0 else logging.WARNING,
    )
    checkpoint = find_checkpoint(training.resume_from_checkpoint, training)
    return build_trainer(*arguments, training), checkpoint
