"""Configuration of Sa2VA: a native multimodal LLM and SAM 2 as two sub-configs, and what joins them.

Source of the default numbers: Sa2VA (arXiv 2501.04001) and its released training configuration; SAM 2's flags are
those of `sam2/configs/sam2{,.1}/*.yaml`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .configuration_sam3 import Sa2VASam3Config
from .sides import check_side

IGNORE_INDEX = -100  # of labels: no loss there
SEG_TOKEN = "[SEG]"
# Added to the tokenizer in this order; released checkpoints rely on it.
SPECIAL_TOKENS = (SEG_TOKEN, "<p>", "</p>", "<vp>", "</vp>")
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
PLACEHOLDER = "<image>"  # in a text: where its pictures come
# What structures a prompt, in any of the LLMs. In the text of a user these strings are text and nothing else.
CONTROL_TOKENS = (
    *(IMAGE_START, IMAGE_CONTEXT, IMAGE_END, "<vp>", "</vp>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<s>", "</s>"),
)
_CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
CONTROL_BREAK = "\ue000\uf8ff\ue000"  # private characters: between them the tokenizer is called anew

# Hiera trunks of the four published sizes; everything else is the same in all of them.
SAM2_TRUNKS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": [1, 2, 7, 2],
        "global_att_blocks": [5, 7, 9],
        "window_pos_embed_bkg_spatial_size": [7, 7],
        "window_spec": [8, 4, 14, 7],
    },
    "small": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": [1, 2, 11, 2],
        "global_att_blocks": [7, 10, 13],
        "window_pos_embed_bkg_spatial_size": [7, 7],
        "window_spec": [8, 4, 14, 7],
    },
    "base_plus": {
        "embed_dim": 112,
        "num_heads": 2,
        "stages": [2, 3, 16, 3],
        "global_att_blocks": [12, 16, 20],
        "window_pos_embed_bkg_spatial_size": [14, 14],
        "window_spec": [8, 4, 14, 7],
    },
    "large": {
        "embed_dim": 144,
        "num_heads": 2,
        "stages": [2, 6, 36, 4],
        "global_att_blocks": [23, 33, 43],
        "window_pos_embed_bkg_spatial_size": [7, 7],
        "window_spec": [8, 4, 16, 8],
    },
}
SAM2_VERSIONS = ("2.0", "2.1")


def control_tokens_in(text: str) -> list[str]:
    """The control tokens that a text contains, each once, in order."""
    return list(dict.fromkeys(_CONTROL.findall(text)))


def break_control_tokens(text: str) -> str:
    """The text with a `CONTROL_BREAK` inside every control token, where a processor tokenises its parts one by one: so
    the text of a user never becomes a control token. Raises: ValueError for a text that has such a break already."""
    if CONTROL_BREAK in text:
        raise ValueError("messages: the text contains U+E000 U+F8FF U+E000, which this processor uses itself")
    return _CONTROL.sub(lambda found: found[0][0] + CONTROL_BREAK + found[0][1:], text)


def check_identity(path: Any, fields: dict[str, Any] | None = None) -> None:
    """Refuse a folder that holds another kind of model, before anything is built.

    fields: the content of its config.json; default: what is read from the folder, if there is one.

    Raises:
        ValueError: which kind it is, and what to do with it.
    """
    folder = Path(str(path))
    if fields is None and folder.is_dir():
        if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{path}: holds LoRA weights without their base model; merge them first with scripts/merge_lora.py"
            )
        fields = _read_config(folder / "config.json")
    kind = (fields or {}).get("model_type")
    if kind in (None, Sa2VAConfig.model_type):
        return
    what = f"model_type {kind!r}"
    if names := fields.get("architectures"):
        what += f", {', '.join(map(str, names))}"
    if "sa2va" in what.lower() and kind not in GROUNDING_CONFIGS:
        advice = f"a released Sa2VA; convert it: python scripts/convert_checkpoint.py --source {path} --output DIR"
    elif kind in GROUNDING_CONFIGS:
        advice = f"{'SAM 3' if kind == Sa2VASam3Config.model_type else 'SAM 2'} alone; give a whole Sa2VA"
    elif "lisa" in what.lower():
        advice = "a LISA checkpoint, which has another architecture; give a Sa2VA"
    else:
        advice = "no Sa2VA; a multimodal LLM becomes the base of one in training, with scripts/train.py"
    raise ValueError(f"{path}: this is {advice} ({what})")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers says what is wrong with the file
    return content if isinstance(content, dict) else {}


def bundled(path: Any) -> Any:
    """The folder of a model that ships with the package, if `path` is its name (and no folder here is called so)."""
    folder = Path(__file__).resolve().parents[1] / "pretrained" / str(path)
    is_name = isinstance(path, str) and Path(path).name == path and not Path(path).exists()
    return str(folder) if is_name and folder.is_dir() else path


class Sa2VAGroundingConfig(PretrainedConfig):
    """SAM 2 (arXiv 2408.00714) in numbers: `size` gives a published trunk, every dimension may be given instead.

    Args:
        version: "2.0" or "2.1"; 2.1 adds a spatial no-object embedding and projected temporal pointer encodings.
        size: "tiny", "small", "base_plus" or "large"; fills the trunk fields that are not given.
        image_size: side of the square input in pixels; a multiple of 32.
        hidden_dim: width of the neck, memory attention and mask decoder; also of the [SEG] embedding. A
            multiple of 32.
        memory_dim, memory_layers, memory_feedforward: the memory encoder's width and the memory attention's size.
        max_cond_frames_in_attn: how many prompted frames a frame looks at, the nearest ones; at least 2, or -1 for
            all, as published.
        tracking_decoder: whether SAM 2's own mask decoder comes along beside the fine-tuned one, to follow objects
            through a clip (as in Sa2VA-i checkpoints).
    """

    model_type = "sa2va_grounding"
    base_config_key = "grounding_config"

    def __init__(
        self,
        version: str = "2.0",
        size: str = "large",
        image_size: int = 1024,
        hidden_dim: int = 256,
        embed_dim: int | None = None,
        num_heads: int | None = None,
        stages: list[int] | None = None,
        global_att_blocks: list[int] | None = None,
        window_pos_embed_bkg_spatial_size: list[int] | None = None,
        window_spec: list[int] | None = None,
        memory_dim: int = 64,
        memory_layers: int = 4,
        memory_feedforward: int = 2048,
        num_maskmem: int = 7,
        max_cond_frames_in_attn: int = -1,
        tracking_decoder: bool = False,
        **kwargs: Any,
    ) -> None:
        if version not in SAM2_VERSIONS:
            raise ValueError(f"grounding_config.version: expected one of {SAM2_VERSIONS}, got {version!r}")
        if size not in SAM2_TRUNKS:
            raise ValueError(f"grounding_config.size: expected one of {sorted(SAM2_TRUNKS)}, got {size!r}")
        check_side("grounding_config.image_size", image_size)
        if image_size % 32:
            raise ValueError(f"grounding_config.image_size: expected a multiple of 32, got {image_size}")
        if hidden_dim % 32:
            raise ValueError(f"grounding_config.hidden_dim: expected a multiple of 32, got {hidden_dim}")
        self.version, self.size = version, size
        self.image_size, self.hidden_dim = image_size, hidden_dim
        given = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "stages": stages,
            "global_att_blocks": global_att_blocks,
            "window_pos_embed_bkg_spatial_size": window_pos_embed_bkg_spatial_size,
            "window_spec": window_spec,
        }
        for name, published in SAM2_TRUNKS[size].items():
            setattr(self, name, published if given[name] is None else given[name])
        self.memory_dim, self.memory_layers, self.memory_feedforward = memory_dim, memory_layers, memory_feedforward
        if max_cond_frames_in_attn != -1 and max_cond_frames_in_attn < 2:
            raise ValueError(
                "grounding_config.max_cond_frames_in_attn: expected -1 (all) or at least 2, got "
                f"{max_cond_frames_in_attn}"
            )
        self.num_maskmem, self.max_cond_frames_in_attn = num_maskmem, max_cond_frames_in_attn
        self.tracking_decoder = tracking_decoder
        super().__init__(**kwargs)

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        return self.image_size // 4


GROUNDING_CONFIGS = {kind.model_type: kind for kind in (Sa2VAGroundingConfig, Sa2VASam3Config)}
VIT = "internvl_vision"  # model type of InternVL's own vision tower


class Sa2VAConfig(PretrainedConfig):
    """Sa2VA: `mllm_config` reads and writes text, `grounding_config` (SAM 2 or SAM 3) predicts the masks of its
    [SEG].

    Args:
        mllm_config: a config, or its dict, of a native multimodal LLM (InternVL, LLaVA-1.5, Qwen2.5-VL, Qwen3-VL).
        grounding_config: a `Sa2VAGroundingConfig` (SAM 2) or `Sa2VASam3Config` (SAM 3), or its dict, in which
            `model_type` tells which; without it, SAM 2.
        template: name of the chat template (`processing_sa2va.TEMPLATES`).
        seg_token_id: id of [SEG] in the tokenizer.
        mask_loss_weight, dice_loss_weight: 2.0 and 0.5 in the released training.
        iou_loss_weight: 0 in the released training, whose SAM 2 starts trained. Above 0 all three candidates learn the
            mask and the IoU head learns to rank them (needed from scratch).
        box_loss_weight: of the projection term (BoxInst, arXiv 2012.02310), by which objects that have a box and no
            mask train their masks; 1.0 there. Data with masks are not concerned.
        object_score_loss_weight: of the object score, by cross entropy: whether the object is on the frame, which an
            empty mask denies. 0 in the released training, where SAM 2 keeps the score that it came with.
        mask_targets: "nearest" cells of the mask, as released, or "area" shares, which keep sub-cell edges where
            masks are coarse (a small `image_size`).
        num_points: points per mask of the point-sampled losses (PointRend, arXiv 1912.08193); 0 = every cell.
        objects_per_frame: every frame weighs as this many masks (fewer objects count more, more are subsampled); None
            = every object counts once.
        seg_before_norm: [SEG] is read before the LLM's last norm, not after it. So it was in the released training on
            Qwen3-VL alone: transformers 4.57 leaves the norm out of that model's last `hidden_states`.
        video_mode: default way of predicting the masks of a clip (`video_modes.VIDEO_MODES`). "per_frame" suits a
            model whose SAM 2 was not trained to use memory.
    """

    model_type = "sa2va"
    sub_configs = {"mllm_config": AutoConfig, "grounding_config": Sa2VAGroundingConfig}

    def __init__(
        self,
        mllm_config: PretrainedConfig | dict | None = None,
        grounding_config: Sa2VAGroundingConfig | Sa2VASam3Config | dict | None = None,
        template: str = "qwen_chat",
        seg_token_id: int | None = None,
        mask_loss_weight: float = 2.0,
        dice_loss_weight: float = 0.5,
        iou_loss_weight: float = 0.0,
        box_loss_weight: float = 1.0,
        object_score_loss_weight: float = 0.0,
        mask_targets: str = "nearest",
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        objects_per_frame: int | None = 5,
        seg_before_norm: bool = False,
        video_mode: str = "consistent",
        **kwargs: Any,
    ) -> None:
        if mllm_config is None:
            mllm_config = {"model_type": "internvl"}
        if isinstance(mllm_config, dict):
            mllm_config = _mllm_config(mllm_config)
        if grounding_config is None or isinstance(grounding_config, dict):
            grounding_config = _grounding_config(grounding_config or {})
        self.mllm_config, self.grounding_config = mllm_config, grounding_config
        self.template, self.seg_token_id = template, seg_token_id
        self.mask_loss_weight, self.dice_loss_weight = mask_loss_weight, dice_loss_weight
        self.iou_loss_weight, self.box_loss_weight = iou_loss_weight, box_loss_weight
        self.object_score_loss_weight = object_score_loss_weight
        if mask_targets not in ("nearest", "area"):
            raise ValueError(f"mask_targets: expected 'nearest' or 'area', got {mask_targets!r}")
        self.mask_targets = mask_targets
        self.num_points = num_points
        self.oversample_ratio, self.importance_sample_ratio = oversample_ratio, importance_sample_ratio
        self.objects_per_frame = objects_per_frame
        self.seg_before_norm = seg_before_norm
        self.video_mode = video_mode
        # The released checkpoints train the embedding and the head as two matrices; so do we, at every level.
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Sa2VAConfig:
        """As in transformers; bundled models have names, and the config of another kind of model is refused.

        Raises:
            ValueError: saying which kind it is, and what to do with it.
        """
        path = bundled(path)
        check_identity(path)
        check_identity(path, cls.get_config_dict(path, **kwargs)[0])
        return super().from_pretrained(path, *args, **kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        return self.mllm_config.get_text_config(*args, **kwargs)

    @property
    def hidden_size(self) -> int:
        return self.get_text_config().hidden_size

    @property
    def vocab_size(self) -> int:
        return self.get_text_config().vocab_size


def _grounding_config(fields: dict[str, Any]) -> Sa2VAGroundingConfig | Sa2VASam3Config:
    kind = fields.get("model_type", Sa2VAGroundingConfig.model_type)
    if kind not in GROUNDING_CONFIGS:
        raise ValueError(f"grounding_config.model_type: expected one of {sorted(GROUNDING_CONFIGS)}, got {kind!r}")
    return GROUNDING_CONFIGS[kind](**fields)


def _mllm_config(fields: dict[str, Any]) -> PretrainedConfig:
    """The config of an LLM from its dict.

    InternVL builds its vision tower by `AutoModel`, but reads every `vision_config` dict as one of its own ViT, and
    transformers 5.3 ignores a config of another type. So a dict of another type becomes the config of that type here
    and is set afterwards: the tower may be, for example, a ConvNeXt.
    """
    fields = dict(fields)
    kind, vision = fields.pop("model_type", "internvl"), fields.get("vision_config")
    if kind != "internvl" or not isinstance(vision, dict) or vision.get("model_type", VIT) == VIT:
        return AutoConfig.for_model(kind, **fields)
    del fields["vision_config"]
    config = AutoConfig.for_model(kind, **fields)
    config.vision_config = AutoConfig.for_model(**vision)
    return config
