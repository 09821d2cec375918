"""How the grounding encoder's tensors are called in a released checkpoint, for SAM 2 and for SAM 3.

SAM 3: the tracker's own names, below the same prefix as SAM 2's, against transformers' `Sam3TrackerVideoModel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ..model.configuration_sam3 import Sa2VASam3Config
from .rules import SAM2, STACKED_QKV, Fusion, Rule, common_rules

SAM3 = "grounding_encoder.sam3_model."  # the prefix of SAM 3 in a model of ours; in a release it is `SAM2`
TRUNK, NECK = "backbone.vision_backbone.trunk.", "backbone.vision_backbone.sam2_convs."
# The detector's neck, which a release stores and the tracker does not read.
DETECTOR_NECK = "backbone.vision_backbone.convs."
POINTS = (
    "sam_prompt_encoder.point_embeddings."  # four tensors in a release, which are gathered under this name + GATHERED
)
GATHERED = "weight"


def _join_class_row(tensors: Sequence[Tensor]) -> Tensor:
    """Positions with the row of a class token in front, which the tracker has no use for."""
    [positions] = tensors
    return torch.cat([positions.new_zeros(1, 1, positions.shape[2]), positions], dim=1)


def _join_copies(tensors: Sequence[Tensor]) -> Tensor:
    first, second = tensors
    if not first.is_meta and not torch.equal(first, second):
        raise ValueError("the two copies of SAM 3's random matrix of positions differ; a release has one")
    return first


CLASS_ROW = Fusion(join=_join_class_row, split=lambda stored: [stored[:, 1:]])
TWO_COPIES = Fusion(join=_join_copies, split=lambda stored: [stored, stored])


def _heads(ours: str, released: str) -> list[tuple[str, str]]:
    """An MLP of three layers."""
    layers = (("proj_in", "0"), ("layers.0", "1"), ("proj_out", "2"))
    return [(f"{ours}.{mine}.{{rest}}", f"{released}.layers.{number}.{{rest}}") for mine, number in layers]


_LAYER, _BLOCK = "vision_encoder.backbone.layers.{layer}.", TRUNK + "blocks.{layer}."
_FPN, _DECODER = "vision_encoder.neck.fpn_layers.", "mask_decoder.transformer.layers.{layer}."
_DECODED, _ATTENTION = "sam_mask_decoder.transformer.layers.{layer}.", "memory_attention.layers.{layer}."
_ATTENDED = "transformer.encoder.layers.{layer}."
_FUSER, _DOWN = "memory_encoder.memory_fuser.layers.{layer}.", "memory_encoder.mask_downsampler."
_FUSED, _MASKS = "maskmem_backbone.fuser.layers.{layer}.", "maskmem_backbone.mask_downsampler.encoder."
# (ours, released); the first that fits a name of ours is used.
NAMES = [
    ("vision_encoder.backbone.embeddings.patch_embeddings.projection.{rest}", TRUNK + "patch_embed.proj.{rest}"),
    ("vision_encoder.backbone.layer_norm.{rest}", TRUNK + "ln_pre.{rest}"),
    (_LAYER + "layer_norm1.{rest}", _BLOCK + "norm1.{rest}"),
    (_LAYER + "layer_norm2.{rest}", _BLOCK + "norm2.{rest}"),
    (_LAYER + "attention.o_proj.{rest}", _BLOCK + "attn.proj.{rest}"),
    (_LAYER + "mlp.{rest}", _BLOCK + "mlp.{rest}"),
    (_FPN + "0.scale_layers.0.{rest}", NECK + "0.dconv_2x2_0.{rest}"),
    (_FPN + "0.scale_layers.2.{rest}", NECK + "0.dconv_2x2_1.{rest}"),
    (_FPN + "1.scale_layers.0.{rest}", NECK + "1.dconv_2x2.{rest}"),
    (_FPN + "{layer}.proj1.{rest}", NECK + "{layer}.conv_1x1.{rest}"),
    (_FPN + "{layer}.proj2.{rest}", NECK + "{layer}.conv_3x3.{rest}"),
    ("prompt_encoder.point_embed.weight", POINTS + GATHERED),
    ("prompt_encoder.mask_embed.conv1.{rest}", "sam_prompt_encoder.mask_downscaling.0.{rest}"),
    ("prompt_encoder.mask_embed.layer_norm1.{rest}", "sam_prompt_encoder.mask_downscaling.1.{rest}"),
    ("prompt_encoder.mask_embed.conv2.{rest}", "sam_prompt_encoder.mask_downscaling.3.{rest}"),
    ("prompt_encoder.mask_embed.layer_norm2.{rest}", "sam_prompt_encoder.mask_downscaling.4.{rest}"),
    ("prompt_encoder.mask_embed.conv3.{rest}", "sam_prompt_encoder.mask_downscaling.6.{rest}"),
    ("prompt_encoder.{rest}", "sam_prompt_encoder.{rest}"),
    *_heads("mask_decoder.output_hypernetworks_mlps.{layer}", "sam_mask_decoder.output_hypernetworks_mlps.{layer}"),
    *_heads("mask_decoder.iou_prediction_head", "sam_mask_decoder.iou_prediction_head"),
    *_heads("mask_decoder.pred_obj_score_head", "sam_mask_decoder.pred_obj_score_head"),
    ("mask_decoder.upscale_conv1.{rest}", "sam_mask_decoder.output_upscaling.0.{rest}"),
    ("mask_decoder.upscale_layer_norm.{rest}", "sam_mask_decoder.output_upscaling.1.{rest}"),
    ("mask_decoder.upscale_conv2.{rest}", "sam_mask_decoder.output_upscaling.3.{rest}"),
    *((_DECODER + f"layer_norm{n}.{{rest}}", _DECODED + f"norm{n}.{{rest}}") for n in (1, 2, 3, 4)),
    (_DECODER + "mlp.proj_in.{rest}", _DECODED + "mlp.lin1.{rest}"),
    (_DECODER + "mlp.proj_out.{rest}", _DECODED + "mlp.lin2.{rest}"),
    (_DECODER + "{attention}.o_proj.{rest}", _DECODED + "{attention}.out_proj.{rest}"),
    ("mask_decoder.transformer.layer_norm_final_attn.{rest}", "sam_mask_decoder.transformer.norm_final_attn.{rest}"),
    (
        "mask_decoder.transformer.final_attn_token_to_image.o_proj.{rest}",
        "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj.{rest}",
    ),
    ("mask_decoder.{rest}", "sam_mask_decoder.{rest}"),
    *((_ATTENTION + f"layer_norm{n}.{{rest}}", _ATTENDED + f"norm{n}.{{rest}}") for n in (1, 2, 3)),
    (_ATTENTION + "{attention}.o_proj.{rest}", _ATTENDED + "{attention}.out_proj.{rest}"),
    (_ATTENTION + "{rest}", _ATTENDED + "{rest}"),
    ("memory_attention.layer_norm.{rest}", "transformer.encoder.norm.{rest}"),
    *((f"{_DOWN}layers.{n}.conv.{{rest}}", f"{_MASKS}{3 * n}.{{rest}}") for n in range(4)),
    *((f"{_DOWN}layers.{n}.layer_norm.{{rest}}", f"{_MASKS}{3 * n + 1}.{{rest}}") for n in range(4)),
    (_DOWN + "final_conv.{rest}", _MASKS + "12.{rest}"),
    (_FUSER + "depthwise_conv.{rest}", _FUSED + "dwconv.{rest}"),
    (_FUSER + "layer_norm.{rest}", _FUSED + "norm.{rest}"),
    (_FUSER + "pointwise_conv1.{rest}", _FUSED + "pwconv1.{rest}"),
    (_FUSER + "pointwise_conv2.{rest}", _FUSED + "pwconv2.{rest}"),
    (_FUSER + "scale", _FUSED + "g_weight"),
    ("memory_encoder.feature_projection.{rest}", "maskmem_backbone.pix_feat_proj.{rest}"),
    ("memory_encoder.projection.{rest}", "maskmem_backbone.out_proj.{rest}"),
    *_heads("object_pointer_proj", "obj_ptr_proj"),
    ("temporal_positional_encoding_projection_layer.{rest}", "obj_ptr_tpos_proj.{rest}"),
    ("mask_downsample.{rest}", "mask_downsample.{rest}"),
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("no_memory_embedding", "no_mem_embed"),
    ("no_memory_positional_encoding", "no_mem_pos_enc"),
    ("no_object_pointer", "no_obj_ptr"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
]  # fmt: skip


def sam3_rules(ours: str = "", released: str = "") -> list[Rule]:
    """Rules of SAM 3's tracker below a prefix in each layout."""
    qkv = tuple(f"{ours}{_LAYER}attention.{letter}_proj.{{rest}}" for letter in "qkv")
    matrices = ("shared_image_embedding", "prompt_encoder.shared_embedding")
    positions = f"{ours}vision_encoder.backbone.embeddings.position_embeddings"
    return [
        Rule(
            (positions,),
            f"{released}{TRUNK}pos_embed",
            CLASS_ROW,
        ),
        Rule(qkv, f"{released}{_BLOCK}attn.qkv.{{rest}}", STACKED_QKV),
        Rule(
            tuple(f"{ours}{name}.positional_embedding" for name in matrices),
            f"{released}sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            TWO_COPIES,
        ),
        *(Rule(ours + mine, released + theirs) for mine, theirs in NAMES),
    ]


def grounding_rules(grounding: PretrainedConfig) -> list[Rule]:
    """Rules of what all layouts share, for a model's grounding encoder: it and `text_hidden_fcs`."""
    if not isinstance(grounding, Sa2VASam3Config):
        return common_rules(tracking_decoder=grounding.tracking_decoder)
    return [*sam3_rules(SAM3, SAM2), Rule("text_hidden_fcs.{rest}", "text_hidden_fcs.{rest}")]
