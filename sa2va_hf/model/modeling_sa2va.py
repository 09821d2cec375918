"""Sa2VA (arXiv 2501.04001): a multimodal LLM writes [SEG], SAM 2 predicts its mask; one model for training and use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import ModelOutput

from .backbones import backbone_of, names_of_this_version
from .box_losses import known_pairs, loss_of_boxes
from .configuration_sa2va import IGNORE_INDEX, Sa2VAConfig, bundled, check_identity
from .generation import PromptedGenerationMixin
from .grounding_encoders import ENCODERS, AbsentGroundingEncoder, grounding_encoder_of
from .grounding_protocol import MaskPrediction, precision, touch
from .losses import answer_cross_entropy, losses_of_masks
from .placement import Projection, device_of, keep_together, llm_only, remove_capturing_hooks, share_dtype
from .released_api import ReleasedApiMixin
from .zero3 import load_buffers, outside_zero_init

LOGITS_CHUNK = 1024  # tokens whose logits are held at a time in training
WHERE = ("revision", "cache_dir", "token", "subfolder", "local_files_only")  # which files of a Hub repository


@dataclass
class Sa2VAOutput(ModelOutput):
    """What `forward` returns. Loss parts carry their weights: `loss` is their sum.

    Args:
        logits: (B, L, V).
        pred_masks: per sample (num_seg, num_frames, h, w) mask logits at a quarter of SAM 2's input side.
        pred_scores: per sample (num_seg, num_frames), the IoU that SAM 2 expects of them.
        seg_hidden_states: (total [SEG], D) after the LLM's last norm (before it with `config.seg_before_norm`), where
            [SEG] is the input token.
        seg_embeddings: (total [SEG], C) after `text_hidden_fcs`.
        class_embeddings: (number of classes, C), see `embed_classes`.
    """

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    mask_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    iou_loss: Tensor | None = None
    box_loss: Tensor | None = None
    object_score_loss: Tensor | None = None
    logits: Tensor | None = None
    pred_masks: list[Tensor] | None = None
    pred_scores: list[Tensor] | None = None
    seg_hidden_states: Tensor | None = None
    seg_embeddings: Tensor | None = None
    class_embeddings: Tensor | None = None


def _complete_stops(model: PreTrainedModel) -> None:
    """What ends an answer, where no generation_config.json says so: transformers then reads the outer config alone,
    and `generate` would not stop."""
    options, text = model.generation_config, model.config.get_text_config()
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(text, name, None))


class Sa2VAForConditionalGeneration(ReleasedApiMixin, PromptedGenerationMixin, PreTrainedModel, GenerationMixin):
    """`mllm` (a native multimodal LLM, see `backbones.py`), `grounding_encoder` (SAM 2) and `text_hidden_fcs` between
    them."""

    config_class = Sa2VAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    # A mean loss: Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    # And those of the MLLM, which transformers adds.
    _no_split_modules = [encoder.__name__ for encoder in ENCODERS.values()]
    # SAM 2's prompt encoder mixes float32 coordinates in; its masks need the precision as well.
    _keep_in_fp32_modules_strict = ["grounding_encoder", "text_hidden_fcs"]
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict  # which quantisation leaves alone, whatever its kind
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Sa2VAConfig, grounding: bool = True) -> None:
        """grounding: False: without SAM 2, for runs and uses without masks; such a model is not saved as a whole."""
        super().__init__(config)
        self.backbone = backbone_of(config.mllm_config)
        share_dtype(config.mllm_config)
        self.mllm = AutoModelForImageTextToText.from_config(config.mllm_config)
        # `zero.Init` would partition weights whose shapes SAM 2 reads while it is built.
        with outside_zero_init():
            build = grounding_encoder_of if grounding else AbsentGroundingEncoder
            self.grounding_encoder = build(config.grounding_config)
        hidden, embedding = config.hidden_size, config.grounding_config.hidden_dim
        self.text_hidden_fcs = Projection(
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding), nn.Dropout(0.0)
        )
        for module in [*self.grounding_encoder.self_initialized(), *self.text_hidden_fcs.modules()]:
            module._is_hf_initialized = True  # else `post_init` initialises them anew, from a normal of 0.02
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """SAM 2 and `text_hidden_fcs` initialise themselves; the MLLM has its own `_init_weights`."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but missing or unexpected weights are an error, never silently random numbers. A
        `quantization_config` applies to the LLM alone; a `device_map` may offload any part. `grounding=False` leaves
        SAM 2 out: nothing of it is loaded, and there are no masks.

        Raises:
            ValueError: another kind of model, before anything is built; or the weights that do not fit.
        """
        path = bundled(path)
        if kwargs.get("config") is None and path is not None:
            check_identity(path)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = llm_only(kwargs["quantization_config"])
        kwargs.setdefault("key_mapping", names_of_this_version())
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        where = {name: kwargs[name] for name in WHERE if kwargs.get(name) is not None}
        info["missing_keys"] = load_buffers(model, path, set(info["missing_keys"]), **where)
        keep_together(model.grounding_encoder)
        _complete_stops(model)
        if not model.has_grounding:
            info["unexpected_keys"] = {
                key for key in info["unexpected_keys"] if not str(key).startswith("grounding_encoder.")
            }
        problems = {
            name: sorted(str(key) for key in info[name])
            for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info.get(name)
        }
        if problems:
            listing = "\n".join(f"{name}: {_some(keys)}" for name, keys in problems.items())
            raise ValueError(
                f"{path}: the weights do not fit this model; convert or merge the checkpoint first\n{listing}"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As in transformers, under the names of `state_dict`: its default, InternVL's older names, differs from
        version to version, and 5.0 does not read it back."""
        if not self.has_grounding:
            raise ValueError(
                "this model was loaded without SAM 2 (grounding=False): its weights are not a whole model"
            )
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    @property
    def has_grounding(self) -> bool:
        """Whether SAM 2 is there."""
        return not isinstance(self.grounding_encoder, AbsentGroundingEncoder)

    @property
    def device(self) -> torch.device:
        """Where inputs belong; weights may be stored elsewhere, on disk for example."""
        return device_of(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.mllm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.mllm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.mllm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.mllm.lm_head = value

    # ---------------------------------------------------------------- what is trained
    def freeze_for_training(
        self, grounding: str = "decoder", projector: bool | None = None, vision: bool = False
    ) -> None:
        """Freeze all but the projector, `text_hidden_fcs` and SAM 2's mask decoder (the LLM is LoRA's business).

        grounding: "decoder" (as released), "none", or "all" of SAM 2. Heads that no loss reaches stay frozen, so that
        weight decay does not eat them. projector: whether it is trained; None as released, with InternVL, not with
        Qwen-VL. vision: whether the vision tower is.
        """
        self.requires_grad_(False)
        for module in self.backbone.vision(self.mllm):
            module.requires_grad_(vision)
        for module in self.backbone.unread(self.mllm):
            module.requires_grad_(False)
        for module in self.backbone.projector(self.mllm):
            module.requires_grad_(self.backbone.projector_is_trained if projector is None else projector)
        self.text_hidden_fcs.requires_grad_(True)
        self.grounding_encoder.select_trained(
            grounding,
            iou_head=self.config.iou_loss_weight > 0,
            object_score_head=self.config.object_score_loss_weight > 0,
        )

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed. peft reads it under this name, of which transformers 5.2x warns."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def zero3_leaf_modules(self) -> list[type[nn.Module]]:
        """Modules to be gathered whole under ZeRO-3 (`deepspeed.utils.set_z3_leaf_modules`)."""
        return [type(self.grounding_encoder)] if self.has_grounding else []

    # ---------------------------------------------------------------- text and pictures -> hidden states
    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_masks: Tensor | None = None,
        region_tiles: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) after the LLM's last norm; right padding where `attention_mask` is 0."""
        if position_ids is not None:
            attention_mask = None
        visuals = self._visuals(input_ids, pixel_values, region_masks, region_tiles, image_grid_thw)
        if visuals:
            return self.backbone.read(self.mllm, input_ids, attention_mask, visuals, position_ids)
        embeddings = self.get_input_embeddings()(input_ids)
        if self.training or is_deepspeed_zero3_enabled():  # ZeRO-3: all ranks gather the same weights, in one order
            embeddings = embeddings + self._touch_vision(embeddings)
        places = None if position_ids is None else self.backbone.text_places(position_ids)
        llm = self.mllm.model.language_model
        output = llm(inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=places, use_cache=False)
        return output.last_hidden_state

    def _visuals(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        region_masks: Tensor | None,
        region_tiles: Tensor | None,
        image_grid_thw: Tensor | None,
    ) -> dict[str, Tensor]:
        """The inputs that are there, by name; none for a batch without pictures."""
        if pixel_values is None:
            tokens = int((input_ids == self.config.mllm_config.image_token_id).sum())
            if tokens:
                raise ValueError(f"input_ids hold {tokens} image tokens, but there are no pixel_values")
            return {}
        given = {
            "pixel_values": pixel_values,
            "region_masks": region_masks,
            "region_tiles": region_tiles,
            "image_grid_thw": image_grid_thw,
        }
        given = {name: value for name, value in given.items() if value is not None}
        needs, takes = self.backbone.needs, self.backbone.takes
        if not needs <= given.keys() <= needs | takes:
            raise ValueError(
                f"a picture for {self.config.mllm_config.model_type} comes as {sorted(needs)}"
                f"{f' and may have {sorted(takes)}' if takes else ''}, got {sorted(given)}: use this model's processor"
            )
        return given

    def _touch_vision(self, embeddings: Tensor) -> Tensor:
        """A zero touching the trainable vision part; ZeRO-3 gathers weights by forward calls, so there the smallest
        picture goes through it."""
        if is_deepspeed_zero3_enabled():
            return self.backbone.blank(self.mllm, embeddings.device).to(embeddings.dtype) * 0.0
        vision = self.backbone.vision(self.mllm)
        return sum(touch(module) for module in vision).to(embeddings.device, embeddings.dtype)

    def read(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`hidden_states`, and (B, L, D) what the [SEG] projection takes of them: the same, as a rule."""
        if not self.config.seg_before_norm:
            hidden = self.hidden_states(input_ids, *args, **kwargs)
            return hidden, hidden
        states: list[Tensor] = []
        hook = self.watch_states(states.append)
        try:
            return self.hidden_states(input_ids, *args, **kwargs), states[-1]
        finally:
            hook.remove()

    def watch_states(self, keep: Callable[[Tensor], None]) -> RemovableHandle:
        """Have `keep` called with what the [SEG] projection takes, (B, L, D), whenever the LLM runs."""
        llm = self.mllm.model.language_model
        if self.config.seg_before_norm:
            return llm.norm.register_forward_pre_hook(lambda _, args: keep(args[0]))
        return llm.register_forward_hook(lambda _, __, output: keep(output[0]))

    def project(self, seg_hidden: Tensor) -> Tensor:
        """Hidden states at [SEG] (N, D) -> prompts of SAM 2 (N, C)."""
        embeddings = self.text_hidden_fcs(seg_hidden.to(device_of(self.text_hidden_fcs), torch.float32))
        return embeddings.to(self.grounding_encoder.device)

    def embed_classes(self, class_ids: Tensor, class_mask: Tensor) -> Tensor:
        """Names (N, T), right-padded -> (N, C): `text_hidden_fcs` of the LLM's states at their last tokens."""
        _, states = self.read(class_ids, class_mask)
        last = class_mask.sum(1) - 1
        return self.project(states[torch.arange(len(last), device=states.device), last.to(states.device)])

    # ---------------------------------------------------------------- hidden states -> masks
    def predict_masks(
        self, embeddings: Tensor, seg_counts: Tensor, frames: Tensor | None, num_frames: Tensor
    ) -> tuple[MaskPrediction | None, Tensor]:
        """Masks of every [SEG] on every frame of its sample, sample-major, then object, then frame.

        embeddings (total [SEG], C); seg_counts, num_frames (B,); frames uint8 (total frames, 3, S, S).
        """
        pairs = seg_counts * num_frames
        sample = torch.arange(len(pairs), device=pairs.device).repeat_interleave(pairs)
        rank = torch.arange(int(pairs.sum()), device=pairs.device) - (pairs.cumsum(0) - pairs)[sample]
        seg_index = (seg_counts.cumsum(0) - seg_counts)[sample] + rank // num_frames[sample].clamp(min=1)
        frame_index = (num_frames.cumsum(0) - num_frames)[sample] + rank % num_frames[sample].clamp(min=1)
        with self.grounding_precision():
            return self.grounding_encoder(frames, frame_index, embeddings[seg_index.to(embeddings.device)])

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the LLM computes in: the type of its first floating weight; quantised ones are stored as others."""
        return self.mllm.dtype

    def grounding_precision(self) -> AbstractContextManager:
        """SAM 2 keeps float32 weights; where the LLM's are half precision it computes in half as well."""
        return precision(self.compute_dtype, self.grounding_encoder.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        grounding_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        region_masks: Tensor | None = None,
        region_tiles: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        mask_labels: list[Tensor] | None = None,
        ignore_labels: list[Tensor | None] | None = None,
        mask_known: list[Tensor | None] | None = None,
        box_labels: list[Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        seg_counts: Tensor | None = None,
        class_ids: Tensor | None = None,
        class_mask: Tensor | None = None,
        return_logits: bool = True,
    ) -> Sa2VAOutput:
        """Logits, masks and losses of a batch; see `Sa2VAProcessor.apply_chat_template` for the inputs.

        Args:
            mask_labels: per sample bool (num_objects, num_frames, H, W) at any size; as many objects as [SEG] tokens.
            ignore_labels: per sample None or bool (num_frames, H, W), pixels that do not count.
            mask_known: per sample None (all are) or bool (num_objects, num_frames): whose mask is known. What is in
                `mask_labels` elsewhere does not count.
            box_labels: per sample None or float (n, 6), a row per box: object, frame, and x0, y0, x1, y1 in shares of
                the picture. They teach the masks that are not known; an object may have several on a frame.
            position_ids, seg_counts: of samples joined into one row without padding, as `Sa2VACollator(join=True)`
                makes them: (1, L) positions, each sample's from 0, and (B,) [SEG] tokens of each.
            class_ids, class_mask: of `embed_classes`, names that are embedded beside the batch.
            return_logits: False: `logits` is None, and the LM head runs only where `labels` ask for a token, a few
                positions at a time. The loss is the same.
        """
        hidden, states = self.read(
            input_ids, attention_mask, pixel_values, region_masks, region_tiles, image_grid_thw, position_ids
        )
        is_seg = input_ids == self.config.seg_token_id
        seg_hidden = states[is_seg.to(states.device)]
        embeddings = self.project(seg_hidden)
        seg_counts = is_seg.sum(1) if seg_counts is None else seg_counts
        num_frames = torch.zeros_like(seg_counts) if num_frames is None else num_frames
        prediction, zero = self.predict_masks(embeddings, seg_counts, grounding_pixel_values, num_frames)
        output = Sa2VAOutput(seg_hidden_states=seg_hidden, seg_embeddings=embeddings)
        if class_ids is not None:
            output.class_embeddings = self.embed_classes(class_ids, class_mask)
        output.pred_masks, output.pred_scores = self._per_sample(prediction, seg_counts, num_frames, embeddings)
        if return_logits:
            output.logits = self.mllm.lm_head(hidden)
        if labels is not None and return_logits:
            output.lm_loss = F.cross_entropy(
                output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
            )
        elif labels is not None:
            chunk = None if is_deepspeed_zero3_enabled() else LOGITS_CHUNK  # there all ranks call the head alike
            output.lm_loss = answer_cross_entropy(hidden, labels, self.mllm.lm_head, chunk)
        if mask_labels is not None:
            zero = zero.to(embeddings.device) + embeddings.sum() * 0.0
            known, size = known_pairs(mask_known, seg_counts, num_frames), self.grounding_encoder.mask_size
            found = losses_of_masks(self.config, prediction, mask_labels, ignore_labels, known, size)
            output.iou_loss, output.object_score_loss = found.get("iou"), found.get("object_score")
            # Without masks, zeros that touch all that could have been trained.
            output.mask_loss, output.dice_loss = found.get("mask", 0.0) + zero, found.get("dice", zero)
            output.box_loss = loss_of_boxes(self.config, prediction, box_labels, known, size)
        of_masks = [output.mask_loss, output.dice_loss, output.iou_loss, output.box_loss, output.object_score_loss]
        parts = [part for part in (output.lm_loss, *of_masks) if part is not None]
        if parts:
            output.loss = sum(parts)
        # Built anew: in transformers 5.0 a field that is set later is an attribute but no key, and Trainer reads keys.
        return Sa2VAOutput(**vars(output))

    def _per_sample(
        self, prediction: MaskPrediction | None, seg_counts: Tensor, num_frames: Tensor, like: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (num_seg, num_frames, h, w) and expected IoUs (num_seg, num_frames) of each sample."""
        size = self.grounding_encoder.mask_size
        masks = like.new_zeros(0, size, size) if prediction is None else prediction.masks
        scores = like.new_zeros(0) if prediction is None else prediction.ious.detach().amax(1)
        shapes = list(zip(seg_counts.tolist(), num_frames.tolist(), strict=True))
        pairs = [objects * frames for objects, frames in shapes]
        return (
            [chunk.view(*shape, size, size) for chunk, shape in zip(masks.split(pairs), shapes, strict=True)],
            [chunk.view(*shape) for chunk, shape in zip(scores.split(pairs), shapes, strict=True)],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Of a model that has run as well: transformers hangs hooks on it then that cannot be pickled."""
        return remove_capturing_hooks(self).__dict__.copy()


def _some(names: list[str], limit: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


__all__ = ["Sa2VAForConditionalGeneration", "Sa2VAOutput"]
