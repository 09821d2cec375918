"""What the model asks of a grounding encoder, whichever SAM it is: features of frames, masks from prompts, a memory.

`grounding.py` implements it with SAM 2 (the `sam2` package), `sam3.py` with SAM 3 (transformers' tracker).
`grounding_config.model_type` chooses. What follows objects through a clip, `tracking.ClipMemory`, calls nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .placement import Float32, device_of

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
NO_OBJECT_LOGIT = -1024.0  # what SAM puts where its object score says that there is nothing
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a given mask as logits: -10 and 10
AMBIGUOUS_POINTS = 1  # a prompt of at most so many points, and none at all, gets three candidates in training
# Heads of the mask decoder that the mask losses do not reach: the mask is chosen by argmax and never gated by object
# score. The first two have a loss of their own, where it has a weight.
IOU_HEAD, OBJECT_SCORE_HEAD = "iou_prediction_head", "pred_obj_score_head"
UNREACHED_HEADS = (IOU_HEAD, OBJECT_SCORE_HEAD, "output_hypernetworks_mlps.0")
GROUNDING_PARTS = ("none", "decoder", "all")

# Per kind of frame (prompted, followed) and index: "maskmem_features" and "maskmem_pos_enc", the spatial memory and
# its positions (None once no frame looks at them), and "obj_ptr" (objects, C). The sam2 package reads these names.
Kept = dict[str, dict[int, dict[str, Any]]]
PROMPTED, FOLLOWED = "cond_frame_outputs", "non_cond_frame_outputs"


@dataclass
class ImageFeatures:
    """Features of F frames: `levels` = two fine ones (projected for the mask decoder) and the grid, each (F, C, H, W);
    the last is without the no-memory embedding. `unprojected` = the two fine ones for the tracking decoder, which has
    projections of its own; None where there is none. Strides are 4, 8, 16 in SAM 2 and 3.5, 7, 14 in SAM 3."""

    levels: list[Tensor]
    unprojected: list[Tensor] | None = None

    def __getitem__(self, frames: slice | Tensor) -> ImageFeatures:
        """Features of some frames, or (by an index tensor) of one frame per pair."""
        raw = self.unprojected
        return ImageFeatures([x[frames] for x in self.levels], None if raw is None else [x[frames] for x in raw])


@dataclass
class MaskPrediction:
    """Masks of P (frame, prompt) pairs: `masks` (P, h, w) low-resolution logits of the best candidate by predicted
    IoU; all of them as `candidates` (P, M, h, w) with `ious` (P, M); the output token of the best one as `tokens`
    (P, C), and `object_scores` (P, 1), above 0 where the object is on the frame."""

    masks: Tensor
    candidates: Tensor
    ious: Tensor
    tokens: Tensor
    object_scores: Tensor

    @property
    def scores(self) -> Tensor:
        """(P, 2) in 0..1: the IoU expected of the mask, and the probability that the object is on the frame."""
        return torch.cat([self.ious.amax(1, keepdim=True), self.object_scores.float().sigmoid()], dim=1)


@dataclass
class GivenMasks:
    """Masks that the user gave, as a grounding encoder takes them: `masks` (objects, h, w), low-resolution logits;
    `remembered`, the logits that its memory is made of, and `exact`, those that training makes it of; object
    `pointers` (objects, C); and bool (objects, 1) whether each object is `present`."""

    masks: Tensor
    remembered: Tensor
    exact: Tensor
    pointers: Tensor
    present: Tensor


def best_of(candidates: Tensor, ious: Tensor, tokens: Tensor, object_scores: Tensor) -> MaskPrediction:
    """What a mask decoder returned, candidates (P, M, h, w), ious (P, M), tokens (P, M or 1, C), scores (P, 1), with
    the best candidate by predicted IoU chosen."""
    candidates = candidates.float()
    best, rows = ious.argmax(dim=1), torch.arange(len(ious), device=candidates.device)
    token = tokens[rows, best if tokens.shape[1] > 1 else torch.zeros_like(best)]
    return MaskPrediction(candidates[rows, best], candidates, ious.float(), token, object_scores)


def with_corners(boxes: Tensor, points: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Boxes as SAM reads them: two corners, labelled 2 and 3, before the points."""
    corners = boxes.reshape(-1, 2, 2).float()
    labels = torch.tensor([[2, 3]], dtype=torch.int32, device=boxes.device).expand(len(boxes), 2)
    if points is None:
        return corners, labels
    return torch.cat([corners, points[0]], dim=1), torch.cat([labels, points[1]], dim=1)


def resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """(N, C, H, W) to another size, bilinear."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def to_sequence(maps: Tensor, objects: int) -> Tensor:
    """(1, C, H, W), or one map per object, -> (H * W, objects, C), the form that SAM's memory reads."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, objects, -1)


def precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """SAM keeps float32 weights; beside an LLM of half precision, `dtype`, it computes in half as well."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype) if half else nullcontext()


def touch(module: nn.Module) -> Tensor:
    """A zero that depends on every trainable parameter of `module`.

    Added to the loss it gives zero gradients instead of none, so that ranks whose batch has no masks (or no pictures)
    take part in the gradient exchange: DDP and ZeRO wait for every trainable parameter.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return sum((p.sum() * 0.0 for p in parameters), start=torch.zeros(()))


class GroundingEncoder(Float32):
    """A SAM prompted by [SEG] embeddings, points, boxes or masks. Each frame is encoded once, however many objects it
    has. A subclass provides the members that raise NotImplementedError here.

    Attributes:
        builds_on_meta: whether it may be built on meta, as `from_pretrained` does: all that is no stored weight is
            made again after loading.
        tracking_decoder: a second mask decoder, for points, boxes, masks and memory; None: the only one does all.
    """

    builds_on_meta = False  # SAM 2's plain rotary tensors would stay there for ever
    tracking_decoder: nn.Module | None

    # ---------------------------------------------------------------- what is fixed by the configuration
    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        raise NotImplementedError

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        raise NotImplementedError

    @property
    def memory_frames(self) -> int:
        """How many frames a frame looks at: the prompted ones count as one, the others are the last ones before it."""
        raise NotImplementedError

    @property
    def pointer_frames(self) -> int:
        """How far back a frame looks at object pointers, plus one."""
        raise NotImplementedError

    @property
    def blanks_absent(self) -> bool:
        """Whether masks of followed objects are blanked where the object score says that they are gone."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The SAM itself, whose state dict has the names that it is stored under where it is alone."""
        raise NotImplementedError

    @property
    def image_encoder(self) -> nn.Module:
        """From normalised pixels to features: the part that takes the time."""
        raise NotImplementedError

    @property
    def mask_decoder(self) -> nn.Module:
        """The mask decoder for [SEG] embeddings."""
        raise NotImplementedError

    @property
    def tracker(self) -> nn.Module:
        """The mask decoder for points, boxes, masks and memory: SAM's own where the checkpoint has it beside the one
        that was fine-tuned for [SEG]."""
        return self.mask_decoder if self.tracking_decoder is None else self.tracking_decoder

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self)

    # ---------------------------------------------------------------- pictures and prompts
    def normalize(self, frames: Tensor, constants: torch.dtype = torch.float32) -> Tensor:
        """uint8 (F, 3, S, S) -> float32, ImageNet mean and standard deviation.

        constants: the precision they are rounded to; float32 as in training, bfloat16 as in the released inference.
        """
        mean, std = (
            torch.tensor(values, dtype=constants, device=frames.device).float().view(1, 3, 1, 1)
            for values in (PIXEL_MEAN, PIXEL_STD)
        )
        return (frames.float() / 255 - mean) / std

    def encode(self, frames: Tensor) -> ImageFeatures:
        """Features of normalised frames (F, 3, S, S)."""
        raise NotImplementedError

    def decode(self, features: ImageFeatures, frame_index: Tensor, embeddings: Tensor) -> MaskPrediction:
        """Masks of P pairs by the decoder tuned for [SEG]: `frame_index` (P,) selects the frame, `embeddings` (P, C)
        the object. Features are used without memory."""
        raise NotImplementedError

    def prompt(
        self,
        features: ImageFeatures,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        image: Tensor | None = None,
    ) -> MaskPrediction:
        """Masks of P objects on the one frame of `features`, by the tracker.

        Args:
            points: coordinates (P, N, 2) in pixels of the square input, x then y, and labels int32 (P, N): 1 on the
                object, 0 off it, -1 padding.
            boxes: (P, 4) xyxy in pixels of the square input.
            masks: (P, 1, mask_size, mask_size) logits.
            image: (P, C, H, W), the grid with what is remembered of each object; default: that of the frame, without
                memory. A mask alone gives one candidate; every other prompt gives three. Nothing is blanked.
        """
        if image is None:
            pairs = len(next(given for given in (points and points[0], boxes, masks) if given is not None))
            image = self.without_memory(features.levels[-1]).expand(pairs, -1, -1, -1)
        levels, tracker = features.levels[:2], self.tracker
        if self.tracking_decoder is not None:
            high, middle = features.unprojected
            levels = [tracker.conv_s0(high), tracker.conv_s1(middle)]
        several = masks is None or points is not None or boxes is not None
        prompts = {"points": points, "boxes": boxes, "masks": masks}
        return self.prompted(image, levels, **prompts, decoder=tracker, several=several)

    def without_memory(self, low: Tensor) -> Tensor:
        """The coarsest level (F, C, H, W) as the mask decoder takes it where nothing is remembered."""
        raise NotImplementedError

    def prompted(self, image: Tensor, levels: list[Tensor], **prompts: Any) -> MaskPrediction:
        """The mask decoder on P pairs of an image and a prompt: the `prompt` function of the SAM's own module."""
        raise NotImplementedError

    def forward(
        self, frames: Tensor | None, frame_index: Tensor | None = None, embeddings: Tensor | None = None
    ) -> tuple[MaskPrediction | None, Tensor]:
        """Masks of uint8 `frames`, and a zero touching every trainable parameter. `frames` None: only the zero.

        Every rank calls this every step: under ZeRO-3 the call itself gathers the (leaf) module's weights, so a rank
        without masks must come through here too; it costs it no encoder pass.
        """
        # The input must be on the way as well: a ZeRO-3 leaf reduces its gradients when that of its input is known.
        zero = touch(self) if embeddings is None else touch(self).to(embeddings.device) + embeddings.sum() * 0.0
        if frames is None or not len(frame_index):
            return None, zero
        used, local = frame_index.unique(return_inverse=True)
        features = self.encode(self.normalize(frames[used]))
        return self.decode(features, local, embeddings), zero

    # ---------------------------------------------------------------- memory
    def begin(self) -> Kept:
        """An empty memory."""
        return {PROMPTED: {}, FOLLOWED: {}}

    def read(self, kept: Kept, index: int, features: ImageFeatures, objects: int, num_frames: int) -> Tensor:
        """(objects, C, H, W): the grid of frame `index`, given what is remembered of each object."""
        raise NotImplementedError

    def given(self, features: ImageFeatures, masks: Tensor) -> GivenMasks:
        """Masks of a frame that the user gave: logits (objects, h, w), or bool of any size."""
        raise NotImplementedError

    def pointers(self, prediction: MaskPrediction, present: Tensor) -> Tensor:
        """(objects, C): the output tokens as memory keeps them; the no-object pointer where `present` is False."""
        raise NotImplementedError

    def remember(self, features: ImageFeatures, masks: Tensor, present: Tensor, prompted: bool) -> tuple[Tensor, Any]:
        """The spatial memory of a frame, and its positions, as `read` takes them.

        Args:
            masks: logits (objects, h, w) of any size.
            present: bool (objects, 1), whether each object is on the frame.
            prompted: whether the masks came from a prompt on this frame. In training it makes no difference.
        """
        raise NotImplementedError

    def forget(self, kept: Kept, upcoming: int) -> None:
        """Drop what no frame from `upcoming` on looks back at: maps first, pointers later."""
        followed = kept[FOLLOWED]
        for index in list(followed):
            if upcoming - index >= max(self.memory_frames, self.pointer_frames):
                del followed[index]
            elif upcoming - index >= self.memory_frames:
                followed[index].update(maskmem_features=None, maskmem_pos_enc=None)

    # ---------------------------------------------------------------- what is trained
    def self_initialized(self) -> Iterable[nn.Module]:
        """The modules that transformers must not initialise anew: all but its own."""
        return self.modules()

    def select_trained(self, grounding: str, iou_head: bool, object_score_head: bool = False) -> None:
        """Set `requires_grad` of every parameter. Heads that no loss reaches stay frozen, so that weight decay does
        not eat them.

        Args:
            grounding: "none", "decoder" (as released) or "all".
            iou_head, object_score_head: whether a loss reaches the head that predicts the IoU, and the one that
                predicts whether the object is there.

        Raises:
            ValueError: another `grounding`.
        """
        if grounding not in GROUNDING_PARTS:
            raise ValueError(f"grounding: expected 'none', 'decoder' or 'all', got {grounding!r}")
        self.requires_grad_(False)
        if grounding != "none":
            self.mask_decoder.requires_grad_(True)
        for part in self.trained_beside_decoder() if grounding == "all" else ():
            part.requires_grad_(True)
        for part in self.never_trained(grounding):
            part.requires_grad_(False)
        reached = {IOU_HEAD: iou_head, OBJECT_SCORE_HEAD: object_score_head}
        for name in UNREACHED_HEADS:
            if not reached.get(name):
                self.mask_decoder.get_submodule(name).requires_grad_(False)

    def trained_beside_decoder(self) -> Iterable[nn.Module | nn.Parameter]:
        """What "all" trains beside the mask decoder."""
        raise NotImplementedError

    def never_trained(self, grounding: str) -> Iterable[nn.Module]:
        """What stays frozen of the parts that `grounding` trains."""
        raise NotImplementedError
