"""Train Sa2VA: LoRA or full, one process or many, with or without DeepSpeed.

    accelerate launch scripts/train.py CONFIG.yaml [--any_argument value]

What can be set: sa2va_hf/arguments.py (and every field of transformers.TrainingArguments). Relative paths start at the
current directory. Several processes:

    accelerate launch --multi_gpu --num_processes 8 scripts/train.py CONFIG.yaml [--deepspeed ds_configs/zero2.json]
    torchrun --nproc_per_node 2 scripts/train.py CONFIG.yaml [--deepspeed ds_configs/zero2.json]      # the same
    # on a CPU likewise; DeepSpeed then needs g++ and ninja on the PATH

Go on after an interruption: --resume_from_checkpoint auto. SIGTERM and SIGUSR1 end the run after the step with a
checkpoint and status 0. Which engine when, faults, SLURM: docs/training.md
Afterwards: scripts/merge_lora.py --checkpoint OUTPUT_DIR --output MODEL_DIR
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset, Subset

from sa2va_hf.arguments import DataArguments, parse
from sa2va_hf.command_line import mistakes
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.dataset.length_cache import default_folder
from sa2va_hf.data.prepare.verification import open_folder
from sa2va_hf.data.sources.prepared import open_hub
from sa2va_hf.mixtures import HUB, Part
from sa2va_hf.training.sa2va.trainable import load
from sa2va_hf.training.sa2va.trainer import Sa2VATrainer
from sa2va_hf.training.saving import find_checkpoint


def open_part(part: Part, verify: bool = False) -> tuple:
    if part.path.startswith(HUB):
        rows = open_hub(part.path.removeprefix(HUB), part.split)
    elif (Path(part.path) / "dataset_info.json").is_file():
        rows = open_folder(part.path, verify)
    else:
        raise ValueError(
            f"{part.path}: no prepared dataset; run scripts/prepare_data.py with --output {part.path}, or name one on "
            f"the Hub as {HUB}OWNER/NAME"
        )
    return rows, part.repeats_of(len(rows))


def build_dataset(parts: list[tuple], data: DataArguments, processor: object, seed: int, train: bool) -> Dataset:
    dataset = Sa2VADataset(
        parts,
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
    return Subset(dataset, torch.linspace(0, len(dataset) - 1, data.eval_samples).long().tolist())


def build(argv: list[str]) -> tuple[Sa2VATrainer, str | None]:
    """All that a run needs, and the checkpoint it goes on from."""
    model_arguments, data, training = parse(argv)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.INFO if training.process_index == 0 else logging.WARNING,
    )
    if training.use_cpu:  # the CPU's flash kernel is slow backwards on SAM 2's many small windows
        torch.backends.cuda.enable_flash_sdp(False)
    checkpoint = find_checkpoint(training.resume_from_checkpoint, training)
    train_parts, eval_parts = (
        [open_part(part, data.verify_data) for part in parts] for parts in (data.train_parts, data.eval_parts)
    )
    model, processor = load(model_arguments, training)
    seed = training.seed if training.data_seed is None else training.data_seed
    trainer = Sa2VATrainer(
        model=model,
        args=training,
        data_collator=Sa2VACollator(processor, data.max_length, data.join_samples),
        train_dataset=build_dataset(train_parts, data, processor, seed, train=True),
        eval_dataset=build_dataset(eval_parts, data, processor, seed, train=False) if eval_parts else None,
        processing_class=processor,
    )
    return trainer, checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes():
        trainer, checkpoint = build(sys.argv[1:] if argv is None else list(argv))
    trainer.run(checkpoint)


if __name__ == "__main__":
    main()
