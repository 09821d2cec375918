"""Configuration of SAM 3's tracker as the grounding encoder of a Sa2VA.

Source of the default numbers: the release `Sa2VA-Qwen3-VL-4B-SAM3`. They are kept here rather than in transformers'
`Sam3TrackerVideoConfig`, whose form differs between versions of transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from .sides import check_side

MEMORY_DIM = 64  # fixed in transformers' memory attention


class Sa2VASam3Config(PretrainedConfig):
    """The tracker of SAM 3 with its own vision encoder, in numbers; the detector and its text encoder are no part.

    Args:
        image_size: side of the square input in pixels; a multiple of `patch_size * window_size`, so that the windows
            of attention need no padding.
        patch_size: stride of the grid; masks are predicted at a quarter of it.
        hidden_dim: width of the neck, memory attention and mask decoder; also of the [SEG] embedding. A multiple
            of 64.
        embed_dim, num_layers, num_heads, mlp_dim: size of the vision transformer.
        window_size: side of an attention window in patches.
        global_att_blocks: layers whose attention is not windowed.
        pretrain_image_size: side of the square whose position embeddings are tiled over the input.
        layer_norm_eps: of the vision transformer; 1e-5 as in the release (transformers' own default is 1e-6).
        memory_dim, memory_layers, memory_feedforward: the memory encoder's width and the memory attention's size.
        num_maskmem: frames that a frame looks at: the prompted ones count as one, the others precede it.
        max_obj_ptrs: how far back a frame looks at object pointers, plus one.
        max_cond_frames_in_attn: how many prompted frames a frame looks at, the nearest ones; at least 2, or -1 for
            all.
        blank_absent: whether masks are blanked where the object score says that there is no object. So in the
            release; a decoder trained further learns no object score.
        tracking_decoder: whether SAM 3's own mask decoder comes along beside the fine-tuned one, to follow objects
            through a clip.

    Raises:
        ValueError: a size that SAM 3 cannot have.
    """

    model_type = "sa2va_grounding_sam3"
    base_config_key = "grounding_config"

    def __init__(
        self,
        image_size: int = 1008,
        patch_size: int = 14,
        hidden_dim: int = 256,
        embed_dim: int = 1024,
        num_layers: int = 32,
        num_heads: int = 16,
        mlp_dim: int = 4736,
        window_size: int = 24,
        global_att_blocks: list[int] | None = None,
        pretrain_image_size: int = 336,
        layer_norm_eps: float = 1e-5,
        memory_dim: int = MEMORY_DIM,
        memory_layers: int = 4,
        memory_feedforward: int = 2048,
        num_maskmem: int = 7,
        max_obj_ptrs: int = 16,
        max_cond_frames_in_attn: int = 4,
        blank_absent: bool = True,
        tracking_decoder: bool = False,
        **kwargs: Any,
    ) -> None:
        check_side("grounding_config.image_size", image_size)
        _check_multiple("image_size", image_size, patch_size * window_size)
        _check_multiple("pretrain_image_size", pretrain_image_size, patch_size)
        _check_multiple("hidden_dim", hidden_dim, 64)
        _check_multiple("embed_dim", embed_dim, 4 * num_heads)
        if memory_dim != MEMORY_DIM:
            raise ValueError(f"grounding_config.memory_dim: SAM 3's is {MEMORY_DIM}, got {memory_dim}")
        if max_cond_frames_in_attn != -1 and max_cond_frames_in_attn < 2:
            raise ValueError(
                "grounding_config.max_cond_frames_in_attn: expected -1 (all) or at least 2, got "
                f"{max_cond_frames_in_attn}"
            )
        self.image_size, self.patch_size, self.hidden_dim = image_size, patch_size, hidden_dim
        self.embed_dim, self.num_layers, self.num_heads, self.mlp_dim = embed_dim, num_layers, num_heads, mlp_dim
        self.window_size, self.pretrain_image_size = window_size, pretrain_image_size
        self.global_att_blocks = [7, 15, 23, 31] if global_att_blocks is None else list(global_att_blocks)
        self.layer_norm_eps = layer_norm_eps
        self.memory_dim, self.memory_layers, self.memory_feedforward = memory_dim, memory_layers, memory_feedforward
        self.num_maskmem, self.max_obj_ptrs = num_maskmem, max_obj_ptrs
        self.max_cond_frames_in_attn = max_cond_frames_in_attn
        self.blank_absent, self.tracking_decoder = blank_absent, tracking_decoder
        super().__init__(**kwargs)

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks: 288 for an input of 1008."""
        return 4 * (self.image_size // self.patch_size)


def _check_multiple(name: str, value: int, of: int) -> None:
    if value <= 0 or value % of:
        raise ValueError(f"grounding_config.{name}: expected a multiple of {of}, got {value}")
