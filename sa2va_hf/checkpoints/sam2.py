"""SAM 2 alone: the published `.pt` files <-> a folder with config.json and safetensors, and out of a Sa2VA.

The names inside are those of the `sam2` package in both. Which SAM 2 it is, is read off the tensors.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..listings import listed
from ..model.configuration_sa2va import SAM2_TRUNKS, Sa2VAConfig, Sa2VAGroundingConfig
from ..model.grounding import build_sam2
from .files import read_json
from .rules import SAM2, TRACKER
from .weights import Stored, audit, read_folder, read_pickle, write_folder

logger = logging.getLogger(__name__)

PATCHES, BLOCKS = "image_encoder.trunk.patch_embed.proj.weight", "image_encoder.trunk.blocks."
ONLY_IN_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
DECODER = "sam_mask_decoder."
WRAPPINGS = ("model", "state_dict")  # under which a `.pt` may hold the weights


def recognise(
    shapes: dict[str, tuple[int, ...]], where: Path | str, asked: Sa2VAGroundingConfig | None = None
) -> Sa2VAGroundingConfig:
    """Which SAM 2 these tensors are, by their names and shapes; `asked` if given.

    Raises:
        ValueError: they are not SAM 2, of no published size, or not of the version and size asked for.
    """
    if PATCHES not in shapes:
        raise ValueError(f"{where}: not a SAM 2, there is no {PATCHES}")
    width, blocks = shapes[PATCHES][0], len({name[len(BLOCKS) :].split(".")[0] for name in shapes if BLOCKS in name})
    version = "2.1" if any(name.startswith(ONLY_IN_2_1) for name in shapes) else "2.0"
    if asked is not None:
        if (version, width, blocks) != (asked.version, asked.embed_dim, sum(asked.stages)):
            raise ValueError(
                f"{where}: expected SAM {asked.version} {asked.size} (trunk of {sum(asked.stages)} blocks, width "
                f"{asked.embed_dim}), got SAM {version} with a trunk of {blocks} blocks, width {width}"
            )
        return asked
    for size, trunk in SAM2_TRUNKS.items():
        if (width, blocks) == (trunk["embed_dim"], sum(trunk["stages"])):
            return Sa2VAGroundingConfig(version=version, size=size)
    raise ValueError(
        f"{where}: a SAM {version} of no published size ({', '.join(SAM2_TRUNKS)}): trunk of {blocks} blocks, width "
        f"{width}"
    )


def file_name(config: Sa2VAGroundingConfig) -> str:
    """As SAM 2's own files are called: sam2_hiera_large.pt, sam2.1_hiera_tiny.pt."""
    return f"sam{config.version.removesuffix('.0')}_hiera_{config.size}.pt"


def from_pt(source: Path | str, output: Path | str, asked: Sa2VAGroundingConfig | None, max_shard_size: str) -> None:
    """A published `.pt` -> config.json and safetensors in `output`."""
    source, output = Path(source), Path(output)
    tensors, config = _of_pt(source, asked)
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    config.save_pretrained(output)  # last: it marks a complete folder
    logger.info("SAM %s %s: %d tensors of %s written to %s", config.version, config.size, len(tensors), source, output)


def to_pt(source: Path | str, output: Path | str, asked: Sa2VAGroundingConfig | None) -> None:
    """SAM 2 of a folder (alone, or a whole Sa2VA of ours) -> a `.pt` in `output` that the `sam2` package loads.

    Of two mask decoders SAM 2's own is taken, which knows points and memory; else the fine-tuned one.
    """
    source, output = Path(source), Path(output)
    tensors, config = of_folder(source, asked)
    output.mkdir(parents=True, exist_ok=True)
    path = output / file_name(config)
    torch.save({"model": {name: tensor.read() for name, tensor in tensors.items()}}, path)
    logger.info("%d tensors of %s written to %s", len(tensors), source, path)


def load(source: Path | str) -> tuple[SAM2Base, Sa2VAGroundingConfig]:
    """SAM 2 in float32, with its weights, from a `.pt`, a folder of it alone, or a whole Sa2VA of ours.

    Raises:
        ValueError: naming what is missing, left over or of another shape; or that there is no such file.
    """
    tensors, config = of_either(Path(source))
    sam2 = build_sam2(config)
    sam2.load_state_dict({name: tensor.read().float() for name, tensor in tensors.items()})
    return sam2, config


def of_either(
    source: Path | str, asked_of_file: Sa2VAGroundingConfig | None = None
) -> tuple[dict[str, Stored], Sa2VAGroundingConfig]:
    """Of a folder, whose config names the SAM 2, or of a `.pt`.

    Raises:
        ValueError: there is no such file or folder.
    """
    source = Path(source)
    if source.is_dir():
        return of_folder(source, None)
    if source.is_file():
        return _of_pt(source, asked_of_file)
    raise ValueError(f"{source}: no such file or folder; expected a .pt of SAM 2, or a folder with config.json")


def _of_pt(source: Path, asked: Sa2VAGroundingConfig | None) -> tuple[dict[str, Stored], Sa2VAGroundingConfig]:
    state, others = _state_dict(read_pickle(source), source)
    tensors = {name: _in_memory(tensor) for name, tensor in state.items()}
    config = recognise({name: tensor.shape for name, tensor in tensors.items()}, source, asked)
    audit(tensors, sam2_shapes(config), source, f"SAM {config.version} {config.size}")
    if others:
        logger.info("skipped, not weights of SAM 2: %s", listed(others))
    return tensors, config


def _state_dict(content: Any, source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in what a `.pt` holds, and the names of the other entries.

    The weights are the file itself, or an entry "model" (as SAM 2's own files) or "state_dict" (as many trainers).
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected a state dict, alone or under 'model', got a {type(content).__name__}")
    wrapping = next((name for name in WRAPPINGS if isinstance(content.get(name), dict)), None)
    state = content if wrapping is None else content[wrapping]
    others = [] if wrapping is None else sorted(str(name) for name in content if name != wrapping)
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{source}: expected a state dict, alone or under 'model' or 'state_dict'; not tensors: {listed(wrong)}"
        )
    return state, others


def of_folder(
    source: Path | str, asked: Sa2VAGroundingConfig | None
) -> tuple[dict[str, Stored], Sa2VAGroundingConfig]:
    """The tensors of the SAM 2 in a folder (alone, or in a Sa2VA) under SAM 2's own names, unread, and its config."""
    source = Path(source)
    stored, config = read_folder(source), _grounding_config(source)
    tensors = stored
    if any(name.startswith(SAM2) for name in stored):
        tensors = {name.removeprefix(SAM2): tensor for name, tensor in stored.items() if name.startswith(SAM2)}
        taken = {SAM2 + name for name in tensors}
        for name in stored:
            if name.startswith(TRACKER):
                tensors[DECODER + name.removeprefix(TRACKER)] = stored[name]
                taken = taken - {SAM2 + DECODER + name.removeprefix(TRACKER)} | {name}
        _say_what_is_left(sorted(set(stored) - taken))
    recognise({name: tensor.shape for name, tensor in tensors.items()}, source, asked or config)
    audit(tensors, sam2_shapes(config), source, f"SAM {config.version} {config.size}")
    return tensors, config


def sam2_shapes(config: Sa2VAGroundingConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of SAM 2's state dict. It is built with memory: the package cannot do it on meta."""
    return {name: tuple(tensor.shape) for name, tensor in build_sam2(config).state_dict().items()}


def _grounding_config(folder: Path) -> Sa2VAGroundingConfig:
    if read_json(folder / "config.json")["model_type"] == Sa2VAConfig.model_type:
        return Sa2VAConfig.from_pretrained(folder).grounding_config
    return Sa2VAGroundingConfig.from_pretrained(folder)


def _in_memory(tensor: Tensor) -> Stored:
    # a copy: tensors of a pickle may share their memory, which safetensors does not store
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.contiguous().clone())


def _say_what_is_left(names: list[str]) -> None:
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    listing = listed(f"{group} ({count} tensors)" for group, count in groups.items())
    logger.info("skipped, not part of SAM 2: %s", listing)
