"""Fine-tune SAM 2 on pictures and videos: promptable, with memory, one process or many.

    python scripts/prepare_data.py --source vos_folders --root MOSE --split train --output data/prepared/mose_train
    accelerate launch scripts/train_sam2.py configs/sam2/mose_finetune.yaml [--any_argument value]

What can be set: sa2va_hf/training/sam2/arguments.py (and every field of transformers.TrainingArguments). Several
processes, on one machine or more:

    torchrun --nproc_per_node 8 scripts/train_sam2.py CONFIG.yaml
    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        scripts/train_sam2.py CONFIG.yaml

Go on after an interruption: --resume_from_checkpoint auto
Afterwards, for the `sam2` package: scripts/convert_checkpoint.py --source OUTPUT_DIR --output DIR --to sam2
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from transformers import set_seed

from sa2va_hf.arguments import parse
from sa2va_hf.checkpoints.sam2 import load
from sa2va_hf.command_line import mistakes
from sa2va_hf.data.clips.dataset import ClipDataset, ClipPart
from sa2va_hf.data.clips.transforms import Augmentation
from sa2va_hf.data.clips.vos import VosClips
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.training.sam2.arguments import (
    SAM2_ARGUMENTS,
    Sam2DataArguments,
    Sam2ModelArguments,
    Sam2Part,
    Sam2TrainingArguments,
)
from sa2va_hf.training.sam2.clip_model import Sam2ClipModel, set_dropout
from sa2va_hf.training.sam2.losses import LossSettings
from sa2va_hf.training.sam2.prompting import PromptSettings
from sa2va_hf.training.sam2.trainable import make_trainable
from sa2va_hf.training.sam2.trainer import Sam2Trainer
from sa2va_hf.training.saving import find_checkpoint


def open_part(part: Sam2Part) -> Dataset:
    if not (Path(part.path) / "dataset_info.json").is_file():
        raise ValueError(f"{part.path}: no prepared dataset; run scripts/prepare_data.py with --output {part.path}")
    return load_from_disk(part.path)


def build_model(
    arguments: Sam2ModelArguments, prompts: PromptSettings, losses: LossSettings, seed: int
) -> Sam2ClipModel:
    sam2, config = load(arguments.model_name_or_path)
    if arguments.image_size not in (None, config.image_size):  # no weight depends on it
        state, config.image_size = sam2.state_dict(), arguments.image_size
        sam2 = build_sam2(config)
        sam2.load_state_dict(state)
    set_dropout(sam2, arguments.drop_path, arguments.memory_dropout)
    set_seed(seed)  # LoRA starts from the same numbers everywhere
    modes = {
        "image_encoder": arguments.train_image_encoder,
        "memory_attention": arguments.train_memory_attention,
        "sam_mask_decoder": arguments.train_mask_decoder,
    }
    lora = {"rank": arguments.lora_rank, "alpha": arguments.lora_alpha, "dropout": arguments.lora_dropout}
    make_trainable(sam2, modes, arguments.train_others, **lora)
    return Sam2ClipModel(sam2, config, prompts, losses, arguments.gate_masks_in_loss)


def build_trainer(
    model: Sam2ClipModel, data: Sam2DataArguments, augmentation: Augmentation, training: Sam2TrainingArguments
) -> Sam2Trainer:
    default = training.per_device_train_batch_size
    dataset = ClipDataset(
        [ClipPart(open_part(p), p.repeats, p.batch_size or default, p.num_frames) for p in data.train_parts],
        image_size=model.config.image_size,
        num_frames=data.num_frames,
        max_objects=data.max_objects,
        reverse=data.reverse_probability,
        augmentation=augmentation if data.augment else None,
        seed=training.seed if training.data_seed is None else training.data_seed,
    )
    clips = VosClips([open_part(part) for part in data.eval_parts], data.eval_frames) if data.eval_parts else None
    training.num_train_epochs *= data.phases_per_epoch
    return Sam2Trainer(
        model=model, args=training, train_dataset=dataset, eval_dataset=clips, phases=data.phases_per_epoch
    )


def build(argv: list[str]) -> tuple[Sam2Trainer, str | None]:
    """All that a run needs, and the checkpoint it goes on from."""
    arguments, data, prompts, losses, augmentation, training = parse(argv, SAM2_ARGUMENTS)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.INFO if training.process_index == 0 else logging.WARNING,
    )
    if training.use_cpu:  # the CPU's flash kernel is slow backwards on SAM 2's many small windows
        torch.backends.cuda.enable_flash_sdp(False)
    checkpoint = find_checkpoint(training.resume_from_checkpoint, training)
    model = build_model(arguments, prompts, losses, training.seed)
    return build_trainer(model, data, augmentation, training), checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes():
        trainer, checkpoint = build(sys.argv[1:] if argv is None else list(argv))
    trainer.run(checkpoint)


if __name__ == "__main__":
    main()
