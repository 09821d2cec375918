"""A SAM alone as a grounding encoder: SAM 2 or SAM 3's tracker, whichever a file or folder holds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..model.configuration_sa2va import Sa2VAConfig, Sa2VAGroundingConfig
from ..model.configuration_sam3 import Sa2VASam3Config
from ..model.grounding import Sa2VAGroundingEncoder, build_sam2
from ..model.grounding_protocol import GroundingEncoder
from ..model.sam3 import Sa2VASam3Encoder, build_sam3
from . import sam2, sam3
from .files import INDEX, read_json
from .grounding_rules import SAM3
from .rules import SAM2, TRACKER
from .weights import audit, read_folder, read_pickle, write_folder

logger = logging.getLogger(__name__)


def load_tracker(source: Path | str, image_size: int | None = None) -> tuple[GroundingEncoder, PretrainedConfig]:
    """The SAM of a `.pt`, of a folder of it alone or of a whole Sa2VA of ours, in float32, and its config.

    image_size: side of the square input in pixels, on which no weight depends; default: the config's.

    Raises:
        ValueError: naming what is missing, left over or of another shape; a side that it cannot have; or that there is
            no such file.
    """
    source = Path(source)
    if not holds_sam3(source):
        network, config = sam2.load(source)
        if image_size not in (None, config.image_size):
            state, config = network.state_dict(), _of_side(config, image_size)
            network = build_sam2(config)
            network.load_state_dict(state)
        return Sa2VAGroundingEncoder(sam2=network), config
    tensors, config = sam3.of_either(source)
    config = _of_side(config, image_size or config.image_size)
    config.tracking_decoder = False  # of two decoders the tracker's own was read
    network = build_sam3(config)
    network.load_state_dict({name: tensor.read().float() for name, tensor in tensors.items()})
    return Sa2VASam3Encoder(config, network), config


def into_sa2va(source: Path | str, given: Path | str, output: Path | str, max_shard_size: str = "5GB") -> None:
    """A whole Sa2VA of ours with the SAM of `given` (a `.pt`, or a folder) in the place of its own -> `output`.

    What is taken out for a SAM alone is what is put in: of two mask decoders SAM's own is replaced and the one that
    predicts [SEG] stays; a single one is replaced, and has to learn [SEG] again. Everything else keeps its bits, the
    config too.

    Raises:
        ValueError: the two are not both SAM 2 or both SAM 3; or naming the tensors where they are not of one version,
            size and width.
    """
    source, given, output = Path(source), Path(given), Path(output)
    stored, config = read_folder(source), Sa2VAConfig.from_pretrained(source).grounding_config
    is_sam3 = isinstance(config, Sa2VASam3Config)
    if given.exists() and holds_sam3(given) != is_sam3:
        names = ("SAM 3", "SAM 2") if is_sam3 else ("SAM 2", "SAM 3")
        raise ValueError(f"{given}: expected {names[0]}, as {source} has it, got {names[1]}")
    (tensors, theirs), expected = (_of_sam3 if is_sam3 else _of_sam2)(given, config)
    audit(tensors, expected, given, f"the {'SAM 3' if is_sam3 else 'SAM 2'} of {source}")
    if theirs.image_size != config.image_size and given.is_dir():  # a .pt does not say
        logger.info("%s is for %d px, the Sa2VA stays at %d px", given, theirs.image_size, config.image_size)
    prefix, decoder = (SAM3, "mask_decoder.") if is_sam3 else (SAM2, sam2.DECODER)
    two_decoders = any(name.startswith(TRACKER) for name in stored)
    for name, tensor in tensors.items():
        if two_decoders and name.startswith(decoder):
            stored[TRACKER + name.removeprefix(decoder)] = tensor
        else:
            stored[prefix + name] = tensor
    output.mkdir(parents=True, exist_ok=True)
    write_folder(stored, output, max_shard_size)
    others = [path for path in source.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    for path in sorted(others, key=lambda path: path.name == "config.json"):  # last: it marks a complete folder
        if path.name != INDEX:
            shutil.copy(path, output / path.name)
    logger.info("%d tensors of %s put into %s", len(tensors), given, output)


def _of_sam2(given: Path, config: Sa2VAGroundingConfig) -> tuple[tuple[Any, Any], dict[str, tuple[int, ...]]]:
    return sam2.of_either(given, config), sam2.sam2_shapes(config)


def _of_sam3(given: Path, config: Sa2VASam3Config) -> tuple[tuple[Any, Any], dict[str, tuple[int, ...]]]:
    return sam3.of_either(given, config), sam3.shapes(config)


def holds_sam3(source: Path | str) -> bool:
    """Whether a file or folder holds SAM 3; False also where there is nothing."""
    source = Path(source)
    if source.is_file():
        return sam3.looks_like(read_pickle(source))
    if not (source / "config.json").is_file():
        return False
    fields = read_json(source / "config.json")
    if fields.get("model_type") == Sa2VAConfig.model_type:
        fields = fields.get("grounding_config") or {}
    return fields.get("model_type") == Sa2VASam3Config.model_type


def _of_side(
    config: Sa2VAGroundingConfig | Sa2VASam3Config, image_size: int
) -> Sa2VAGroundingConfig | Sa2VASam3Config:
    try:
        return type(config)(**(config.to_dict() | {"image_size": image_size}))
    except ValueError as error:
        raise ValueError(f"`image_size`: {str(error).partition(': ')[2]}") from error
