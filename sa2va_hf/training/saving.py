"""Complete checkpoints: written under another name, synced to the disk, renamed; found and checked on resuming.

A checkpoint folder has `checkpoint.json` (`NOTE`): the size of every file in it, and the facts of the run that its
position in the data follows from. Nothing in it depends on clocks or on the names of machines.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)

NOTE = "checkpoint.json"
STATE = "trainer_state.json"
PARTIAL = "partial-"  # before the name of a checkpoint that is being written
LOOK_AGAIN = "make room or repair the disk, then resume with --resume_from_checkpoint auto"


class CheckpointError(OSError):
    """A checkpoint that could not be written; those before it are untouched."""


# ---- writing ----


def save_checkpoint(trainer: Trainer) -> None:
    """What `Trainer._save_checkpoint` writes, under a name of its own until every file of every rank is on the disk.

    A process that fails raises and leaves; its launcher ends the others, which may be waiting for it.

    Raises:
        CheckpointError: naming the folder, the cause, and the newest checkpoint that is complete.
        FloatingPointError: weights that are not finite are not saved.
        ValueError: machines that do not see the same `output_dir`.
    """
    args, state = trainer.args, trainer.state
    final = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    partial = final.with_name(PARTIAL + final.name)
    _refuse_broken_weights(trainer.model, state.global_step)
    trainer.store_flos()
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    if not partial.is_dir():
        raise ValueError(f"`output_dir`: process {args.process_index} does not see {partial}; use a shared disk")
    try:
        _write(trainer, partial, final)
    except Exception as error:  # OSError, and what torch and safetensors make of it
        shutil.rmtree(partial, ignore_errors=True)
        if "DataLoader worker" in str(error):  # torch's signal handler says so wherever the process is: not the disk
            raise
        complete = newest_complete(final.parent)
        kept = f"{complete} is complete" if complete else "there is no complete one before it"
        raise CheckpointError(f"{final} could not be written ({error}); {kept}: {LOOK_AGAIN}") from error
    trainer.accelerator.wait_for_everyone()
    if args.push_to_hub:
        trainer._push_from_checkpoint(str(final))
    if trainer.is_world_process_zero():
        rotate(final, args.save_total_limit, state.best_model_checkpoint)


def _write(trainer: Trainer, partial: Path, final: Path) -> None:
    trainer.save_model(str(partial), _internal_call=True)
    if not trainer.args.save_only_model:
        trainer._save_optimizer_and_scheduler(str(partial))
        trainer._save_scaler(str(partial))
        trainer._save_rng_state(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_local_process_zero():  # of every machine: each has written files of its own
        sync(partial)
    trainer.accelerator.wait_for_everyone()
    _name_the_best(trainer, final)
    if trainer.is_world_process_zero():
        _finish(trainer, partial, final)


def _finish(trainer: Trainer, partial: Path, final: Path) -> None:
    """The state and the note, last of all, and the final name."""
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            kept = trainer.state.stateful_callbacks
            name = type(callback).__name__
            if isinstance(kept[name], list):
                kept[name].append(callback.state())
            else:
                kept[name] = callback.state()
    trainer.state.save_to_json(str(partial / STATE))
    files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in _files(partial)}
    note = {"step": trainer.state.global_step, "run": facts(trainer), "files": dict(sorted(files.items()))}
    (partial / NOTE).write_text(json.dumps(note, indent=1) + "\n")
    for name in (STATE, NOTE):
        _sync(partial / name)
    _sync(partial)
    if final.exists():  # damaged, or of a run before this one
        _remove(final)
    partial.rename(final)
    _sync(final.parent)


def _name_the_best(trainer: Trainer, final: Path) -> None:
    best = trainer.state.best_global_step
    if best:
        folder = final.with_name(f"checkpoint-{best}")
        if folder == final or folder.is_dir():
            trainer.state.best_model_checkpoint = str(folder)


def _refuse_broken_weights(model: nn.Module, step: int) -> None:
    """A loss that is not finite is found a step after the weights were broken: they must not be saved in between."""
    name = broken_weight(model, trained=True)
    if name is not None:
        raise FloatingPointError(f"step {step}: the weight {name} is not finite and was not saved; {mend(step)}")


def broken_weight(model: nn.Module, trained: bool = False) -> str | None:
    """The first weight with a value that is not finite, in this rank's part of the model. trained: of those alone."""
    for name, parameter in model.named_parameters():
        if (parameter.requires_grad or not trained) and not bool(torch.isfinite(_local(parameter)).all()):
            return name
    return None


def mend(step: int) -> str:
    """What to do about weights that are not finite after so many steps."""
    if step == 0:
        return "no step was made yet, so the model or checkpoint that the run starts from is broken: use another one"
    return "resume from the last checkpoint with a lower learning rate"


def _local(parameter: Tensor) -> Tensor:
    """This rank's part of a weight that ZeRO-3 or FSDP has spread over the ranks; else all of it."""
    local = getattr(parameter, "ds_tensor", parameter).detach()
    return local.to_local() if hasattr(local, "to_local") else local


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def sync(folder: Path | str) -> None:
    """Wait until a folder, with all that is in it, is on the disk."""
    folder = Path(folder)
    for path in [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rotate(newest: Path | str, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beside `newest` until `limit` are left, never `newest` and `best`.

    Their steps say which is older: times on the disk say something else after a clock was set or a folder copied.
    """
    newest = Path(newest)
    folders = _by_step(newest.parent)
    spare = [folder for folder in folders if folder != newest and folder != Path(best or newest)]
    for folder in spare[: max(len(folders) - limit, 0) if limit and limit > 0 else 0]:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a checkpoint under another name: what is left of it after a kill is then no checkpoint."""
    gone = folder.with_name(f"{PARTIAL}{folder.name}-old")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_partial(output_dir: Path | str) -> None:
    """Delete what runs that were killed while they saved have left behind."""
    for folder in Path(output_dir).glob(f"{PARTIAL}checkpoint-*"):
        logger.warning("%s: a checkpoint that was never finished is removed", folder)
        shutil.rmtree(folder, ignore_errors=True)


# ---- finding ----


def find_checkpoint(choice: str | None, training: TrainingArguments) -> str | None:
    """The checkpoint to resume from: None, a path, or with "auto" the newest complete one in `output_dir`.

    Raises:
        ValueError: naming the files that a chosen checkpoint lacks; with "auto", when there are checkpoints and all of
            them lack something.
    """
    if choice is None:
        return None
    if choice != "auto":
        missing = problems(Path(choice))
        if missing:
            raise ValueError(f"`resume_from_checkpoint`: {choice} is no complete checkpoint ({'; '.join(missing)})")
        return choice
    folders = _by_step(Path(training.output_dir))
    found = newest_complete(Path(training.output_dir))
    if folders and found is None:
        raise ValueError(
            f"`resume_from_checkpoint`: none of the {len(folders)} checkpoints in {training.output_dir} is complete; "
            f"{folders[-1]}: {'; '.join(problems(folders[-1]))}. To start anew choose another output_dir"
        )
    return found


def newest_complete(output_dir: Path | str) -> str | None:
    """The complete checkpoint of the highest step; skipped ones are named in the log."""
    output_dir = Path(output_dir)
    for folder in reversed(_by_step(output_dir)):
        missing = problems(folder)
        if not missing:
            return str(folder)
        logger.warning("%s is incomplete and skipped: %s", folder, "; ".join(missing))
    return None


def problems(folder: Path | str) -> list[str]:
    """What a checkpoint lacks, in words. Of one that another trainer wrote only the state is known to be needed."""
    folder = Path(folder)
    if not (folder / STATE).is_file():
        return [f"no {STATE}"]
    if not (folder / NOTE).is_file():
        return []
    try:
        files = json.loads((folder / NOTE).read_text())["files"]
    except (ValueError, KeyError) as error:
        return [f"{NOTE} cannot be read: {error}"]
    found = []
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return found


def _by_step(output_dir: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name[11:]))


# ---- resuming ----


def facts(trainer: Trainer) -> dict[str, Any]:
    """What the order of the data and the form of the optimiser's state follow from."""
    args = trainer.args
    return {
        "processes": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "samples": len(trainer.train_dataset),
        "data": getattr(trainer.train_dataset, "fingerprint", None),
        "engine": _engine(trainer),
    }


def _engine(trainer: Trainer) -> str:
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    return "FSDP" if trainer.is_fsdp_enabled else "DDP"


def check_fits(trainer: Trainer, checkpoint: Path | str) -> None:
    """Whether this run can resume where a checkpoint's run stopped: the same samples in every step, a readable state.

    A step's samples follow from seed, data and batch size over all ranks; how many ranks share them does not matter
    to DDP and FSDP, but ZeRO's state is cut into as many pieces as there were ranks. `ignore_data_skip` allows other
    data. Raises ValueError saying what differs and what to do.
    """
    path = Path(checkpoint) / NOTE
    if not path.is_file():
        return
    before, now = json.loads(path.read_text())["run"], facts(trainer)
    if before["engine"] != now["engine"]:
        raise ValueError(
            f"{checkpoint} was written by {before['engine']}, this run uses {now['engine']}: the optimiser's state "
            f"does not fit. Use {before['engine']}, or start a new run from the merged weights (scripts/merge_lora.py)"
        )
    if now["engine"].startswith("ZeRO") and before["processes"] != now["processes"]:
        raise ValueError(
            f"{checkpoint} holds ZeRO's state in {before['processes']} pieces, this run has {now['processes']} "
            f"processes: start {before['processes']} again, or a new run from the merged weights "
            "(scripts/zero_to_fp32.py, scripts/merge_lora.py)"
        )
    if trainer.args.ignore_data_skip:
        return
    for name, advice in (("seed", "`seed` or `data_seed`"), ("samples", "`train_data`")):
        if before[name] != now[name]:
            raise ValueError(
                f"{checkpoint} was written with {name} {before[name]}, this run has {now[name]}: its position in the "
                f"data is lost. Restore {advice}, or begin the data anew with --ignore_data_skip true"
            )
    if None not in (before.get("data"), now["data"]) and before["data"] != now["data"]:
        raise ValueError(
            f"{checkpoint} was written with other training items, though as many: its position in the data is lost. "
            "Restore the data and its shares, the processor, and the arguments that items follow from (`num_frames`, "
            "`max_expressions`, `max_length`, ...), or begin the data anew with --ignore_data_skip true"
        )
    if trainer.steps_depend_on_processes and any(before[name] != now[name] for name in _STEP):
        raise ValueError(
            f"{checkpoint} was written with {_arithmetic(before)} samples per step, this run has {_arithmetic(now)}: "
            "which samples share a step depends on each of these (processes, per_device_train_batch_size, "
            "gradient_accumulation_steps). Restore them, or begin the data anew with --ignore_data_skip true"
        )
    sizes = [_step_samples(run) for run in (before, now)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{checkpoint} was written with {_arithmetic(before)} samples per step, this run has {_arithmetic(now)}: "
            "its position in the data is lost. Choose per_device_train_batch_size and gradient_accumulation_steps so "
            f"that the product is {sizes[0]} again, or begin the data anew with --ignore_data_skip true"
        )


_STEP = ("processes", "per_device_train_batch_size", "gradient_accumulation_steps")


def _step_samples(run: dict[str, Any]) -> int:
    return math.prod(run[name] for name in _STEP)


def _arithmetic(run: dict[str, Any]) -> str:
    return f"{' x '.join(str(run[name]) for name in _STEP)} = {_step_samples(run)}"
