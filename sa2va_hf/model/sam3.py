"""SAM 3's tracker as a grounding encoder, on transformers' `Sam3TrackerVideoModel`, unchanged.

The calls of its parts are written here because the stock ones take no [SEG] embedding, are kept out of autograd or
run object by object. Where transformers' tracker differs from SAM 3's own, the latter is followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_sam3 import Sa2VASam3Config
from .grounding_protocol import (
    NO_OBJECT_LOGIT,
    GroundingEncoder,
    ImageFeatures,
    MaskPrediction,
    best_of,
    with_corners,
)
from .sam3_memory import Sam3Memory


def transformers_config(config: Sa2VASam3Config) -> Any:
    """transformers' `Sam3TrackerVideoConfig` of the same numbers.

    Raises:
        ImportError: the installed transformers has no SAM 3.
    """
    try:
        from transformers import Sam3TrackerVideoConfig
    except ImportError as error:
        raise ImportError(_no_sam3()) from error
    side = config.image_size // config.patch_size
    sizes = [[scale * side] * 2 for scale in (4, 2, 1)]
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_att_blocks),
        "pretrain_image_size": config.pretrain_image_size,
        "layer_norm_eps": config.layer_norm_eps,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": config.hidden_dim,
        "backbone_feature_sizes": sizes,
    }
    width = config.hidden_dim
    sides = {"image_size": config.image_size, "patch_size": config.patch_size}
    return Sam3TrackerVideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": width, **sides},
        mask_decoder_config={"hidden_size": width},
        image_size=config.image_size,
        num_maskmem=config.num_maskmem,
        max_object_pointers_in_encoder=config.max_obj_ptrs,
        max_cond_frame_num=config.max_cond_frames_in_attn,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.memory_feedforward,
        memory_attention_rope_feat_sizes=[side, side],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=config.memory_dim,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=4 * width,
    )


def build_sam3(config: Sa2VASam3Config) -> nn.Module:
    """transformers' `Sam3TrackerVideoModel` from numbers, with random weights.

    Raises:
        ImportError: the installed transformers has no SAM 3.
    """
    try:
        from transformers import Sam3TrackerVideoModel
    except ImportError as error:
        raise ImportError(_no_sam3()) from error
    return Sam3TrackerVideoModel(transformers_config(config))


def _no_sam3() -> str:
    import transformers

    return (
        f"grounding_config.model_type {Sa2VASam3Config.model_type!r} needs SAM 3, which transformers "
        f"{transformers.__version__} does not have; upgrade it: pip install -U 'transformers>=5.3.0'"
    )


def prompt(
    sam3: nn.Module,
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
    """The mask decoder of SAM 3's tracker on P pairs of an image and a prompt; the only call of it.

    Args:
        image: (P, C, H, W), the grid, with what is remembered of each object, or with the no-memory embedding.
        levels: the two fine levels, projected for `decoder`; (P, C, h, w), or (1, C, h, w) for all pairs.
        embeddings: (P, C) of [SEG], after the two "not a point" tokens that the language prompt has.
        points, boxes, masks: as in `GroundingEncoder.prompt`.
        decoder: the mask decoder; default `sam3.mask_decoder`.
        several: whether three candidates are predicted, or one.
    """
    pairs = len(image)
    if boxes is not None:
        points = with_corners(boxes, points)
    if points is None:  # an empty point; the prompt encoder adds a second one as padding
        nothing = torch.full((pairs, 1), -1, dtype=torch.int32, device=image.device)
        points = torch.zeros(pairs, 1, 2, device=image.device), nothing
    coordinates, labels = (one.unsqueeze(1) for one in points)
    sparse, dense = sam3.prompt_encoder(coordinates, labels, None, masks)
    if embeddings is not None:
        sparse = torch.cat([sparse, embeddings[:, None, None].to(sparse.dtype)], dim=2)
    answers = (decoder or sam3.mask_decoder)(
        image_embeddings=image,
        image_positional_embeddings=sam3.get_image_wide_positional_embeddings().expand(pairs, -1, -1, -1),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
        high_resolution_features=[level.expand(pairs, -1, -1, -1) for level in levels],
    )
    return best_of(*(answer.squeeze(1) for answer in answers))


def blanked(prediction: MaskPrediction) -> MaskPrediction:
    """Every mask of an object whose score is not positive becomes `NO_OBJECT_LOGIT` everywhere."""
    absent = prediction.object_scores <= 0
    masks = prediction.masks.masked_fill(absent.unsqueeze(-1), NO_OBJECT_LOGIT)
    candidates = prediction.candidates.masked_fill(absent[..., None, None], NO_OBJECT_LOGIT)
    return MaskPrediction(masks, candidates, prediction.ious, prediction.tokens, prediction.object_scores)


class Sa2VASam3Encoder(Sam3Memory, GroundingEncoder):
    """SAM 3's tracker as a grounding encoder. transformers makes its positions again after loading.

    Args:
        config: which SAM 3 is built.
        sam3: a `Sam3TrackerVideoModel` that exists already, in place of one built from `config`.
    """

    builds_on_meta = True

    def __init__(self, config: Sa2VASam3Config, sam3: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.sam3_model = build_sam3(config) if sam3 is None else sam3
        second = config.tracking_decoder
        self.tracking_decoder = deepcopy(self.sam3_model.mask_decoder) if second else None

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def mask_size(self) -> int:
        return self.config.mask_size

    @property
    def network(self) -> nn.Module:
        return self.sam3_model

    @property
    def image_encoder(self) -> nn.Module:
        return self.sam3_model.vision_encoder

    @property
    def mask_decoder(self) -> nn.Module:
        return self.sam3_model.mask_decoder

    def encode(self, frames: Tensor) -> ImageFeatures:
        """Features of normalised frames (F, 3, S, S). The frozen encoder is kept out of autograd. The coarsest of its
        four levels is of no use here."""
        sam, decoder = self.sam3_model, self.mask_decoder
        trained = any(p.requires_grad for p in sam.vision_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            high, middle, low = sam.vision_encoder(frames, return_dict=True).fpn_hidden_states[:3]
        unprojected = None if self.tracking_decoder is None else [high, middle]
        return ImageFeatures([decoder.conv_s0(high), decoder.conv_s1(middle), low], unprojected)

    def decode(self, features: ImageFeatures, frame_index: Tensor, embeddings: Tensor) -> MaskPrediction:
        """As in the protocol. Outside training, masks are blanked by object score: there a blanked mask would learn
        nothing."""
        high, middle, low = features[frame_index].levels
        prediction = self.prompted(self.without_memory(low), [high, middle], embeddings=embeddings)
        return blanked(prediction) if self.config.blank_absent and not self.training else prediction

    def without_memory(self, low: Tensor) -> Tensor:
        return low + self.sam3_model.no_memory_embedding.view(1, -1, 1, 1)

    def prompted(self, image: Tensor, levels: list[Tensor], **prompts: Any) -> MaskPrediction:
        return prompt(self.sam3_model, image, levels, **prompts)

    # ---------------------------------------------------------------- what is trained
    def self_initialized(self) -> Iterable[nn.Module]:
        """Not those of transformers: it fills their buffers of positions after loading."""
        return (self, *(self.tracking_decoder.modules() if self.tracking_decoder is not None else ()))

    def trained_beside_decoder(self) -> Iterable[nn.Module | nn.Parameter]:
        sam = self.sam3_model
        return (sam.vision_encoder, sam.prompt_encoder, sam.no_memory_embedding)

    def never_trained(self, grounding: str) -> Iterable[nn.Module]:
        """The prompts that no [SEG] uses and the level that nothing reads; with the decoder alone also the projections
        of the image, as in the released training."""
        sam = self.sam3_model
        yield from (sam.prompt_encoder.point_embed, sam.prompt_encoder.mask_embed)
        yield sam.vision_encoder.neck.fpn_layers[3]
        if grounding != "all":
            yield from (sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1)
