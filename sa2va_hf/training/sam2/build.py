"""A fine-tuning of SAM 2 or SAM 3 from its arguments: its clips, model and trainer."""

from __future__ import annotations

import logging

import torch
from transformers import set_seed

from ...arguments import parse
from ...checkpoints.trackers import load_tracker
from ...data.clips.dataset import ClipDataset, ClipEntry
from ...data.clips.transforms import Augmentation
from ...data.clips.vos import VosClips
from ..mixture import entries_to_evaluate, open_entry
from ..rejects import list_rejects
from ..saving import find_checkpoint
from .arguments import SAM2_ARGUMENTS, Sam2DataArguments, Sam2ModelArguments, Sam2TrainingArguments
from .clip_model import Sam2ClipModel
from .losses import LossSettings
from .networks import network_of, set_dropout
from .prompting import PromptSettings
from .trainable import make_trainable
from .trainer import Sam2Trainer


def build_model(
    arguments: Sam2ModelArguments, prompts: PromptSettings, losses: LossSettings, seed: int
) -> Sam2ClipModel:
    """The model as it will be trained.

    Raises:
        ValueError: there are no weights at `model_name_or_path`, they cannot have this `image_size`, or nothing is
            left to train.
    """
    encoder, config = load_tracker(arguments.model_name_or_path, arguments.image_size)
    network = network_of(encoder)
    set_dropout(encoder.network, arguments.drop_path, arguments.memory_dropout)
    set_seed(seed)  # LoRA starts from the same numbers everywhere
    modes = {
        network.image_encoder: arguments.train_image_encoder,
        network.memory_attention: arguments.train_memory_attention,
        network.mask_decoder: arguments.train_mask_decoder,
    }
    lora = {"rank": arguments.lora_rank, "alpha": arguments.lora_alpha, "dropout": arguments.lora_dropout}
    make_trainable(encoder.network, modes, arguments.train_others, **lora, unread=network.unread)
    return Sam2ClipModel(encoder, config, prompts, losses, arguments.gate_masks_in_loss)


def build_dataset(
    data: Sam2DataArguments, augmentation: Augmentation, training: Sam2TrainingArguments, image_size: int
) -> ClipDataset:
    """The training clips.

    Raises:
        ValueError: an entry that cannot be opened, or one without a usable row.
    """
    default = training.per_device_train_batch_size
    return ClipDataset(
        [
            ClipEntry(
                open_entry(one),
                one.repeats,
                one.batch_size or default,
                one.num_frames,
                one.samples,
                one.replacement,
            )
            for one in data.train_entries
        ],
        image_size=image_size,
        num_frames=data.num_frames,
        max_objects=data.max_objects,
        reverse=data.reverse_probability,
        augmentation=augmentation if data.augment else None,
        seed=training.seed if training.data_seed is None else training.data_seed,
    )


def build_trainer(
    arguments: Sam2ModelArguments,
    data: Sam2DataArguments,
    prompts: PromptSettings,
    losses: LossSettings,
    augmentation: Augmentation,
    training: Sam2TrainingArguments,
) -> Sam2Trainer:
    """The trainer of a run."""
    if training.use_cpu:  # the CPU's flash kernel is slow backwards on many small windows
        torch.backends.cuda.enable_flash_sdp(False)
    model = build_model(arguments, prompts, losses, training.seed)
    dataset = None if training.eval_only else build_dataset(data, augmentation, training, model.config.image_size)
    list_rejects(training, {"train_data": dataset})
    entries = entries_to_evaluate(data.eval_entries, training)
    clips = VosClips([open_entry(one) for one in entries], data.eval_frames) if entries else None
    training.num_train_epochs *= data.phases_per_epoch
    return Sam2Trainer(
        model=model, args=training, train_dataset=dataset, eval_dataset=clips, phases=data.phases_per_epoch
    )


def build(argv: list[str]) -> tuple[Sam2Trainer, str | None]:
    """The trainer of a command line, and the checkpoint that it resumes from.

    Raises:
        ValueError: naming the argument, the file or the dataset that is wrong.
    """
    *arguments, training = parse(argv, SAM2_ARGUMENTS)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.INFO if training.process_index == 0 else logging.WARNING,
    )
    checkpoint = find_checkpoint(training.resume_from_checkpoint, training)
    return build_trainer(*arguments, training), checkpoint
