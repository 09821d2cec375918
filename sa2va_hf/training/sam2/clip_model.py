"""A SAM over clips, as it is trained: prompts, correction clicks, memory, and the losses of every answer on the way.

The network is any grounding encoder of `model/grounding_protocol.py`; an image is a clip of one frame. Each answer's
losses at full size are turned into the gradient of its small mask at once, so that no full-size map waits for the
backward pass. With checkpointing frames are encoded when it is their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from ...model.grounding import Sa2VAGroundingEncoder
from ...model.grounding_protocol import (
    AMBIGUOUS_POINTS,
    FOLLOWED,
    MASK_BIAS,
    MASK_SCALE,
    NO_OBJECT_LOGIT,
    PROMPTED,
    GroundingEncoder,
    ImageFeatures,
    Kept,
    MaskPrediction,
    resize,
)
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
    full: (O, 1, H, W), where masks are known better than from their small form."""

    masks: Tensor
    raw: Tensor
    ious: Tensor
    scores: Tensor
    best: Tensor
    pointer: Tensor
    full: Tensor | None = None


class Sam2ClipModel(nn.Module):
    """Wraps a grounding encoder, or a `SAM2Base`, for training; `sam` is its network and holds all of the weights.

    gate_masks: losses see `NO_OBJECT_LOGIT` where the object score says "absent", as in the original. An object that
    is there then has a huge loss without any gradient (the spikes in SAM 2's loss curves); False: they see the masks.
    """

    accepts_loss_kwargs = False  # the Trainer divides by the accumulated batches

    def __init__(
        self,
        encoder: GroundingEncoder | SAM2Base,
        config: PretrainedConfig,
        prompts: PromptSettings | None = None,
        losses: LossSettings | None = None,
        gate_masks: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(encoder, SAM2Base):
            encoder = Sa2VAGroundingEncoder(sam2=encoder)
        self.encoder, self.config = encoder, config
        self.prompts, self.losses, self.gate_masks = prompts or PromptSettings(), losses or LossSettings(), gate_masks
        self.checkpointing = False

    @property
    def sam(self) -> nn.Module:
        return self.encoder.network

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
        kept = self.encoder.begin()
        steps: list[list[Step]] = [[] for _ in range(frames)]
        total = torch.zeros((), device=masks.device)
        # Encoded together they take less time. One by one, what a frame needs in between is gone before the next.
        clips = len(images)
        together = None if self.checkpointing else self._encode(images.transpose(0, 1).flatten(0, 1))
        for number in order:
            if together is None:
                features = self._encode(images[:, number])
            else:
                features = together[number * clips : (number + 1) * clips]
            frame = features if clips == 1 else features[clip_of_object]  # of a single clip without copies
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
                group = kept[PROMPTED if prompted or corrected else FOLLOWED]
                group[number] = self._remember(frame, answer, points is not None)
        if torch.is_grad_enabled() and not total.requires_grad:  # the masks of all frames were given: nothing to learn
            total = total + 0 * next(p for p in self.parameters() if p.requires_grad).sum()
        parts = torch.stack([step.losses for of_frame in steps for step in of_frame]).sum(0)
        return ClipOutput(total, *parts, steps=steps)

    def _track(
        self,
        number: int,
        frame: ImageFeatures,
        plan: ClipPlan,
        masks: Tensor,
        kept: Kept,
        frames: int,
        prompter: Prompter,
        learn: Callable[[Answer, Points | None], None],
    ) -> tuple[Answer, Points | None]:
        """The last answer on a frame, and the points it was given. masks: bool (O, S, S)."""
        prompted = number in plan.prompted
        points = plan.prompted.get(number)
        if prompted and points is None:
            answer = self._given(frame, masks)
            learn(answer, None)
            return answer, None
        remembered = {group: dict(of_group) for group, of_group in kept.items()}  # as it is now, also when run again
        image = self._run(self._condition, number, frame, prompted, remembered, frames, len(masks))
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
    def _encode(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 (N, 3, S, S)."""
        return self._run(self.encoder.encode, self.encoder.normalize(images))

    def _condition(
        self, number: int, frame: ImageFeatures, prompted: bool, kept: Kept, frames: int, objects: int
    ) -> Tensor:
        """(O, C, h, w): what the frame looks like, given what is remembered of each object."""
        if prompted:
            return self.encoder.without_memory(frame.levels[-1]).expand(objects, -1, -1, -1)
        return self.encoder.read(kept, number, frame, objects, frames)

    def _answer(
        self, image: Tensor, frame: ImageFeatures, points: Points | None, mask_prompts: Tensor | None = None
    ) -> Answer:
        """The mask decoder's answer on an image (O, C, h, w) to points and a mask (O, 1, mask size, mask size)."""
        objects, given = len(image), 0 if points is None else points.labels.shape[1]
        if points is None:
            points = Points(
                torch.zeros(objects, 1, 2, device=image.device),
                -torch.ones(objects, 1, dtype=torch.int32, device=image.device),
            )
        found = self._run(self._decode, image, frame.levels[:2], points, mask_prompts, given <= AMBIGUOUS_POINTS)
        present, rows = found.object_scores > 0, torch.arange(objects, device=image.device)
        masks = torch.where(present[:, :, None, None], found.candidates, NO_OBJECT_LOGIT)
        best = masks[rows, found.ious.argmax(1)].unsqueeze(1)
        pointer = self.encoder.pointers(found, present)
        return Answer(masks, found.candidates, found.ious, found.object_scores.float(), best, pointer)

    def _decode(
        self, image: Tensor, levels: list[Tensor], points: Points, mask_prompts: Tensor | None, several: bool
    ) -> MaskPrediction:
        prompts = {"points": tuple(points), "masks": mask_prompts}
        return self.encoder.prompted(image, levels, **prompts, decoder=self.encoder.tracker, several=several)

    def _given(self, frame: ImageFeatures, masks: Tensor) -> Answer:
        """The answer where the prompt is the mask, bool (O, S, S): itself. Only its pointer is computed."""
        given = self.encoder.given(frame, masks)
        small, full = given.masks.unsqueeze(1), given.exact.unsqueeze(1)
        scores = given.present.to(small.dtype) * MASK_SCALE + MASK_BIAS
        return Answer(small, small, torch.ones_like(scores), scores, small, given.pointers, full)

    def _remember(self, frame: ImageFeatures, answer: Answer, from_points: bool) -> dict[str, Any]:
        masks = answer.best if answer.full is None else answer.full
        features, position = self.encoder.remember(frame, masks[:, 0], answer.scores > 0, from_points)
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
        return resize(masks, (self.encoder.image_size,) * 2)


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


def _step(answer: Answer, points: Points | None, losses: Tensor) -> Step:
    return Step(answer.masks.detach(), answer.ious.detach(), answer.scores.detach(), points, losses.detach())
