"""SAM 2 over clips, as it is trained: prompts, correction clicks, memory, and the losses of every answer on the way.

The network is the `sam2` package's `SAM2Base`, unchanged; an image is a clip of one frame. Each answer's losses at
full size are turned into the gradient of its small mask at once, so that no full-size map waits for the backward pass.
With checkpointing frames are encoded when it is their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...model.configuration_sa2va import Sa2VAGroundingConfig
from ...model.grounding import prompt
from ...model.grounding_protocol import NO_OBJECT_LOGIT, PIXEL_MEAN, PIXEL_STD, MaskPrediction
from .losses import Losses, LossSettings, step_losses
from .prompting import ClipPlan, Points, Prompter, PromptSettings


@dataclass
class Step:
    """One answer for all O objects of a frame, without gradients: mask logits `masks` (O, M, h, w), their expected
    `ious` (O, M), object `scores` (O, 1), all `points` given so far, and its unweighted losses (mask, dice, IoU,
    score)."""

    masks: Tensor
    ious: Tensor
    scores: Tensor
    points: Points | None
    losses: Tensor


@dataclass
class ClipOutput:
    """`loss` to be minimised; its parts without their weights; and the steps of each frame."""

    loss: Tensor
    mask_loss: Tensor
    dice_loss: Tensor
    iou_loss: Tensor
    score_loss: Tensor
    steps: list[list[Step]] = field(default_factory=list)


@dataclass
class Answer:
    """What the mask decoder says of O objects. masks: logits (O, M, h, w), with `NO_OBJECT_LOGIT` for absent objects;
    raw: the same before that; best: (O, 1, h, w) by expected IoU; pointer (O, C): how memory refers to the object.
    full: (O, 1, S, S), where masks are known better than from their small form."""

    masks: Tensor
    raw: Tensor
    ious: Tensor
    scores: Tensor
    best: Tensor
    pointer: Tensor
    full: Tensor | None = None


@dataclass
class Frame:
    """A frame's features, repeated for every object: `levels` = stride 4 and 8, (O, C, h, w); `low` = stride 16, and
    its position encoding, as (h * w, O, C)."""

    levels: list[Tensor]
    low: Tensor
    position: Tensor
    size: torch.Size


class Sam2ClipModel(nn.Module):
    """Wraps a `SAM2Base` for training; `sam2` is that network and holds all of the weights.

    gate_masks: losses see `NO_OBJECT_LOGIT` where the object score says "absent", as in the original. An object that
    is there then has a huge loss without any gradient (the spikes in SAM 2's loss curves); False: they see the masks.
    """

    accepts_loss_kwargs = False  # the Trainer divides by the accumulated batches

    def __init__(
        self,
        sam2: SAM2Base,
        config: Sa2VAGroundingConfig,
        prompts: PromptSettings | None = None,
        losses: LossSettings | None = None,
        gate_masks: bool = True,
    ) -> None:
        super().__init__()
        self.sam2, self.config = sam2, config
        self.prompts, self.losses, self.gate_masks = prompts or PromptSettings(), losses or LossSettings(), gate_masks
        self.checkpointing = False

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Encoder, memory attention and mask decoder are computed again in the backward pass instead of kept."""
        self.checkpointing = True

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name before transformers 5.2x

    # ---- the frames of a clip in order ----
    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        clip_of_object: Tensor,
        rng: np.random.Generator,
        ignore: Tensor | None = None,
        objects: float | None = None,
    ) -> ClipOutput:
        """B clips of T frames side by side, with O objects in all.

        Args:
            images: uint8 (B, T, 3, S, S). masks: bool (T, O, S, S), empty where the object is absent.
            clip_of_object: (O,) in 0..B-1. ignore: bool (T, B, S, S), pixels that do not count.
            rng: decides about the prompts; it must be the same on all ranks, or DDP waits for gradients without end.
            objects: the mean number of objects over ranks and accumulated batches; default: O.
        """
        prompter = Prompter(self.prompts, rng, self.training)
        plan, frames = prompter.plan(masks), len(masks)
        order = plan.order(frames)
        kept: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        steps: list[list[Step]] = [[] for _ in range(frames)]
        total = torch.zeros((), device=masks.device)
        # Encoded together they take less time. One by one, what a frame needs in between is gone before the next.
        clips = len(images)
        together = None if self.checkpointing else self._encode(images.transpose(0, 1).flatten(0, 1))
        for number in order:
            if together is None:
                features = self._encode(images[:, number])
            else:
                features = tuple(level[number * clips : (number + 1) * clips] for level in together)
            frame = _frame(features, clip_of_object)
            ignored = None if ignore is None else ignore[number, clip_of_object]

            def learn(answer: Answer, points: Points | None, number: int = number, ignored: Tensor = ignored) -> None:
                nonlocal total
                loss, parts = self._learn(answer, masks[number], ignored, objects or masks.shape[1])
                total = total + loss
                steps[number].append(_step(answer, points, parts))

            answer, points = self._track(number, frame, plan, masks[number], kept, frames, prompter, learn)
            if number != order[-1]:  # no later frame reads the memory of the last one
                prompted = number in plan.prompted
                corrected = number in plan.corrected and self.prompts.add_all_frames_to_correct_as_cond
                group = kept["cond_frame_outputs" if prompted or corrected else "non_cond_frame_outputs"]
                group[number] = self._remember(frame, answer, points is not None)
        if torch.is_grad_enabled() and not total.requires_grad:  # the masks of all frames were given: nothing to learn
            total = total + 0 * next(p for p in self.parameters() if p.requires_grad).sum()
        parts = torch.stack([step.losses for of_frame in steps for step in of_frame]).sum(0)
        return ClipOutput(total, *parts, steps=steps)

    def _track(
        self,
        number: int,
        frame: Frame,
        plan: ClipPlan,
        masks: Tensor,
        kept: dict[str, dict[int, dict[str, Any]]],
        frames: int,
        prompter: Prompter,
        learn: Callable[[Answer, Points | None], None],
    ) -> tuple[Answer, Points | None]:
        """The last answer on a frame, and the points it was given. masks: bool (O, S, S)."""
        prompted = number in plan.prompted
        points = plan.prompted.get(number)
        if prompted and points is None:
            answer = self._given(frame, masks.unsqueeze(1))
            learn(answer, None)
            return answer, None
        remembered = {group: dict(of_group) for group, of_group in kept.items()}  # as it is now, also when run again
        image = self._run(self._condition, number, frame, prompted, remembered, frames)
        answer = self._answer(image, frame, points)
        learn(answer, points)
        for _ in range(prompter.clicks if number in plan.corrected else 0):
            drawn = self._full_size(answer.best.detach())[:, 0] > 0
            click = prompter.correct(masks, drawn)
            points = click if points is None else points.and_then(click)
            answer = self._answer(image, frame, points, answer.best)
            learn(answer, points)
        return answer, points

    # ---- parts of the network ----
    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, 3, S, S) -> three levels of features (N, C, h, w), and the last one's positions."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        return self._run(self._image_features, (images.float() / 255 - mean) / std)

    def _image_features(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.sam2.forward_image(images)
        return *found["backbone_fpn"], found["vision_pos_enc"][-1]

    def _condition(self, number: int, frame: Frame, prompted: bool, kept: dict, frames: int) -> Tensor:
        """(O, C, h, w): what the frame looks like, given what is remembered of each object."""
        return self.sam2._prepare_memory_conditioned_features(
            frame_idx=number,
            is_init_cond_frame=prompted,
            current_vision_feats=[frame.low],
            current_vision_pos_embeds=[frame.position],
            feat_sizes=[frame.size],
            output_dict=kept,
            num_frames=frames,
        )

    def _answer(
        self, image: Tensor, frame: Frame, points: Points | None, mask_prompts: Tensor | None = None
    ) -> Answer:
        """The mask decoder's answer on an image (O, C, h, w) to points and a mask (O, 1, S / 4, S / 4)."""
        sam, objects = self.sam2, len(image)
        if points is None:
            points = Points(
                torch.zeros(objects, 1, 2, device=image.device),
                -torch.ones(objects, 1, dtype=torch.int32, device=image.device),
            )
            given = 0
        else:
            given = points.labels.shape[1]
        several = sam.multimask_output_in_sam and sam.multimask_min_pt_num <= given <= sam.multimask_max_pt_num
        found = self._run(self._decode, image, frame.levels, points, mask_prompts, several)
        present, rows = found.object_scores > 0, torch.arange(objects, device=image.device)
        masks = torch.where(present[:, :, None, None], found.candidates, NO_OBJECT_LOGIT)
        best = masks[rows, found.ious.argmax(1)].unsqueeze(1)
        pointer = torch.where(present, sam.obj_ptr_proj(found.tokens), sam.no_obj_ptr)
        return Answer(masks, found.candidates, found.ious, found.object_scores.float(), best, pointer)

    def _decode(
        self, image: Tensor, levels: list[Tensor], points: Points, mask_prompts: Tensor | None, several: bool
    ) -> MaskPrediction:
        return prompt(self.sam2, image, levels, points=tuple(points), masks=mask_prompts, several=several)

    def _given(self, frame: Frame, masks: Tensor) -> Answer:
        """The answer where the prompt is the mask, bool (O, 1, S, S): itself. Only its pointer is computed."""
        objects, side = len(masks), frame.size
        image = frame.low.permute(1, 2, 0).reshape(objects, -1, *side)
        small, full, ious, _, _, pointer, scores = self.sam2._use_mask_as_output(image, frame.levels, masks)
        return Answer(small, small, ious, scores, small, pointer, full)

    def _remember(self, frame: Frame, answer: Answer, from_points: bool) -> dict[str, Any]:
        features, position = self.sam2._encode_new_memory(
            current_vision_feats=[frame.low],
            feat_sizes=[frame.size],
            pred_masks_high_res=self._full_size(answer.best) if answer.full is None else answer.full,
            object_score_logits=answer.scores,
            is_mask_from_pts=from_points,
        )
        return {"maskmem_features": features, "maskmem_pos_enc": position, "obj_ptr": answer.pointer}

    def _run(self, function: Callable, *arguments: Any) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    # ---- losses ----
    def _learn(self, answer: Answer, targets: Tensor, ignore: Tensor | None, objects: float) -> tuple[Tensor, Tensor]:
        """(weighted loss, its parts without weights (4,)) of an answer; targets bool (O, S, S)."""

        def compute(masks: Tensor, ious: Tensor, scores: Tensor) -> Losses:
            return step_losses(self._full_size(masks), ious, scores, targets, self.losses, objects, ignore)

        masks = answer.masks if self.gate_masks else answer.raw
        inputs = (masks if answer.full is None else answer.full, answer.ious, answer.scores)
        if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            return _AtOnce.apply(compute, self.losses, *inputs)
        losses = compute(*inputs)
        return losses.total(self.losses), torch.stack(losses)

    def _full_size(self, masks: Tensor) -> Tensor:
        side = self.sam2.image_size
        if masks.shape[-1] == side:
            return masks
        return F.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)


class _AtOnce(torch.autograd.Function):
    """A loss whose gradient is taken in the forward pass: only that of the inputs is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., Losses], settings: LossSettings, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in inputs]
            losses = compute(*leaves)
            total = losses.total(settings)
        ctx.save_for_backward(*torch.autograd.grad(total, leaves, allow_unused=True))
        parts = torch.stack(losses).detach()
        ctx.mark_non_differentiable(parts)
        return total.detach(), parts

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if saved is None else saved * gradient for saved in ctx.saved_tensors)


def set_dropout(sam2: SAM2Base, drop_path: float, dropout: float) -> None:
    """How much is dropped in training: whole blocks of the image encoder (more, the deeper they are), and entries in
    the memory attention."""
    blocks = sam2.image_encoder.trunk.blocks
    for block, rate in zip(blocks, np.linspace(0, drop_path, len(blocks)), strict=True):
        block.drop_path = DropPath(float(rate)) if rate > 0 else nn.Identity()
    for module in sam2.memory_attention.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "dropout_p", None), float):
            module.dropout_p = dropout


def _step(answer: Answer, points: Points | None, losses: Tensor) -> Step:
    return Step(answer.masks.detach(), answer.ious.detach(), answer.scores.detach(), points, losses.detach())


def _frame(features: tuple[Tensor, ...], clip_of_object: Tensor) -> Frame:
    """What `_encode` gives of a frame of each clip, per object."""
    *levels, position = (_per_object(level, clip_of_object) for level in features)
    return Frame(levels[:2], _to_sequence(levels[2]), _to_sequence(position), levels[2].shape[-2:])


def _per_object(maps: Tensor, clip_of_object: Tensor) -> Tensor:
    """(B, C, h, w) -> (O, C, h, w); of a single clip without copies."""
    return maps.expand(len(clip_of_object), -1, -1, -1) if len(maps) == 1 else maps[clip_of_object]


def _to_sequence(maps: Tensor) -> Tensor:
    """(O, C, h, w) -> (h * w, O, C), the form that SAM 2's memory reads."""
    return maps.flatten(2).permute(2, 0, 1)
