"""Everything that touches SAM 2: building it, image features, and masks from [SEG] embeddings.

SAM 2 is the `sam2` package's `SAM2Base`, unchanged. The call of its mask decoder is written here because the stock one
takes no embedding and blanks masks by object score, which Sa2VA does not (sa2va: `extension/sam2_base.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from .configuration_sa2va import Sa2VAGroundingConfig
from .grounding_protocol import GroundingEncoder, ImageFeatures, MaskPrediction, best_of, with_corners
from .sam2_memory import Sam2Memory


def build_sam2(config: Sa2VAGroundingConfig) -> SAM2Base:
    """SAM 2 from numbers, with the flags of its published YAMLs (no Hydra)."""
    channels = [config.embed_dim * 2**i for i in reversed(range(len(config.stages)))]
    trunk = Hiera(
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        stages=tuple(config.stages),
        global_att_blocks=tuple(config.global_att_blocks),
        window_pos_embed_bkg_spatial_size=tuple(config.window_pos_embed_bkg_spatial_size),
        window_spec=tuple(config.window_spec),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=config.hidden_dim),
        d_model=config.hidden_dim,
        backbone_channel_list=channels,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    newer = config.version == "2.1"
    return SAM2Base(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
        memory_attention=_memory_attention(config),
        memory_encoder=_memory_encoder(config),
        num_maskmem=config.num_maskmem,
        max_cond_frames_in_attn=config.max_cond_frames_in_attn,
        image_size=config.image_size,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_output_for_tracking=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_multimask_token_for_obj_ptr=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=newer,
        proj_tpos_enc_in_obj_ptrs=newer,
        use_signed_tpos_enc_to_obj_ptrs=newer,
        no_obj_embed_spatial=newer,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
    )


def _memory_attention(config: Sa2VAGroundingConfig) -> MemoryAttention:
    side = config.image_size // 16
    dim = config.hidden_dim

    def rope(**kwargs: object) -> RoPEAttention:
        return RoPEAttention(
            rope_theta=10000.0,
            feat_sizes=(side, side),
            embedding_dim=dim,
            num_heads=1,
            downsample_rate=1,
            dropout=0.1,
            **kwargs,
        )

    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=config.memory_feedforward,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=rope(),
        d_model=dim,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=rope(rope_k_repeat=True, kv_in_dim=config.memory_dim),
    )
    return MemoryAttention(d_model=dim, pos_enc_at_input=True, layer=layer, num_layers=config.memory_layers)


def _memory_encoder(config: Sa2VAGroundingConfig) -> MemoryEncoder:
    dim = config.hidden_dim
    block = CXBlock(dim=dim, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return MemoryEncoder(
        out_dim=config.memory_dim,
        in_dim=dim,
        position_encoding=PositionEmbeddingSine(num_pos_feats=config.memory_dim),
        mask_downsampler=MaskDownSampler(embed_dim=dim, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(block, num_layers=2),
    )


def prompt(
    sam2: SAM2Base,
    image: Tensor,
    levels: list[Tensor],
    *,
    embeddings: Tensor | None = None,
    points: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    decoder: nn.Module | None = None,
    several: bool = True,
) -> MaskPrediction:
    """The mask decoder of SAM 2 (arXiv 2408.00714) on P pairs of an image and a prompt; the only call of it.

    Args:
        image: (P, C, H, W), stride 16, with what is remembered of each object, or with `no_mem_embed` added.
        levels: stride 4 and 8, projected for `decoder`; (P, C, h, w), or (1, C, h, w) for all pairs.
        embeddings: (P, C) of [SEG], after the two "not a point" tokens that the language prompt has.
        points: coordinates (P, N, 2) in pixels of SAM 2's square input, x then y, and labels int32 (P, N): 1 on the
            object, 0 off it, -1 padding.
        boxes: (P, 4) xyxy in pixels of SAM 2's square input.
        masks: (P, 1, S / 4, S / 4), logits of a mask, as SAM 2's mask prompts have them.
        decoder: the mask decoder; default `sam2.sam_mask_decoder`.
        several: whether three candidates are predicted, or one.
    """
    encoder, pairs = sam2.sam_prompt_encoder, len(image)
    if boxes is not None:
        points = with_corners(boxes, points)
    if points is not None:
        sparse, dense = encoder(points=points, boxes=None, masks=masks)
    else:
        # An empty point and the padding that SAM 2 adds to it.
        sparse = encoder.not_a_point_embed.weight.expand(pairs, 2, -1)
        if embeddings is not None:
            sparse = torch.cat([sparse, embeddings.unsqueeze(1).to(sparse.dtype)], dim=1)
        dense = encoder.mask_downscaling(masks) if masks is not None else _no_mask(sam2, pairs)
    candidates, ious, tokens, object_scores = (decoder or sam2.sam_mask_decoder)(
        image_embeddings=image,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
        repeat_image=False,
        high_res_features=[level.expand(pairs, -1, -1, -1) for level in levels],
    )
    return best_of(candidates, ious, tokens, object_scores)


def _no_mask(sam2: SAM2Base, pairs: int) -> Tensor:
    side = sam2.sam_image_embedding_size
    return sam2.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(pairs, -1, side, side)


class Sa2VAGroundingEncoder(Sam2Memory, GroundingEncoder):
    """SAM 2 as a grounding encoder.

    Args:
        config: which SAM 2 is built.
        sam2: a SAM 2 that exists already, in place of one built from `config`; it has no second decoder.
    """

    def __init__(self, config: Sa2VAGroundingConfig | None = None, sam2: SAM2Base | None = None) -> None:
        super().__init__()
        self.sam2_model = build_sam2(config) if sam2 is None else sam2
        second = sam2 is None and config.tracking_decoder
        self.tracking_decoder = deepcopy(self.sam2_model.sam_mask_decoder) if second else None

    @property
    def image_size(self) -> int:
        return self.sam2_model.image_size

    @property
    def mask_size(self) -> int:
        return self.image_size // 4

    @property
    def network(self) -> nn.Module:
        return self.sam2_model

    @property
    def image_encoder(self) -> nn.Module:
        return self.sam2_model.image_encoder

    @property
    def mask_decoder(self) -> nn.Module:
        return self.sam2_model.sam_mask_decoder

    def encode(self, frames: Tensor) -> ImageFeatures:
        """Features of normalised frames (F, 3, S, S). The frozen encoder is kept out of autograd; the two projections
        that belong to the mask decoder are not."""
        sam = self.sam2_model
        trained = any(p.requires_grad for p in sam.image_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            high, middle, low = sam.image_encoder(frames)["backbone_fpn"]
        decoder = sam.sam_mask_decoder
        unprojected = None if self.tracking_decoder is None else [high, middle]
        return ImageFeatures([decoder.conv_s0(high), decoder.conv_s1(middle), low], unprojected)

    def decode(self, features: ImageFeatures, frame_index: Tensor, embeddings: Tensor) -> MaskPrediction:
        """As in the protocol. Masks are not blanked by object score, as in the released SAM 2 models."""
        high, middle, low = features[frame_index].levels
        return self.prompted(self.without_memory(low), [high, middle], embeddings=embeddings)

    def without_memory(self, low: Tensor) -> Tensor:
        return low + self.sam2_model.no_mem_embed.view(1, -1, 1, 1)

    def prompted(self, image: Tensor, levels: list[Tensor], **prompts: Any) -> MaskPrediction:
        return prompt(self.sam2_model, image, levels, **prompts)

    def trained_beside_decoder(self) -> Iterable[nn.Module | nn.Parameter]:
        sam = self.sam2_model
        return (sam.image_encoder, sam.sam_prompt_encoder, sam.no_mem_embed)

    def never_trained(self, grounding: str) -> Iterable[nn.Module]:
        """The prompts that no [SEG] uses."""
        prompts = self.sam2_model.sam_prompt_encoder
        return (prompts.point_embeddings, prompts.mask_downscaling)
