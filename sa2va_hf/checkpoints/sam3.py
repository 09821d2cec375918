"""SAM 3's tracker alone: its own `.pt` <-> a folder of ours <-> transformers' `Sam3TrackerVideoModel`.

A folder of ours has transformers' names. The published `.pt` and the published safetensors also hold a detector and a
text encoder, which are skipped. Nothing but names and shapes tells which SAM 3 it is.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..listings import listed
from ..model.configuration_sa2va import Sa2VAConfig
from ..model.configuration_sam3 import Sa2VASam3Config
from ..model.sam3 import build_sam3, transformers_config
from .files import read_json
from .grounding_rules import DETECTOR_NECK, GATHERED, NECK, POINTS, SAM3, TRUNK, sam3_rules
from .moving import cut, join, moved_shapes
from .rules import SAM2, moves
from .weights import Stored, audit, read_folder, read_pickle, write_folder

logger = logging.getLogger(__name__)

FILE = "sam3.pt"
NUMBERED = re.compile(re.escape(POINTS) + r"([0-3])\.weight$")
# Of a published `.pt`: what the tracker needs, under which prefix; and beside it, what it does not.
TRACKER, DETECTOR = "tracker.", "detector."
VISION = "backbone.vision_backbone."
GAMMA = re.compile(r"(maskmem_backbone\.fuser\.layers\.\d+\.)gamma$")
# As facebook/sam3's safetensors have them, and `Sam3TrackerVideoModel`.
WHOLE_MODEL = (
    ("detector_model.vision_encoder.backbone.", "vision_encoder.backbone."),
    ("tracker_neck.", "vision_encoder.neck."),
    ("tracker_model.", ""),
)


def is_sam3(names: Iterable[str]) -> bool:
    """Whether these names of a release are those of SAM 3, not SAM 2."""
    return any(name.startswith(SAM2 + TRUNK) for name in names)


def recognise(
    shapes: Mapping[str, tuple[int, ...]], where: Path | str, asked: Sa2VASam3Config | None = None
) -> Sa2VASam3Config:
    """Which SAM 3 these tensors, under SAM 3's own names, are: the published one, or the one asked for.

    Raises:
        ValueError: another size.
    """
    wanted, blocks = asked or Sa2VASam3Config(), TRUNK + "blocks."
    patches = shapes.get(TRUNK + "patch_embed.proj.weight", (0, 0, 0, 0))
    depth = len({name.removeprefix(blocks).split(".")[0] for name in shapes if name.startswith(blocks)})
    if (patches[0], patches[-1], depth) != (wanted.embed_dim, wanted.patch_size, wanted.num_layers):
        raise ValueError(
            f"{where}: expected SAM 3 with a vision transformer of {wanted.num_layers} layers, width "
            f"{wanted.embed_dim}, patches of {wanted.patch_size}; got {depth} layers, width {patches[0]}, patches of "
            f"{patches[-1]}"
        )
    return Sa2VASam3Config(**wanted.to_dict())


# -------------------------------------------------------------------- what a rule for single tensors cannot say
def without_unread(stored: dict[str, Stored], prefix: str = "") -> tuple[dict[str, Stored], list[str]]:
    """A release's tensors without those that the tracker does not read, and the names of these: the detector's neck
    and tables of rotary angles."""
    unread = [
        name
        for name in stored
        if name.startswith(prefix + DETECTOR_NECK) or (name.startswith(prefix) and name.endswith("freqs_cis"))
    ]
    return {name: tensor for name, tensor in stored.items() if name not in unread}, unread


def gathered(stored: dict[str, Stored], prefix: str = "") -> dict[str, Stored]:
    """The four point embeddings of a release as one tensor; where one is missing they stay as they are."""
    names = [f"{prefix}{POINTS}{number}.weight" for number in range(4)]
    if not all(name in stored and len(stored[name].shape) == 2 for name in names):
        return stored
    points = [stored[name] for name in names]
    shape = (sum(point.shape[0] for point in points), points[0].shape[1])
    others = {name: tensor for name, tensor in stored.items() if name not in names}
    return others | {
        f"{prefix}{POINTS}{GATHERED}": Stored(
            shape, points[0].dtype, lambda: torch.cat([point.read() for point in points])
        )
    }


def scattered(tensors: dict[str, Stored], prefix: str = "") -> dict[str, Stored]:
    """The reverse of `gathered` and `without_unread`: the detector's neck, which nothing reads, becomes a copy of the
    tracker's, so that a strict load finds all of it."""
    tensors = dict(tensors)
    points = tensors.pop(f"{prefix}{POINTS}{GATHERED}")
    for number in range(4):
        row = lambda number=number: points.read()[number : number + 1].clone()  # noqa: E731
        tensors[f"{prefix}{POINTS}{number}.weight"] = Stored((1, points.shape[1]), points.dtype, row)
    neck = prefix + NECK
    for name, tensor in list(tensors.items()):
        if name.startswith(neck):
            copy = tensor._replace(read=lambda tensor=tensor: tensor.read().clone())
            tensors[prefix + DETECTOR_NECK + name.removeprefix(neck)] = copy
    return tensors


# -------------------------------------------------------------------- .pt <-> ours
def from_pt(
    source: Path | str, output: Path | str, content: Any, asked: Sa2VASam3Config | None, max_shard_size: str
) -> None:
    """A `.pt` of SAM 3, whose `content` was read, -> config.json and safetensors in `output`.

    Raises:
        ValueError: listing what is missing, left over or of another shape.
    """
    source, output = Path(source), Path(output)
    tensors, config = of_pt(source, content, asked)
    _write(tensors, config, output, max_shard_size)
    logger.info("%d tensors of %s written to %s", len(tensors), source, output)


def of_pt(
    source: Path | str, content: Any, asked: Sa2VASam3Config | None = None
) -> tuple[dict[str, Stored], Sa2VASam3Config]:
    """The tensors of a `.pt` of SAM 3, whose `content` was read, under transformers' names, and their config."""
    source = Path(source)
    stored, skipped = _own_names({name: _in_memory(value) for name, value in _state(content, source).items()})
    config = recognise({name: tensor.shape for name, tensor in stored.items()}, source, asked)
    stored, unread = without_unread(stored)
    stored, expected = gathered(stored), shapes(config)
    plan = moves(expected, sam3_rules())
    audit(stored, moved_shapes(plan, expected), source, "SAM 3's tracker")
    tensors: dict[str, Stored] = {}
    for move in plan:
        tensors |= cut(move, stored[move.released])
    _say_what_is_left([*skipped, *unread])
    return tensors, config


def of_either(
    source: Path | str, asked_of_file: Sa2VASam3Config | None = None
) -> tuple[dict[str, Stored], Sa2VASam3Config]:
    """Of a folder, whose config names the SAM 3, or of a `.pt`.

    Raises:
        ValueError: there is no such file or folder.
    """
    source = Path(source)
    if source.is_dir():
        return of_folder(source)
    if source.is_file():
        return of_pt(source, read_pickle(source), asked_of_file)
    raise ValueError(f"{source}: no such file or folder; expected a .pt of SAM 3, or a folder with config.json")


def to_pt(source: Path | str, output: Path | str) -> None:
    """SAM 3 of a folder (alone, or in a Sa2VA of ours) -> a `.pt` in `output`, with the names that its own file has.

    Of two mask decoders SAM 3's own is taken, which knows points and memory; else the fine-tuned one.
    """
    source, output = Path(source), Path(output)
    tensors, _ = of_folder(source)
    plan = moves(tensors, sam3_rules())
    released = scattered({move.released: join(move, tensors) for move in plan})
    output.mkdir(parents=True, exist_ok=True)
    state = {_published_name(name): tensor.read() for name, tensor in released.items()}
    torch.save({"model": state}, output / FILE)
    logger.info("%d tensors of %s became %d in %s", len(tensors), source, len(state), output / FILE)


def _published_name(name: str) -> str:
    """As SAM 3's own file has it: the vision encoder is the detector's there."""
    return (DETECTOR if name.startswith(VISION) else TRACKER) + name.replace("g_weight", "gamma")


def looks_like(content: Any) -> bool:
    """Whether what a `.pt` holds is SAM 3, by its names."""
    state = content.get("model", content) if isinstance(content, dict) else {}
    return isinstance(state, dict) and any(TRUNK in str(name) for name in state)


def _state(content: Any, source: Path) -> dict[str, Tensor]:
    state = content.get("model", content)
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{source}: expected a state dict, alone or under 'model'; not tensors: {listed(wrong)}")
    return state


def _own_names(stored: dict[str, Stored]) -> tuple[dict[str, Stored], list[str]]:
    """The tracker's tensors under its own names, and the names of the detector's, which are skipped."""
    if not any(name.startswith(TRACKER) for name in stored):
        return {GAMMA.sub(r"\1g_weight", name): tensor for name, tensor in stored.items()}, []
    own, skipped = {}, []
    for name, tensor in stored.items():
        if name.startswith(TRACKER):
            own[GAMMA.sub(r"\1g_weight", name.removeprefix(TRACKER))] = tensor
        elif name.startswith(DETECTOR + VISION):
            own[name.removeprefix(DETECTOR)] = tensor
        else:
            skipped.append(name)
    return own, skipped


def _in_memory(tensor: Tensor) -> Stored:
    # a copy: tensors of a pickle may share their memory, which safetensors does not store
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.contiguous().clone())


# -------------------------------------------------------------------- transformers' folder <-> ours
def from_transformers(source: Path | str, output: Path | str, max_shard_size: str = "5GB") -> None:
    """A folder of `Sam3TrackerVideoModel`, or of the whole SAM 3 as facebook/sam3 has it, -> a folder of ours.

    Raises:
        ValueError: listing what is missing, left over or of another shape.
    """
    source, output = Path(source), Path(output)
    fields, stored = read_json(source / "config.json"), read_folder(source)
    config = our_config(fields.get("tracker_config") or fields)
    skipped: list[str] = []
    if any(name.startswith(WHOLE_MODEL[2][0]) for name in stored):
        renamed = {name: _of_whole(name) for name in stored}
        skipped = [name for name, ours in renamed.items() if ours is None]
        stored = {ours: stored[name] for name, ours in renamed.items() if ours is not None}
    audit(stored, shapes(config), source)
    _say_what_is_left(skipped)
    _write(stored, config, output, max_shard_size)
    logger.info("%d tensors of %s written to %s", len(stored), source, output)


def _of_whole(name: str) -> str | None:
    for theirs, ours in WHOLE_MODEL:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def to_transformers(source: Path | str, output: Path | str, max_shard_size: str = "5GB") -> None:
    """SAM 3 of a folder of ours (alone, or in a Sa2VA) -> a folder that `Sam3TrackerVideoModel.from_pretrained`
    loads."""
    source, output = Path(source), Path(output)
    tensors, config = of_folder(source)
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    made = transformers_config(config)
    made.architectures = ["Sam3TrackerVideoModel"]
    made.save_pretrained(output)
    logger.info("%d tensors of %s written to %s", len(tensors), source, output)


def our_config(theirs: dict[str, Any]) -> Sa2VASam3Config:
    """From transformers' config.json of the tracker. Its `layer_norm_eps` is not taken over: the published one says
    1e-6, SAM 3 computes with 1e-5."""
    vision = theirs.get("vision_config") or {}
    trunk = vision.get("backbone_config") or {}
    names = {
        "image_size": (trunk, "image_size"),
        "patch_size": (trunk, "patch_size"),
        "embed_dim": (trunk, "hidden_size"),
        "num_layers": (trunk, "num_hidden_layers"),
        "num_heads": (trunk, "num_attention_heads"),
        "mlp_dim": (trunk, "intermediate_size"),
        "window_size": (trunk, "window_size"),
        "global_att_blocks": (trunk, "global_attn_indexes"),
        "pretrain_image_size": (trunk, "pretrain_image_size"),
        "hidden_dim": (vision, "fpn_hidden_size"),
        "memory_dim": (theirs, "memory_encoder_output_channels"),
        "memory_layers": (theirs, "memory_attention_num_layers"),
        "memory_feedforward": (theirs, "memory_attention_feed_forward_hidden_size"),
        "num_maskmem": (theirs, "num_maskmem"),
        "max_obj_ptrs": (theirs, "max_object_pointers_in_encoder"),
        "max_cond_frames_in_attn": (theirs, "max_cond_frame_num"),
    }
    return Sa2VASam3Config(**{ours: section[name] for ours, (section, name) in names.items() if name in section})


# -------------------------------------------------------------------- a folder of ours
def of_folder(source: Path | str) -> tuple[dict[str, Stored], Sa2VASam3Config]:
    """The tensors of the SAM 3 in a folder of ours (alone, or in a Sa2VA) under transformers' names, unread, and its
    config.

    Raises:
        ValueError: listing what is missing, left over or of another shape.
    """
    source = Path(source)
    stored, tracker = read_folder(source), "grounding_encoder.tracking_decoder."
    if read_json(source / "config.json").get("model_type") == Sa2VAConfig.model_type:
        config = Sa2VAConfig.from_pretrained(source).grounding_config
        _say_what_is_left([name for name in stored if not name.startswith("grounding_encoder.")])
        tensors = {name.removeprefix(SAM3): tensor for name, tensor in stored.items() if name.startswith(SAM3)}
        for name, tensor in stored.items():
            if name.startswith(tracker):
                tensors["mask_decoder." + name.removeprefix(tracker)] = tensor
        stored = tensors
    else:
        config = Sa2VASam3Config.from_pretrained(source)
    audit(stored, shapes(config), source)
    return stored, config


def shapes(config: Sa2VASam3Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `Sam3TrackerVideoModel`'s state dict."""
    with torch.device("meta"):
        state = build_sam3(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _write(tensors: dict[str, Stored], config: Sa2VASam3Config, output: Path, max_shard_size: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    config.save_pretrained(output)  # last: it marks a complete folder


def _say_what_is_left(names: list[str]) -> None:
    if names:
        groups = Counter(".".join(name.split(".")[:2]) for name in names)
        listing = listed(f"{group} ({count} tensors)" for group, count in groups.items())
        logger.info("skipped, not part of SAM 3's tracker: %s", listing)
