"""A dual-loop run on discs that move over noise: the real trainer, with a tiny model.

loop_run.py RUN.json          # as a process of its own, also under torchrun; see `run`
"""

import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import forks
import torch
from clips import rows, sample

from sa2va_hf.arguments import ModelArguments
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.pairs.dataset import PairDataset, PairSettings
from sa2va_hf.data.schema import Expression
from sa2va_hf.training.dual_loop.arguments import DualLoopTrainingArguments, LoopSettings
from sa2va_hf.training.dual_loop.batches import LoopCollator, LoopDataset
from sa2va_hf.training.dual_loop.build import vocabulary_of
from sa2va_hf.training.dual_loop.model import DualLoopModel
from sa2va_hf.training.dual_loop.trainer import DualLoopTrainer
from sa2va_hf.training.sa2va.trainable import load
from sa2va_hf.training.saving import find_checkpoint

LOOP = {"caption_length": 5, "top_k": 16, "on_collapse": "warn"}
NAMES = ("the red disc", "the blue disc")  # of as many tokens, so that a batch of both is the mean of two of one


def discs(name, frames):
    """A clip of two discs whose frames are in its row, so that every process has the same row."""
    with tempfile.TemporaryDirectory() as folder:
        made = sample(Path(folder), name, frames=frames)
        made.frames = [Path(file).read_bytes() for file in made.frames]
    return made


def captioned(name):
    """A picture of two discs with a phrase for each."""
    made = discs(name, frames=1)
    made.expressions = [Expression(text, [number], "") for number, text in enumerate(NAMES)]
    return made


class RecordingTrainer(DualLoopTrainer):
    """Keeps the student's weights after every step, writes down the batches, and dies when it is told to."""

    die_at = None
    record = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.die_at is not None and self.state.global_step >= self.die_at:
            os.kill(os.getpid(), 9)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if self.record:
            ids = (inputs.get("pairs") or inputs)["sample_ids"]
            with open(self.record, "a") as file:
                file.write(json.dumps({"step": self.state.global_step, "ids": ids}) + "\n")
        return result


def build(output_dir, model, *, clips=4, second=True, share=0.34, loop=None, chosen=None, die_at=None, **training):
    """A trainer, from keyword arguments that JSON can carry. second: whether there is a mask -> caption loop."""
    settings = {"per_device_train_batch_size": 1, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    settings |= {"learning_rate": 1e-3, "dataloader_pin_memory": False, "warmup_steps": 0}
    arguments = DualLoopTrainingArguments(output_dir=str(output_dir), **(settings | training))
    of_model = {"model_name_or_path": str(model), "lora_rank": 4, "lora_dropout": 0.0, "num_points": 0}
    live, processor = load(ModelArguments(**(of_model | (chosen or {}))), arguments)
    given = rows(*(captioned(f"picture {number}") for number in range(3)))
    moving = rows(*(discs(f"clip {number}", 4) for number in range(clips)))
    data = LoopDataset(
        PairDataset([(moving, 1)]),
        PairDataset([(given, 1)], PairSettings(captioned=True)) if second else None,
        Sa2VADataset([(given, 1)], processor) if share else None,
    )
    loops = LoopSettings(**(LOOP | (loop or {})))
    trainer = RecordingTrainer(
        DualLoopModel(live, loops, vocabulary_of(processor)),
        arguments,
        LoopCollator(processor, loops),
        data,
        PairDataset([(moving, 1)], train=False),
        share,
        processing_class=processor,
    )
    trainer.die_at = die_at
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    trainer.record = Path(output_dir) / f"record_{arguments.process_index}.jsonl"
    return trainer


def run(**settings):
    """Train, save student and teacher, and write what the trainer logged to `logs.json`."""
    trainer = build(**settings)
    trainer.train(resume_from_checkpoint=find_checkpoint(settings.get("resume_from_checkpoint"), trainer.args))
    trainer.save_model()
    trainer._save_optimizer_and_scheduler(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        (Path(trainer.args.output_dir) / "logs.json").write_text(json.dumps(trainer.state.log_history))
    trainer.accelerator.wait_for_everyone()
    return trainer


def launch(folder, processes, expect=0, environment=None, **settings):
    """`run(**settings)` in as many processes: its folder. An AssertionError where it ends otherwise than expected."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.json"
    file.write_text(json.dumps({"output_dir": str(folder)} | settings))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed calls ninja by name
    done = forks.run([__file__, file], processes, {"PATH": path} | (environment or {}))
    if (folder / "logs.json").is_file() != (expect == 0):
        raise AssertionError(f"exit {done.returncode}\n" + done.stderr[-4000:])
    return folder


if __name__ == "__main__":
    import deepspeed

    torch.set_num_threads(1)
    # On CPUs DeepSpeed would try which kernels can be built, and for minutes build one that training does not use.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    run(**json.loads(Path(sys.argv[1]).read_text()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
