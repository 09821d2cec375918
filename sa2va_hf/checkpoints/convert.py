"""Checkpoints of other layouts <-> this package's, without running any code from them.

Nothing is computed: tensors are renamed, fused ones are cut or joined, and every value keeps its bits. All names and
shapes are checked before the first weight is read. What is special to a family of releases is in `layouts/`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from ..listings import listed
from ..model.configuration_sa2va import Sa2VAConfig, Sa2VAGroundingConfig
from ..model.configuration_sam3 import Sa2VASam3Config
from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from . import sam2, sam2_transformers, sam3
from .card import Facts
from .files import read_json
from .hub import export
from .layouts import Layout, layout_of_ours, layout_of_release
from .layouts.common import MAX_PADDING
from .moving import cut, join, moved_shapes
from .rules import SAM2, Move, moves
from .trackers import holds_sam3, into_sa2va
from .weights import Stored, audit, read_folder, read_pickle, write_folder

logger = logging.getLogger(__name__)

FORMATS = ("ours", "sa2va", "sam2", "sam3", "transformers")
GroundingConfig = Sa2VAGroundingConfig | Sa2VASam3Config
EMBEDDING, HEAD = "mllm.model.language_model.embed_tokens.weight", "mllm.lm_head.weight"
# The SAM 2 that the released code builds, whatever the weights.
RELEASED_GROUNDING = Sa2VAGroundingConfig(version="2.0", size="large")


def convert(
    source: Path | str,
    output: Path | str,
    to: str = "ours",
    *,
    grounding_config: GroundingConfig | None = None,
    with_sam2: Path | str | None = None,
    max_shard_size: str = "5GB",
    base_model: str | None = None,
) -> None:
    """Write the model in `source` to the folder `output` in another layout.

    Args:
        source: a released Sa2VA folder, a `.pt` of SAM 2 or SAM 3, or one of them as transformers has it (all only to
            "ours"); a folder of ours; or a folder that one of the others was converted to.
        to: "ours", "sa2va" (the released layout), "sam2" or "sam3" (a `.pt` under the names of its own code), or
            "transformers" (SAM 2 alone as its `Sam2VideoModel`, SAM 3 as its `Sam3TrackerVideoModel`).
        grounding_config: the SAM 2 or SAM 3 that must be inside; default: whichever of the published ones it is,
            except for "sa2va" and SAM 2, where it is 2.0 large, the only one that the released code builds.
        with_sam2: a `.pt` of SAM 2 or SAM 3 or a folder with one (fine-tuned, say), which replaces that of a model of
            this package, of the same kind; only to "ours".
        max_shard_size: larger models are written in several files, with an index. The tensors of one written file are
            in memory at a time.
        base_model: Hub id of the release, for the model card of a folder of ours.

    Raises:
        ValueError: naming the field, file or tensors that do not fit; nothing has been written then.
    """
    source, output = Path(source), Path(output)
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {FORMATS}, got {to!r}")
    if any(path.suffix in (".safetensors", ".pt") or path.name == "config.json" for path in output.glob("*")):
        raise ValueError(f"{output} holds a model already: give an empty folder, or a new one")
    kind = _kind(source)
    if with_sam2 is not None:
        if (kind, to) != ("a model of this package", "ours"):
            raise ValueError(
                f"{source} is {kind} to be written as {to!r}: only a model of this package, written as "
                "'ours', gets another SAM; convert it to ours first"
            )
        into_sa2va(source, with_sam2, output, max_shard_size)
    elif (kind, to) == ("a released folder", "ours"):
        from_released(source, output, grounding_config, max_shard_size, base_model)
    elif (kind, to) == ("a model of this package", "sa2va"):
        to_released(source, output, grounding_config, max_shard_size)
    elif (kind, to) == ("a file", "ours"):
        _from_pt(source, output, grounding_config, max_shard_size)
    elif (kind, to) == ("a SAM 3 of transformers", "ours"):
        sam3.from_transformers(source, output, max_shard_size)
    elif to in ("sam3", "transformers") and source.is_dir() and holds_sam3(source):
        (sam3.to_pt if to == "sam3" else sam3.to_transformers)(source, output)
    elif kind in ("a model of this package", "SAM 2 alone") and to == "sam2":
        sam2.to_pt(source, output, grounding_config)
    elif kind in ("a model of this package", "SAM 2 alone") and to == "transformers":
        sam2_transformers.to_transformers(source, output, max_shard_size)
    elif (kind, to) == ("a SAM 2 of transformers", "ours"):
        sam2_transformers.from_transformers(source, output, max_shard_size)
    else:
        raise ValueError(f"{source} is {kind}, which cannot be written as {to!r}")


def _kind(source: Path) -> str:
    if source.is_file():
        return "a file"
    if not (source / "config.json").is_file():
        raise ValueError(f"{source}: no config.json; expected a Sa2VA folder, downloaded or ours, or a .pt of SAM 2")
    ours = {Sa2VAConfig.model_type: "a model of this package", Sa2VAGroundingConfig.model_type: "SAM 2 alone"}
    ours |= {Sa2VASam3Config.model_type: "SAM 3 alone"}
    ours |= dict.fromkeys(("sam2_video", "sam2"), "a SAM 2 of transformers")
    ours |= dict.fromkeys(("sam3_video", "sam3_tracker_video"), "a SAM 3 of transformers")
    return ours.get(read_json(source / "config.json").get("model_type"), "a released folder")


def _from_pt(source: Path, output: Path, asked: GroundingConfig | None, max_shard_size: str) -> None:
    content = read_pickle(source)
    if sam3.looks_like(content):
        sam3.from_pt(source, output, content, _sam3_asked(asked, source), max_shard_size)
    else:
        sam2.from_pt(source, output, asked, max_shard_size)


def _sam3_asked(asked: GroundingConfig | None, source: Path) -> Sa2VASam3Config | None:
    if isinstance(asked, Sa2VAGroundingConfig):
        raise ValueError(f"{source}: expected SAM {asked.version} {asked.size}, got SAM 3")
    return asked


def from_released(
    source: Path | str,
    output: Path | str,
    asked: GroundingConfig | None = None,
    max_shard_size: str = "5GB",
    base_model: str | None = None,
) -> None:
    """A released folder -> a model folder that `from_pretrained` loads, complete with code and card."""
    source, output = Path(source), Path(output)
    released = read_json(source / "config.json")
    layout, stored = layout_of_release(released), read_folder(source)
    config, processor = layout.read(source, released, _released_grounding(stored, source, asked))
    dropped = [name for name in stored if layout.DROPPED.search(name)]
    kept = {name: tensor for name, tensor in stored.items() if name not in dropped}
    if isinstance(config.grounding_config, Sa2VASam3Config):
        kept, unread = sam3.without_unread(kept, SAM2)
        kept = sam3.gathered(kept, SAM2)
        logger.info("skipped, since SAM 3's tracker does not read them: %s", listed(unread))
    plan, expected = _plan(config, layout, kept)
    _untie(kept, plan, released)
    audit(kept, moved_shapes(plan, expected), source)
    if dropped:
        logger.info("skipped, since they follow from the config: %s", listed(dropped))
    tensors = {}
    for move in plan:
        tensors |= cut(move, kept[move.released])
    config.architectures = [Sa2VAForConditionalGeneration.__name__]
    config.dtype = tensors[EMBEDDING].dtype
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    processor.save_pretrained(output)
    config.save_pretrained(output)  # last: a folder with a config is a complete one
    export(output, Facts(base=base_model), max_shard_size=max_shard_size)
    logger.info("%d tensors of %s became %d in %s", len(stored), source, len(tensors), output)


def _plan(
    config: Sa2VAConfig, layout: Layout, stored: dict[str, Stored]
) -> tuple[list[Move], dict[str, tuple[int, ...]]]:
    """The moves and our shapes, after the vocabulary was set to the rows that the stored embedding has.

    Some releases pad the embedding to a multiple of 64 rows; the tokens of those rows are never written.
    """
    expected = expected_shapes(config)
    plan, text = moves(expected, layout.rules(config)), config.get_text_config()
    embedding = stored.get(_released_name(plan, EMBEDDING))
    padding = embedding.shape[0] - text.vocab_size if embedding is not None and embedding.shape else 0
    if 0 < padding <= MAX_PADDING:
        logger.info("the embedding has %d more rows than the config's vocabulary: padding, which is kept", padding)
        text.vocab_size += padding
        expected = expected_shapes(config)
    return plan, expected


def _untie(stored: dict[str, Stored], plan: list[Move], released: dict[str, Any]) -> None:
    """A head that the config ties to the embedding is not stored; ours are two tensors at all times."""
    head, embedding = _released_name(plan, HEAD), _released_name(plan, EMBEDDING)
    sections = [released, *(section for section in released.values() if isinstance(section, dict))]
    tied = any(section.get("tie_word_embeddings") for section in sections)
    if tied and head not in stored and embedding in stored:
        logger.info("%s is not stored, since it is tied: it becomes a copy of %s", head, embedding)
        twin = stored[embedding]
        stored[head] = twin._replace(read=lambda: twin.read().clone())  # safetensors refuses shared memory


def _released_name(plan: list[Move], ours: str) -> str:
    return next(move.released for move in plan if ours in move.ours)


def _released_grounding(stored: dict[str, Stored], source: Path, asked: GroundingConfig | None) -> GroundingConfig:
    """What a released config lacks: which SAM it is, the size of SAM 2, and whether there are two mask decoders
    (Sa2VA-i)."""
    shapes = {name.removeprefix(SAM2): tensor.shape for name, tensor in stored.items() if name.startswith(SAM2)}
    if sam3.is_sam3(stored):
        return sam3.recognise(shapes, source, _sam3_asked(asked, source))
    config = Sa2VAGroundingConfig(**sam2.recognise(shapes, source, asked).to_dict())
    config.tracking_decoder = any(name.startswith("sam_mask_decoder_modified.") for name in shapes)
    return config


def to_released(
    source: Path | str, output: Path | str, asked: GroundingConfig | None, max_shard_size: str = "5GB"
) -> None:
    """A model folder of ours -> the released layout, which the released code loads once its files are beside it."""
    source, output = Path(source), Path(output)
    config, processor = Sa2VAConfig.from_pretrained(source), Sa2VAProcessor.from_pretrained(source)
    layout, expected = layout_of_ours(config), expected_shapes(config)
    stored = {_name_in_model(name, layout.SAVED_NAMES): tensor for name, tensor in read_folder(source).items()}
    audit(stored, expected, source)
    has_sam3 = isinstance(config.grounding_config, Sa2VASam3Config)
    if asked is None:
        asked = Sa2VASam3Config() if has_sam3 else RELEASED_GROUNDING
    if not has_sam3:
        sam2.recognise({n.removeprefix(SAM2): t.shape for n, t in stored.items() if n.startswith(SAM2)}, source, asked)
    if (side := config.grounding_config.image_size) != asked.image_size:  # shapes no tensor, so nothing else shows it
        raise ValueError(
            f"config.json: grounding_config.image_size is {side}, the released code has {asked.image_size}"
        )
    plan = moves(expected, layout.rules(config))
    tensors = {move.released: join(move, stored) for move in plan}
    if has_sam3:
        sam3.recognise({n.removeprefix(SAM2): t.shape for n, t in tensors.items()}, source, _sam3_asked(asked, source))
        tensors = sam3.scattered(tensors, SAM2)
    released = layout.released_config(config, processor, stored[EMBEDDING].dtype)
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    layout.write_processor(processor, output)
    (output / "config.json").write_text(json.dumps(released, indent=2) + "\n", encoding="utf-8")
    logger.info("%d tensors of %s became %d in %s", len(stored), source, len(tensors), output)
    code = ", ".join(sorted({name.split(".")[0] + ".py" for name in released.get("auto_map", {}).values()}))
    logger.info("to load it, the code of a release is needed beside it: %s and what they import", code)


# -------------------------------------------------------------------- names and shapes
def expected_shapes(config: Sa2VAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model's state dict; only SAM 2 gets memory for its weights."""
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _name_in_model(name: str, saved_names: tuple[tuple[str, str], ...]) -> str:
    for saved, ours in saved_names:
        if name.startswith(saved):
            return ours + name.removeprefix(saved)
    return name
