"""DeepSpeed shards -> safetensors: a whole model that `from_pretrained` loads, or the adapter of a LoRA run.

A ZeRO checkpoint holds the float32 master weights in pieces, one per process. The weights beside it in a bf16 run
(gathered by Trainer) are rounded to bf16; these are not.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..listings import listed
from ..model.configuration_sa2va import Sa2VAConfig
from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from .files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAIN_CONFIG, TRAINER_STATE
from .weights import read_pickle

logger = logging.getLogger(__name__)


def consolidate(
    checkpoint: Path | str, output: Path | str, *, dtype: str = "float32", max_shard_size: str = "5GB"
) -> None:
    """Write the checkpoint's weights, config and processor to `output`.

    Args:
        checkpoint: a folder of the run's output that holds `latest` and `global_step*`.
        dtype: of the written weights.
        max_shard_size: larger models are written in several files, with an index.

    Raises:
        ValueError: naming what is missing: no DeepSpeed checkpoint, a shard, the config.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    shards = find_shards(checkpoint)
    adapter = (checkpoint / ADAPTER_CONFIG).is_file()
    if not adapter and not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: neither config.json (whole model) nor {ADAPTER_CONFIG} (LoRA run) is there")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), exclude_frozen_parameters=adapter)
    except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{shards}: the shards do not fit together or are damaged ({error})") from error
    weights = {name: weight.to(getattr(torch, dtype)).contiguous() for name, weight in weights.items()}
    output.mkdir(parents=True, exist_ok=True)
    if adapter:
        _write_adapter(weights, checkpoint, output)
    else:
        config = Sa2VAConfig.from_pretrained(checkpoint)
        model = Sa2VAForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=getattr(torch, dtype)
        )
        model.save_pretrained(output, max_shard_size=max_shard_size)
    Sa2VAProcessor.from_pretrained(checkpoint).save_pretrained(output)
    logger.info("%d tensors of %s written to %s", len(weights), shards, output)


def find_shards(checkpoint: Path | str) -> Path:
    """The folder of the shards, after a look at whether all of them are there."""
    checkpoint = Path(checkpoint)
    latest = checkpoint / "latest"
    if not latest.is_file():
        runs = sorted(path.parent.name for path in checkpoint.glob("checkpoint-*/latest"))
        hint = f"; did you mean one of {listed(runs)} in it?" if runs else "; is it a run without DeepSpeed?"
        raise ValueError(f"{checkpoint}: no DeepSpeed checkpoint (no file `latest`){hint}")
    shards = checkpoint / latest.read_text().strip()
    optimizer_files = sorted(shards.glob("*_optim_states.pt"))
    if not optimizer_files:
        raise ValueError(f"{shards}: no *_optim_states.pt; the shards named in {latest} are gone")
    check_pickles(shards)
    first = torch.load(optimizer_files[0], map_location="cpu", mmap=True, weights_only=False)
    count = first["optimizer_state_dict"]["partition_count"]
    world = max(count) if isinstance(count, list) else count
    kinds = ["optim_states"]
    if first["optimizer_state_dict"]["zero_stage"] == 3:  # ZeRO-3 keeps the frozen weights in pieces as well
        kinds.append("model_states")
    for kind in kinds:
        missing = [rank for rank in range(world) if not list(shards.glob(f"*zero_pp_rank_{rank}_mp_rank_*{kind}.pt"))]
        if missing:
            raise ValueError(f"{shards}: *_{kind}.pt of {world} processes expected, missing of rank {listed(missing)}")
    return shards


def check_pickles(shards: Path | str) -> None:
    """Read every file of the shards with torch's restricted unpickler before DeepSpeed reads them freely.

    The files are mapped, not copied, so this takes no memory.

    Raises:
        ValueError: a file holds objects that neither torch nor DeepSpeed stores, or is damaged; nothing of it has run.
    """
    shards = Path(shards)
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    for path in sorted(shards.glob("*.pt")):
        read_pickle(path, mmap=True, known=[DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])


def _write_adapter(weights: dict[str, Tensor], checkpoint: Path, output: Path) -> None:
    """Names in a live peft model -> names in an adapter file, which carry no adapter name."""
    adapter = {}
    for name, weight in weights.items():
        if ".modules_to_save.default." in name:
            adapter[name.replace(".modules_to_save.default.", ".")] = weight
        elif name.endswith(".lora_magnitude_vector.default.weight"):  # DoRA
            adapter[name.removesuffix(".default.weight")] = weight
        elif ".lora_" in name:
            adapter[name.replace(".default.", ".")] = weight
    saved = checkpoint / ADAPTER_WEIGHTS
    if saved.is_file():
        with safe_open(saved, "pt") as file:
            differing = sorted(set(file.keys()) ^ set(adapter))
        if differing:
            raise ValueError(f"{saved}: other tensors than in the shards: {listed(differing)}")
    save_file(adapter, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copy(checkpoint / ADAPTER_CONFIG, output / ADAPTER_CONFIG)
    for folder in (checkpoint.parent, checkpoint):  # what the base model and the model card are read from
        for name in (TRAIN_CONFIG, TRAINER_STATE):
            if (folder / name).is_file():
                shutil.copy(folder / name, output / name)


def is_zero_checkpoint(folder: Path | str) -> bool:
    """Whether the folder holds DeepSpeed shards."""
    folder = Path(folder)
    return (folder / "latest").is_file()
