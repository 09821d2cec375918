"""Released Sa2VA folders (InternVL family) -> this package's layout, without running any code from them.

Names of the released tensors: `bytedance/Sa2VA`, projects/sa2va/hf; names of ours: transformers' InternVL and the
`sam2` package. Nothing is computed: tensors are renamed, the vision tower's qkv is cut into three, and every value
keeps its bits. All names and shapes are checked before the first weight is read.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, InternVLConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..model.configuration_sa2va import (
    IMAGE_CONTEXT,
    SEG_TOKEN,
    SPECIAL_TOKENS,
    Sa2VAConfig,
    Sa2VAGroundingConfig,
)
from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from .zero import read_json

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# llm_config.architectures[0] -> model_type of the native class
LANGUAGE_MODELS = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
# Of llm_config: what must be there, since a default would be a guess, and what is taken over where it is.
LANGUAGE_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings",
)  # fmt: skip
LANGUAGE_TAKEN = (
    "hidden_act", "head_dim", "attention_bias", "attention_dropout", "mlp_bias", "initializer_range",
    "use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# vision_config's field -> InternVLVisionConfig's
VISION_NEEDED = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "image_size": "image_size", "patch_size": "patch_size",
    "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
VISION_TAKEN = {
    "norm_type": "norm_type", "hidden_act": "hidden_act", "num_channels": "num_channels",
    "attention_dropout": "attention_dropout", "dropout": "projection_dropout",
    "initializer_range": "initializer_range",
}  # fmt: skip
TOP_NEEDED = ("force_image_size", "downsample_ratio", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail")
# What only one value of is implemented.
TOP_FIXED = {"select_layer": -1, "ps_version": "v2", "pad2square": False, "use_backbone_lora": 0, "use_llm_lora": 0}

# Released name -> ours, first match wins. Under "attn.qkv." lie three tensors of ours, see `targets_of`.
_BLOCK = r"^vision_model\.encoder\.layers\.(\d+)\."
_TOWER, _LAYER = "mllm.model.vision_tower", r"mllm.model.vision_tower.encoder.layer.\1"
_RENAMES = [
    (r"^vision_model\.embeddings\.class_embedding$", f"{_TOWER}.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", f"{_TOWER}.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", f"{_TOWER}.embeddings.patch_embeddings.projection."),
    (_BLOCK + r"norm1\.", _LAYER + ".layernorm_before."),
    (_BLOCK + r"norm2\.", _LAYER + ".layernorm_after."),
    (_BLOCK + r"ls([12])$", _LAYER + r".lambda_\2"),
    (_BLOCK + r"attn\.qkv\.", _LAYER + ".attention.{}_proj."),
    (_BLOCK + r"attn\.proj\.", _LAYER + ".attention.projection_layer."),
    (_BLOCK + r"attn\.([qk]_norm)\.", _LAYER + r".attention.\2."),
    (_BLOCK + r"mlp\.(fc[12])\.", _LAYER + r".mlp.\2."),
    (r"^mlp1\.0\.", "mllm.model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "mllm.model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "mllm.model.multi_modal_projector.linear_2."),
    (r"^language_model\.model\.", "mllm.model.language_model."),
    (r"^language_model\.lm_head\.", "mllm.lm_head."),
    (r"^(grounding_encoder\.sam2_model\.memory_encoder\.fuser\.layers\.\d+)\.g_weight$", r"\1.gamma"),
    (r"^(grounding_encoder\.sam2_model|text_hidden_fcs)\.", r"\1."),
]
RENAMES = [(re.compile(pattern), replacement) for pattern, replacement in _RENAMES]
# Deliberately left behind: buffers that old versions of transformers stored and that follow from the config.
DROPPED = re.compile(r"\.rotary_emb\.inv_freq$")


class Place(NamedTuple):
    """Where a tensor of ours comes from: a released tensor, or the `part`-th of the three in it."""

    name: str
    part: int | None = None


def convert(
    source: Path,
    output: Path,
    *,
    grounding_config: Sa2VAGroundingConfig | None = None,
    max_shard_size: str = "5GB",
) -> Sa2VAConfig:
    """Write weights, processor and config of the released folder `source` to `output`; returns the config.

    Args:
        grounding_config: SAM 2's size; default 2.0 large, which all releases have and none of their configs names.
        max_shard_size: larger models are written in several files, with an index. The tensors of one written file are
            in memory at a time.

    Errors: ValueError naming the field, file or tensors that do not fit; nothing has been written then.
    """
    if any(path.suffix == ".safetensors" or path.name == "config.json" for path in output.glob("*")):
        raise ValueError(f"{output} holds a model already: give an empty folder, or a new one")
    if not (source / "config.json").is_file():
        raise ValueError(f"{source}: no config.json; expected a downloaded Sa2VA folder")
    released = read_json(source / "config.json")
    text_config = to_text_config(released)
    tokenizer = load_tokenizer(source, text_config)
    config = to_config(released, text_config, tokenizer, grounding_config or Sa2VAGroundingConfig())
    processor = to_processor(released, config, tokenizer)
    weights = ReleasedWeights(source)
    places = audit(weights.shapes, expected_shapes(config), source)
    output.mkdir(parents=True, exist_ok=True)
    weights.write(places, output, max_shard_size)
    config.architectures = [Sa2VAForConditionalGeneration.__name__]
    config.dtype = weights.dtypes[places["mllm.model.language_model.embed_tokens.weight"].name]
    processor.save_pretrained(output)
    config.save_pretrained(output)  # last: a folder with a config is a complete one
    logger.info("%d tensors of %s became %d in %s", len(weights.shapes), source, len(places), output)
    return config


# -------------------------------------------------------------------- config, tokenizer, processor
def _needed(section: dict[str, Any], fields: Any, where: str) -> dict[str, Any]:
    missing = [field for field in fields if section.get(field) is None]
    if missing:
        raise ValueError(f"config.json: {where} lacks {', '.join(missing)}; these are not guessed")
    return {field: section[field] for field in fields}


def to_text_config(released: dict[str, Any]) -> PreTrainedConfig:
    """`llm_config` -> the native config of Qwen2, Qwen3 or Llama. Errors: ValueError naming another architecture."""
    if "llm_config" not in released or "vision_config" not in released:
        raise ValueError(
            f"config.json: expected llm_config and vision_config (Sa2VA of the InternVL family), got model_type "
            f"{released.get('model_type')!r} with architectures {released.get('architectures')}"
        )
    llm = released["llm_config"]
    architecture = (llm.get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        raise ValueError(
            f"config.json: llm_config.architectures[0]: expected one of {sorted(LANGUAGE_MODELS)}, got "
            f"{architecture!r}, which this converter does not know"
        )
    fields = _needed(llm, LANGUAGE_NEEDED, "llm_config") | {k: llm[k] for k in LANGUAGE_TAKEN if k in llm}
    scaling = {k: v for k, v in (llm.get("rope_scaling") or {}).items() if k != "type"}
    kind = (llm.get("rope_scaling") or {}).get("type", "default")  # its name before it was called rope_type
    fields["rope_parameters"] = {"rope_type": kind} | scaling | {"rope_theta": fields.pop("rope_theta")}
    left = sorted(set(llm) - set(fields) - {"rope_theta", "rope_scaling"})
    logger.info("fields of llm_config that shape no weight and are not taken over: %s", ", ".join(left))
    return AutoConfig.for_model(LANGUAGE_MODELS[architecture], tie_word_embeddings=False, **fields)


def load_tokenizer(source: Path, text_config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, of a class of transformers'. Errors: ValueError for a wrong vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(source, config=text_config, trust_remote_code=False)
    if len(tokenizer) != text_config.vocab_size:
        raise ValueError(
            f"config.json: llm_config.vocab_size is {text_config.vocab_size}, but the tokenizer has {len(tokenizer)} "
            "entries; do they belong together?"
        )
    missing = sorted({IMAGE_CONTEXT, *SPECIAL_TOKENS} - set(tokenizer.get_vocab()))
    if missing:
        raise ValueError(f"{source}: the tokenizer lacks {', '.join(missing)}; is it the base model's?")
    return tokenizer


def to_config(
    released: dict[str, Any],
    text_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    grounding_config: Sa2VAGroundingConfig,
) -> Sa2VAConfig:
    """The released config in our words. Errors: ValueError naming fields that are missing or not supported."""
    if not released.get("template"):
        raise ValueError('config.json: no template; add the chat template it was trained with, e.g. "phi3_chat"')
    wrong = [f"{k} {released[k]!r} (only {v!r})" for k, v in TOP_FIXED.items() if released.get(k, v) != v]
    if wrong:
        raise ValueError(f"config.json: not supported: {', '.join(wrong)}")
    top, vision = _needed(released, TOP_NEEDED, "the top level"), released["vision_config"]
    taken = _needed(vision, VISION_NEEDED, "vision_config") | {k: vision[k] for k in VISION_TAKEN if k in vision}
    side, patch, ratio = top["force_image_size"], vision["patch_size"], top["downsample_ratio"]
    if side != vision["image_size"]:
        raise ValueError(
            f"config.json: force_image_size is {side}, vision_config.image_size {vision['image_size']}; only equal "
            "ones are supported"
        )
    if vision.get("drop_path_rate"):
        logger.info("vision_config.drop_path_rate %s: native InternVL has none", vision["drop_path_rate"])
    names = VISION_NEEDED | VISION_TAKEN
    mllm = InternVLConfig(
        vision_config={names[field]: value for field, value in taken.items()},
        text_config=text_config.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=int(side // patch * ratio) ** 2,
        downsample_ratio=ratio,
        tie_word_embeddings=False,
    )
    return Sa2VAConfig(
        mllm_config=mllm.to_dict(),
        grounding_config=grounding_config.to_dict(),
        template=released["template"].replace("-", "_"),
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
    )


def to_processor(released: dict[str, Any], config: Sa2VAConfig, tokenizer: PreTrainedTokenizerBase) -> Sa2VAProcessor:
    """The processor that the released config describes. Errors: ValueError for an unknown template."""
    dynamic = released.get("dynamic_image_size", True)
    return Sa2VAProcessor(
        tokenizer,
        template=config.template,
        tile_size=released["force_image_size"],
        patch_size=released["vision_config"]["patch_size"],
        downsample_ratio=released["downsample_ratio"],
        min_tiles=released["min_dynamic_patch"] if dynamic else 1,
        max_tiles=released["max_dynamic_patch"] if dynamic else 1,
        use_thumbnail=released["use_thumbnail"],
        grounding_image_size=config.grounding_config.image_size,
        # Qwen's were trained without, the others with their tokenizer's
        add_bos=config.get_text_config().model_type == "llama" and tokenizer.bos_token_id is not None,
    )


# -------------------------------------------------------------------- names and shapes
def targets_of(name: str) -> list[tuple[str, Place]]:
    """Our tensors that a released one becomes: one, three for a qkv, none for an unknown name."""
    for pattern, replacement in RENAMES:
        renamed, found = pattern.subn(replacement, name)
        if found and "{}" in renamed:
            return [(renamed.format(letter), Place(name, part)) for part, letter in enumerate("qkv")]
        if found:
            return [(renamed, Place(name))]
    return []


def expected_shapes(config: Sa2VAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model's state dict; only SAM 2 gets memory for its weights."""
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def audit(stored: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], source: Path) -> dict[str, Place]:
    """Where each tensor of `expected` comes from. Errors: ValueError listing all tensors that are missing, left over
    or of another shape."""
    places: dict[str, Place] = {}
    problems: list[str] = []
    dropped = [name for name in stored if DROPPED.search(name)]
    for name, shape in stored.items():
        if name in dropped:
            continue
        targets = targets_of(name)
        if not targets or any(target not in expected for target, _ in targets):
            problems.append(f"unexpected: {name} {list(shape)}")
            continue
        for target, place in targets:
            wanted = expected[target]
            wanted = wanted if place.part is None else (3 * wanted[0], *wanted[1:])
            if shape != wanted:
                problems.append(f"wrong shape: {name} is {list(shape)}, the config says {list(wanted)}")
            places[target] = place
    problems += [f"missing: {target} {list(expected[target])}" for target in expected if target not in places]
    if problems:
        raise ValueError("\n".join([f"{source}: the weights do not fit config.json", *dict.fromkeys(problems)]))
    if dropped:
        logger.info("left behind, since they follow from the config: %s", ", ".join(dropped))
    return places


# -------------------------------------------------------------------- files
class ReleasedWeights:
    """The tensors of a folder's safetensors files: names, shapes and types from the headers, values when asked."""

    def __init__(self, source: Path) -> None:
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for path in self._paths(source):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                header = file.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise ValueError(f"{path}: {name} is {header.get_dtype()}; expected one of {sorted(DTYPES)}")
                self.files[name] = file
                self.shapes[name], self.dtypes[name] = tuple(header.get_shape()), DTYPES[header.get_dtype()]

    @staticmethod
    def _paths(source: Path) -> list[Path]:
        """The files, after a look at whether the index, if there is one, tells the truth about them."""
        if (source / WEIGHTS).is_file():
            return [source / WEIGHTS]
        if not (source / INDEX).is_file():
            raise ValueError(f"{source}: neither {WEIGHTS} nor {INDEX}; other forms (pickles) are not read")
        where: dict[str, str] = read_json(source / INDEX)["weight_map"]
        missing = sorted(name for name in set(where.values()) if not (source / name).is_file())
        if missing:
            raise ValueError(f"{source}: shards named in {INDEX} are missing: {', '.join(missing)}")
        problems = []
        for shard in sorted(set(where.values())):
            held, named = set(_open(source / shard).keys()), {name for name, file in where.items() if file == shard}
            problems += [f"{name} is not in {shard}, where {INDEX} says it is" for name in sorted(named - held)]
            problems += [f"{name} in {shard} is not named in {INDEX}" for name in sorted(held - named)]
        if problems:
            raise ValueError("\n".join([f"{source}: index and shards do not agree", *problems]))
        return [source / name for name in sorted(set(where.values()))]

    def read(self, place: Place) -> Tensor:
        tensor = self.files[place.name].get_tensor(place.name)
        return tensor if place.part is None else tensor.chunk(3)[place.part].clone()

    def write(self, places: dict[str, Place], output: Path, max_shard_size: str) -> None:
        """Our names, the stored values and types, file by file; an index if there are several."""
        empty = {}
        for target, place in places.items():
            rows, *rest = self.shapes[place.name]
            rows = rows if place.part is None else rows // 3
            empty[target] = torch.empty(rows, *rest, dtype=self.dtypes[place.name], device="meta")
        split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
        for file, names in split.filename_to_tensors.items():
            save_file({name: self.read(places[name]) for name in names}, output / file, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (output / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read, it may be cut short ({error})") from error
