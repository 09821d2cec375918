"""SAM 2 <-> transformers' `Sam2VideoModel` (which `Sam2Model` loads too): the same network under other names.

Two differences beside the names: the four point embeddings are one tensor there, and the random matrix of the
position encoding is stored twice.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from ..model.configuration_sa2va import SAM2_TRUNKS, Sa2VAGroundingConfig
from .sam2 import of_folder, sam2_shapes
from .weights import Stored, audit, read_folder, write_folder

logger = logging.getLogger(__name__)

POINTS, ALL_POINTS = "sam_prompt_encoder.point_embeddings.{}.weight", "prompt_encoder.point_embed.weight"
MATRIX = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
MATRICES = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
HEADS = r"(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|^obj_ptr_proj)\.layers"

# Applied one after the other; what an earlier one has changed, a later one sees.
RENAMES = [
    (HEADS + r"\.0\.", r"\1.proj_in."),
    (HEADS + r"\.1\.", r"\1.layers.0."),
    (HEADS + r"\.2\.", r"\1.proj_out."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "image_encoder.trunk.patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.layers\.(\d)\.gamma$", r"memory_encoder.memory_fuser.layers.\1.scale"),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"^sam_mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^sam_mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^sam_mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
]


def renamed(name: str) -> str:
    """A tensor of SAM 2, other than points and matrix, as transformers calls it."""
    if found := re.fullmatch(r"(memory_encoder\.mask_downsampler)\.encoder\.(\d+)\.(weight|bias)", name):
        # four times convolution, norm, activation; then a last convolution
        stem, index, kind = found[1], int(found[2]), found[3]
        part = "final_conv" if index == 12 else f"layers.{index // 3}.{('conv', 'layer_norm')[index % 3]}"
        return f"{stem}.{part}.{kind}"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def to_transformers(source: Path | str, output: Path | str, max_shard_size: str = "5GB") -> None:
    """SAM 2 of a folder of ours (alone, or in a Sa2VA) -> a folder that `Sam2VideoModel.from_pretrained` loads."""
    source, output = Path(source), Path(output)
    tensors, config = of_folder(source, None)
    theirs = {
        renamed(name): tensor
        for name, tensor in tensors.items()
        if name != MATRIX and not name.startswith(POINTS.split("{")[0])
    }
    theirs |= dict.fromkeys(MATRICES, tensors[MATRIX])
    points = [tensors[POINTS.format(number)] for number in range(4)]
    shape = (4, *points[0].shape[1:])
    theirs[ALL_POINTS] = Stored(shape, points[0].dtype, lambda: torch.cat([point.read() for point in points]))
    made = transformers_config(config)
    audit(theirs, _shapes(made), source, "transformers' Sam2VideoModel")
    # each by itself: a file does not hold one tensor under two names
    copies = {name: Stored(t.shape, t.dtype, lambda t=t: t.read().clone()) for name, t in theirs.items()}
    output.mkdir(parents=True, exist_ok=True)
    write_folder(copies, output, max_shard_size)
    made.architectures = [Sam2VideoModel.__name__]
    made.save_pretrained(output)
    logger.info("%d tensors of %s became %d in %s", len(tensors), source, len(theirs), output)


def from_transformers(source: Path | str, output: Path | str, max_shard_size: str = "5GB") -> None:
    """A folder of `Sam2VideoModel` -> config.json and safetensors of SAM 2.

    Raises:
        ValueError: listing what is missing, left over or of another shape; or a size that is no published one.
    """
    source, output = Path(source), Path(output)
    config = our_config(Sam2VideoConfig.from_pretrained(source), source)
    stored, expected = read_folder(source), sam2_shapes(config)
    audit(stored, _shapes(transformers_config(config)), source, "transformers' Sam2VideoModel")
    tensors: dict[str, Stored] = {}
    for name, shape in expected.items():
        if found := re.fullmatch(POINTS.replace(".", r"\.").format(r"(\d)"), name):
            tensors[name] = _row(stored[ALL_POINTS], int(found[1]))
        else:
            tensors[name] = stored[MATRICES[0] if name == MATRIX else renamed(name)]
        if tensors[name].shape != shape:
            raise ValueError(f"{source}: {name} would be {tensors[name].shape}, expected {shape}")
    output.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, output, max_shard_size)
    config.save_pretrained(output)
    logger.info("%d tensors of %s became %d in %s", len(stored), source, len(tensors), output)


def transformers_config(config: Sa2VAGroundingConfig) -> Sam2VideoConfig:
    """The same numbers in transformers' words."""
    side, stages = config.image_size, len(config.stages)
    widths = [config.embed_dim * 2**i for i in range(stages)]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "image_size": [side, side],
        "blocks_per_stage": config.stages,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [config.num_heads * 2**i for i in range(stages)],
        "window_size_per_stage": config.window_spec,
        "global_attention_blocks": config.global_att_blocks,
        "window_positional_embedding_background_size": config.window_pos_embed_bkg_spatial_size,
    }
    vision = {
        "backbone_config": trunk,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
        "fpn_hidden_size": config.hidden_dim,
    }
    newer = config.version == "2.1"
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": config.hidden_dim, "image_size": side},
        mask_decoder_config={"hidden_size": config.hidden_dim},
        image_size=side,
        num_maskmem=config.num_maskmem,
        enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer,
        memory_attention_hidden_size=config.hidden_dim,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.memory_feedforward,
        memory_attention_rope_feat_sizes=[side // 16, side // 16],
        memory_encoder_hidden_size=config.hidden_dim,
        memory_encoder_output_channels=config.memory_dim,
        mask_downsampler_embed_dim=config.hidden_dim,
        memory_fuser_embed_dim=config.hidden_dim,
        memory_fuser_intermediate_dim=4 * config.hidden_dim,
    )


def our_config(theirs: Sam2VideoConfig, source: Path | str) -> Sa2VAGroundingConfig:
    """The config of the `sam2` package's model from that of transformers.

    Raises:
        ValueError: the trunk does not have four stages.
    """
    trunk = theirs.vision_config.backbone_config
    fields: dict[str, Any] = {
        "embed_dim": trunk.hidden_size,
        "num_heads": trunk.num_attention_heads,
        "stages": list(trunk.blocks_per_stage),
        "global_att_blocks": list(trunk.global_attention_blocks),
        "window_spec": list(trunk.window_size_per_stage),
        "window_pos_embed_bkg_spatial_size": list(trunk.window_positional_embedding_background_size),
    }
    if len(fields["stages"]) != 4:
        raise ValueError(f"{source}: expected a trunk of 4 stages, got {fields['stages']}")
    size = next((size for size, published in SAM2_TRUNKS.items() if published == fields), "tiny")
    return Sa2VAGroundingConfig(
        version="2.1" if theirs.enable_occlusion_spatial_embedding else "2.0",
        size=size,
        image_size=theirs.image_size,
        hidden_dim=theirs.memory_attention_hidden_size,
        memory_dim=theirs.memory_encoder_output_channels,
        memory_layers=theirs.memory_attention_num_layers,
        memory_feedforward=theirs.memory_attention_feed_forward_hidden_size,
        num_maskmem=theirs.num_maskmem,
        **fields,
    )


def _shapes(config: Sam2VideoConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = Sam2VideoModel(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _row(stored: Stored, number: int) -> Stored:
    def read() -> Tensor:
        return stored.read()[number : number + 1].clone()

    return Stored((1, *stored.shape[1:]), stored.dtype, read)
