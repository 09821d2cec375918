"""A training run that needs no prepared data: drawn rectangles in memory, the real processor, model and trainer.

toy_run.py RUN.json          # as a process of its own, also under torchrun; see `run`
"""

import json
import os
import resource
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import forks
import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch.utils.data import SequentialSampler

from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.masks import mask_to_box
from sa2va_hf.training.sa2va.trainable import load_model, load_processor
from sa2va_hf.training.sa2va.trainer import Sa2VATrainer
from sa2va_hf.training.saving import find_checkpoint

TEXT, IMAGE, IMAGE_MASKS, VIDEO_MASKS = 0, 1, 2, 4
KINDS = (TEXT, IMAGE_MASKS, IMAGE, VIDEO_MASKS, IMAGE_MASKS)
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}


class ToyDataset(torch.utils.data.Dataset):
    """Pictures and 2-frame clips of coloured rectangles; text-only and mask-free samples between them.

    boxes: objects have boxes in place of masks, and answers hold one of the tokens that `box_tokens` adds.
    Faults: samples (of any epoch) that are `bad`, that give a loss that is not a number, or whose loader is killed.
    """

    def __init__(self, processor, size=20, kinds=KINDS, bad=(), nan=(), kills_loader=(), boxes=False):
        self.processor, self.size, self.kinds, self.boxes = processor, size, kinds, boxes
        self.bad, self.nan, self.kills_loader = bad, nan, kills_loader

    def __len__(self):
        return self.size

    def kind(self, index):
        return self.kinds[index % len(self.kinds)]

    def turns(self, index):
        rng = np.random.default_rng(index)
        if self.kind(index) in (TEXT, IMAGE):
            return [("What is this?", "a dog, " * int(rng.integers(1, 4)) + "a cat.")], []
        names = [list(COLOURS)[i] for i in rng.permutation(3)[: rng.integers(1, 3)]]
        answer = "Sure, [SEG]<box>." if self.boxes else "Sure, [SEG]."
        return [(f"Please segment the {name} square.", answer) for name in names], names

    def draw(self, index, frame):
        rng = np.random.default_rng((index, frame))
        picture = np.full((48, 64, 3), 230, np.uint8)
        masks = {}
        for place, name in enumerate(COLOURS):
            y, x = rng.integers(0, 20), place * 20 + rng.integers(0, 6)
            picture[y : y + 20, x : x + 14] = COLOURS[name]
            masks[name] = np.zeros((48, 64), bool)
            masks[name][y : y + 20, x : x + 14] = True
        return Image.fromarray(picture), masks

    def __getitem__(self, virtual):
        index = virtual % self.size
        if index in self.bad:
            raise ValueError(f"sample 'toy-{virtual}': it is spoilt")
        if index in self.kills_loader and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), 9)
        kind, (turns, names) = self.kind(index), self.turns(index)
        frames = [self.draw(index, frame) for frame in range({TEXT: 0, VIDEO_MASKS: 2}.get(kind, 1))]
        pictures = [picture for picture, _ in frames]
        visual = {TEXT: [], VIDEO_MASKS: [{"type": "video", "video": pictures}]}.get(
            kind, [{"type": "image", "image": picture} for picture in pictures]
        )
        messages = []
        for number, (question, answer) in enumerate(turns):
            content = [*(visual if number == 0 else []), {"type": "text", "text": question}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        masks = torch.zeros(0, max(len(frames), 1), 1, 1, dtype=torch.bool)
        if names:
            masks = torch.from_numpy(np.stack([[drawn[name] for _, drawn in frames] for name in names]))
        return {
            "messages": messages,
            "mask_labels": masks,
            "seg_classes": names,
            "sample_id": self.sample_id(virtual),
            "nan": index in self.nan,
        } | (box_labels(masks) if self.boxes and names else {})

    def sample_id(self, virtual):
        return f"toy-{virtual}"

    def lengths(self, epoch):
        def length(index):
            kind = self.kind(index)
            size = None if kind == TEXT else (64, 48)
            return self.processor.num_tokens(self.turns(index)[0], size, 2, video=kind == VIDEO_MASKS)

        return np.array([length(index) for index in range(self.size)])

    def modalities(self, epoch):
        return np.array([self.kind(index) for index in range(self.size)], np.int8)

    def entry_indices(self, epoch):
        return np.zeros(self.size, np.int64)


def box_labels(masks):
    """The boxes of masks (objects, frames, H, W), in shares of the picture, in their place."""
    height, width = masks.shape[-2:]
    rows = [
        (number, frame, *np.divide(mask_to_box(masks[number, frame].numpy()), (width, height) * 2))
        for number, frame in np.ndindex(masks.shape[:2])
    ]
    known = torch.zeros(masks.shape[:2], dtype=torch.bool)
    return {"mask_labels": torch.zeros_like(masks), "mask_known": known, "box_labels": torch.tensor(rows).float()}


class Collate(Sa2VACollator):
    def __call__(self, examples):
        batch = super().__call__(examples)
        if any(example["nan"] for example in examples):
            batch["pixel_values"] = batch["pixel_values"] * float("nan")
        return batch


class RecordingTrainer(Sa2VATrainer):
    """Writes down what each micro-batch was and cost: one JSON line per micro-batch and rank."""

    record = Path(os.devnull)
    die_at = None
    signal_at = None  # (step, rank, number)
    disk_full_at = None  # (step, bytes): no file may get larger while that checkpoint is written
    mixed = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.die_at is not None and self.state.global_step >= self.die_at and model.training:
            os.kill(os.getpid(), 9)
        if self.signal_at and self.signal_at[:2] == [self.state.global_step, self.args.process_index]:
            os.kill(os.getpid(), self.signal_at[2])
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            line = {"step": self.state.global_step, "ids": inputs.get("sample_ids", []), "loss": result.item()}
            with open(self.record, "a") as file:
                file.write(json.dumps(line) + "\n")
        return result

    def _save_checkpoint(self, *args):
        if not self.disk_full_at or self.disk_full_at[0] != self.state.global_step:
            return super()._save_checkpoint(*args)
        _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.disk_full_at[1], hard))
        try:
            super()._save_checkpoint(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        return SequentialSampler(self.train_dataset) if self.mixed else sampler


def build(
    *,
    output_dir,
    model,
    model_arguments=None,
    size=20,
    evaluate=False,
    mixed=False,
    join=False,
    boxes=False,
    faults=None,
    **training,
):
    """A trainer over toy data, from keyword arguments that JSON can carry.

    faults: what goes wrong; attributes of `ToyDataset` and `RecordingTrainer`.
    """
    faults = dict(faults or {})
    of_data = {name: faults.pop(name) for name in ("bad", "nan", "kills_loader") if name in faults}
    settings = {
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }
    arguments = Sa2VATrainingArguments(output_dir=str(output_dir), **(settings | training))
    chosen = ModelArguments(**({"model_name_or_path": str(model), "lora_rank": 4} | (model_arguments or {})))
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    (Path(output_dir) / "train_config.yaml").write_text(json.dumps({"model_name_or_path": str(model)}))
    processor = load_processor(chosen, boxes)
    live = load_model(chosen, arguments, len(processor.tokenizer) if boxes else 0)
    trainer = RecordingTrainer(
        model=live,
        args=arguments,
        data_collator=Collate(processor, join=join, classes=arguments.contrastive_weight > 0),
        train_dataset=ToyDataset(processor, size, boxes=boxes, **of_data),
        eval_dataset=ToyDataset(processor, 7) if evaluate else None,
        processing_class=processor,
    )
    trainer.record = Path(output_dir) / f"record_{arguments.process_index}.jsonl"
    trainer.mixed = mixed
    for name, value in faults.items():
        setattr(trainer, name, value)
    return trainer


def logits(model, processor):
    """What the model says to two fixed samples: (2, L, V)."""
    batch = Sa2VACollator(processor)([ToyDataset(processor)[1], ToyDataset(processor)[4]])
    batch.pop("sample_ids")
    model.eval()
    with torch.no_grad():
        return model(**batch).logits.float()


def run(**settings):
    """Train, save, and write what the trainer logged to `logs.json`; `probe`: also the live model's logits."""
    probe = settings.pop("probe", False)
    trainer = build(**settings)
    trainer.train(resume_from_checkpoint=find_checkpoint(settings.get("resume_from_checkpoint"), trainer.args))
    if trainer.stopped_by is None:
        if settings.get("evaluate") and trainer.args.eval_strategy == "no":
            trainer.evaluate()
        trainer.save_model()
    said = logits(trainer.model_wrapped, trainer.processing_class) if probe else None
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        (folder / "logs.json").write_text(json.dumps(trainer.state.log_history))
        torch.save(said, folder / "logits.pt")
    trainer.accelerator.wait_for_everyone()
    return trainer


def losses(folder):
    """The logged training losses."""
    return [entry["loss"] for entry in json.loads((Path(folder) / "logs.json").read_text()) if "loss" in entry]


def evaluation(folder):
    """The last evaluation's scores."""
    return [entry for entry in json.loads((Path(folder) / "logs.json").read_text()) if "eval_cIoU" in entry][-1]


def records(folder):
    """What every rank saw, micro-batch by micro-batch: {rank: [{step, ids, loss}]}."""
    files = sorted(Path(folder).glob("record_*.jsonl"))
    return {file.stem[-1]: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def launch(folder, processes, expect=0, environment=None, **settings):
    """`run(**settings)` in as many processes; a hang is a TimeoutError, another end than `expect` an AssertionError.

    environment: variables for it, as `accelerate launch` sets them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.json"
    file.write_text(json.dumps({"output_dir": str(folder)} | settings))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed calls ninja by name
    done = forks.run([__file__, file], processes, {"PATH": path} | (environment or {}))
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    # gloo sometimes aborts a process that has finished: what a run leaves behind says whether it did.
    finished = (folder / "logs.json").is_file()
    if finished != (expect == 0):
        raise AssertionError(f"exit {done.returncode}\n" + done.stderr[-4000:])
    return folder


@cache
def tiny_folder(base):
    """A saved tiny model with its processor."""
    from tiny import tiny_model, tiny_processor

    folder = Path(base) / "tiny"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            tiny_model(num_points=64).save_pretrained(folder)
            tiny_processor().save_pretrained(folder)
    return folder


SAME = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "evaluate": True, "probe": True}
# Nothing random, so that runs of other shape can be compared; and a loss that the released training has not.
EXACT = {"lora_dropout": 0.0, "num_points": 0, "object_score_loss_weight": 0.5}
PRESETS = forks.TESTS.parent / "ds_configs"
FSDP2 = {  # what configs/accelerate/fsdp2.yaml makes accelerate set
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
BOXES = {"boxes": True, "max_steps": 2, "save_steps": 2, "evaluate": False}
RUNS = {
    "one": (1, {"gradient_accumulation_steps": 2}, {}),
    "ddp": (2, {}, {}),
    "zero2": (2, {"deepspeed": str(PRESETS / "zero2.json")}, {}),
    "zero3": (2, {"deepspeed": str(PRESETS / "zero3.json")}, {}),
    "fsdp2": (2, {"environment": FSDP2}, {}),
    "fsdp2_full": (2, {"environment": FSDP2}, {"train_llm": "full"}),
    "zero2_full": (2, {"deepspeed": str(PRESETS / "zero2.json")}, {"train_llm": "full"}),
    "zero3_full": (2, {"deepspeed": str(PRESETS / "zero3.json")}, {"train_llm": "full"}),
    "one_boxes": (1, BOXES | {"gradient_accumulation_steps": 2}, {"box_tokens": True}),
    "ddp_boxes": (2, BOXES, {"box_tokens": True}),
    "zero2_boxes": (2, BOXES | {"deepspeed": str(PRESETS / "zero2.json")}, {"box_tokens": True}),
}


@cache
def finished(base, name):
    """The folder of a run of `RUNS`, made once per test session. `base`: the fixture `toy_runs`."""
    processes, settings, chosen = RUNS[name]
    model, folder = str(tiny_folder(base)), Path(base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "logs.json").is_file():
            launch(folder, processes, model=model, model_arguments=EXACT | chosen, **(SAME | settings))
    return folder


if __name__ == "__main__":
    import deepspeed

    torch.set_num_threads(1)
    # On CPUs DeepSpeed would try which kernels can be built, and for a minute build one that training does not use.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    run(**json.loads(Path(sys.argv[1]).read_text()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
