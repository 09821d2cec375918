"""Simulated prompts and correction clicks, and the frames that get them (arXiv 2408.00714, section D.2.2).

The decisions are sampled with one numpy generator, in the order of the original (sam2: `training/model/sam2.py`), so
that the same generator gives the same training; the positions of points come from torch's default generator. All
objects of a batch, of all its clips, are prompted alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

POSITIVE, NEGATIVE, BOX_LABELS = 1, 0, (2, 3)
BOX_NOISE, MAX_BOX_NOISE = 0.1, 20.0  # share of a side, pixels


@dataclass(frozen=True)
class PromptSettings:
    """The flags of SAM 2's training under their own names; the defaults are those of its fine-tuning on MOSE.

    Every `..._for_train` has an `..._for_eval`, which counts while the model is in eval mode.

    prob_to_use_pt_input: prompts are points or boxes, and get corrected; else they are masks. Images: always points.
    prob_to_use_box_input: of those, boxes. prob_to_sample_from_gt: a correction click is anywhere in the object, not
        where the prediction is wrong.
    num_frames_to_correct: that get correction clicks (rand: at most so many), the prompted ones first.
    num_init_cond_frames: that are prompted (rand: at most so many), the first one always.
    add_all_frames_to_correct_as_cond: corrected frames are remembered like prompted ones.
    num_correction_pt_per_frame: clicks on a corrected frame, at least 1.
    pt_sampling_for_eval: "center", as deep inside the largest error as possible, or "uniform", as in training.
    """

    prob_to_use_pt_input_for_train: float = 0.5
    prob_to_use_pt_input_for_eval: float = 0.0
    prob_to_use_box_input_for_train: float = 0.5
    prob_to_use_box_input_for_eval: float = 0.0
    prob_to_sample_from_gt_for_train: float = 0.1
    num_frames_to_correct_for_train: int = 2
    num_frames_to_correct_for_eval: int = 1
    rand_frames_to_correct_for_train: bool = True
    rand_frames_to_correct_for_eval: bool = False
    num_init_cond_frames_for_train: int = 2
    num_init_cond_frames_for_eval: int = 1
    rand_init_cond_frames_for_train: bool = True
    rand_init_cond_frames_for_eval: bool = False
    add_all_frames_to_correct_as_cond: bool = True
    num_correction_pt_per_frame: int = 7
    pt_sampling_for_eval: str = "center"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.startswith("prob_") and not 0 <= value <= 1:
                raise ValueError(f"`{item.name}`: expected a probability from 0 to 1, got {value}")
            if item.name.startswith("num_") and value < 1:
                raise ValueError(f"`{item.name}`: expected at least 1, got {value}")
        if self.pt_sampling_for_eval not in ("center", "uniform"):
            raise ValueError(f"`pt_sampling_for_eval`: expected center or uniform, got {self.pt_sampling_for_eval!r}")
        for mode in ("train", "eval"):
            corrected, prompted = (
                getattr(self, f"num_{name}_for_{mode}") for name in ("frames_to_correct", "init_cond_frames")
            )
            if getattr(self, f"prob_to_use_pt_input_for_{mode}") > 0 and corrected < prompted:
                raise ValueError(
                    f"`num_frames_to_correct_for_{mode}` is {corrected}, less than the {prompted} prompted frames "
                    f"(`num_init_cond_frames_for_{mode}`): each of those is corrected where prompts are points"
                )


class Points(NamedTuple):
    """Prompts of O objects on a frame: `coordinates` (O, P, 2), x and y in pixels of the model's input image, and
    `labels` int32 (O, P): 1 inside, 0 outside, 2 and 3 the corners of a box."""

    coordinates: Tensor
    labels: Tensor

    def and_then(self, more: Points) -> Points:
        return Points(torch.cat([self.coordinates, more.coordinates], 1), torch.cat([self.labels, more.labels], 1))


@dataclass
class ClipPlan:
    """What happens in a clip. prompted: frames in the order they are looked at, each with its points or boxes, or None
    where its prompt is the mask; corrected: frames that get clicks."""

    prompted: dict[int, Points | None]
    corrected: list[int] = field(default_factory=list)

    def order(self, frames: int) -> list[int]:
        """All frames in the order they are looked at: the prompted ones first."""
        return [*self.prompted, *(t for t in range(frames) if t not in self.prompted)]


class Prompter:
    """Draws the prompts of one clip, or of several side by side; `training` chooses between the two sets of flags."""

    def __init__(self, settings: PromptSettings, rng: np.random.Generator, training: bool) -> None:
        self.settings, self.rng, self.training = settings, rng, training
        self.clicks = settings.num_correction_pt_per_frame
        self._mode = "train" if training else "eval"

    def _of_mode(self, name: str) -> float:
        return getattr(self.settings, f"{name}_for_{self._mode}")

    def plan(self, masks: Tensor) -> ClipPlan:
        """masks: bool (T, O, H, W). The order of the random choices is the original's."""
        rng, frames = self.rng, len(masks)
        use_points, corrected, prompted = 1.0, 1, 1
        if frames > 1:
            use_points = self._of_mode("prob_to_use_pt_input")
            corrected, prompted = (self._of_mode(f"num_{n}") for n in ("frames_to_correct", "init_cond_frames"))
        points = rng.random() < use_points
        if self._of_mode("rand_init_cond_frames") and prompted > 1:
            prompted = int(rng.integers(1, prompted, endpoint=True))
        if points and self._of_mode("rand_frames_to_correct") and corrected > prompted:
            corrected = int(rng.integers(prompted, corrected, endpoint=True))
        chosen = [0]
        if prompted > 1:
            chosen += rng.choice(range(1, frames), prompted - 1, replace=False).tolist()
        if not points:
            return ClipPlan(dict.fromkeys(chosen))
        prompts = {frame: self._first_prompt(masks[frame]) for frame in chosen}
        if corrected == prompted:
            return ClipPlan(prompts, chosen)
        others = [frame for frame in range(frames) if frame not in chosen]
        return ClipPlan(prompts, [*chosen, *rng.choice(others, corrected - prompted, replace=False).tolist()])

    def _first_prompt(self, masks: Tensor) -> Points:
        if self.rng.random() < self._of_mode("prob_to_use_box_input"):
            return noisy_boxes(masks)
        return self._click(masks, None)

    def correct(self, masks: Tensor, predicted: Tensor) -> Points:
        """One more click per object: bool (O, H, W) twice, the ground truth and the prediction."""
        anywhere = False
        if self.training and self.settings.prob_to_sample_from_gt_for_train > 0:
            anywhere = self.rng.random() < self.settings.prob_to_sample_from_gt_for_train
        return self._click(masks, None if anywhere else predicted)

    def _click(self, masks: Tensor, predicted: Tensor | None) -> Points:
        if not self.training and self.settings.pt_sampling_for_eval == "center":
            return center_clicks(masks, predicted)
        return uniform_clicks(masks, predicted)


def uniform_clicks(masks: Tensor, predicted: Tensor | None) -> Points:
    """One pixel per object, sampled uniformly from where the prediction is wrong: bool (O, H, W) -> one point each.

    Positive where the object was missed, negative where it was predicted wrongly; where all is right, negative
    somewhere outside of the object. Without a prediction: anywhere in the object.
    """
    missed, vain = _errors(masks, predicted)
    right = ~(missed | vain).flatten(1).any(1)
    vain = vain | (right.view(-1, 1, 1) & ~masks)
    objects, height, width = masks.shape
    noise = torch.rand(objects, 1, height, width, 2, device=masks.device)[:, 0]
    places = (noise * torch.stack([vain, missed], -1)).flatten(1).argmax(1)  # the last axis is the label
    pixels, labels = places // 2, places % 2
    return _points(pixels, labels, width)


def center_clicks(masks: Tensor, predicted: Tensor | None) -> Points:
    """One pixel per object, as far as possible from the border of an error: bool (O, H, W) -> one point each."""
    found = [_deepest(*pair) for pair in zip(*(_to_numpy(e) for e in _errors(masks, predicted)), strict=True)]
    pixels, labels = torch.tensor(found, device=masks.device).unbind(1)
    return _points(pixels, labels, masks.shape[-1])


def _errors(masks: Tensor, predicted: Tensor | None) -> tuple[Tensor, Tensor]:
    """(missed, predicted wrongly)."""
    predicted = torch.zeros_like(masks) if predicted is None else predicted
    return masks & ~predicted, predicted & ~masks


def _points(pixels: Tensor, labels: Tensor, width: int) -> Points:
    coordinates = torch.stack([pixels % width, pixels // width], 1).float()
    return Points(coordinates.unsqueeze(1), labels.int().unsqueeze(1))


def _to_numpy(masks: Tensor) -> np.ndarray:
    return masks.cpu().numpy()


def _deepest(missed: np.ndarray, vain: np.ndarray) -> tuple[int, int]:
    """(flat index of the pixel, its label) of one object."""
    in_missed, in_vain = distance_to_border(missed), distance_to_border(vain)
    positive = bool(in_missed.max() > in_vain.max())
    return int((in_missed if positive else in_vain).argmax()), positive


def distance_to_border(mask: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each pixel of a bool mask (H, W) to the nearest outside of it: int64 (H, W).

    Beyond the image is outside. Exact: down the columns first, then along the rows the lowest of the parabolas that
    the columns' distances are the feet of (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012).
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    down = np.zeros(padded.shape, np.int64)
    for y in range(1, height + 2):
        down[y] = (down[y - 1] + 1) * padded[y]
    for y in range(height, -1, -1):
        down[y] = np.minimum(down[y], (down[y + 1] + 1) * padded[y])
    out = np.zeros((height, width), np.int64)
    for y in np.flatnonzero(mask.any(1)):
        out[y] = _lower_envelope(down[y + 1] ** 2)[1:-1]
    return out


def _lower_envelope(feet: np.ndarray) -> np.ndarray:
    """min over q of (p - q)^2 + feet[q], for every p. The first and the last foot are 0."""
    length = len(feet)
    tops, starts = [0], [-np.inf]
    for q in range(1, length):
        while True:
            p = tops[-1]
            meet = ((feet[q] + q * q) - (feet[p] + p * p)) / (2 * (q - p))
            if meet > starts[-1]:
                break
            tops.pop()
            starts.pop()
        tops.append(q)
        starts.append(meet)
    places = np.arange(length)
    nearest = np.array(tops)[np.searchsorted(starts, places, side="right") - 1]
    return (places - nearest) ** 2 + feet[nearest]


def noisy_boxes(masks: Tensor, noise: float = BOX_NOISE, most: float = MAX_BOX_NOISE) -> Points:
    """The boxes of masks bool (O, H, W) as two corners, the far one inside the mask, each coordinate moved by up to
    `noise` of the box's side, at most `most` pixels, and kept inside the image."""
    height, width = masks.shape[-2:]
    corners = []
    for across, length in ((masks.any(1), width), (masks.any(2), height)):  # (O, W), (O, H)
        places = torch.arange(length, device=masks.device)
        # an empty mask's box is (width, height, -1, -1)
        near = torch.where(across, places, torch.full_like(places, length)).amin(1)
        far = torch.where(across, places, torch.full_like(places, -1)).amax(1)
        corners.append((near, far))
    (left, right), (top, bottom) = corners
    boxes = torch.stack([left, top, right, bottom], 1)  # (O, 4)
    labels = torch.tensor(BOX_LABELS, dtype=torch.int32, device=masks.device).expand(len(masks), 2)
    if noise > 0:
        sides = torch.stack([right - left, bottom - top] * 2, 1)
        moves = (2 * torch.rand(len(masks), 1, 4, device=masks.device)[:, 0] - 1) * (sides * noise).clamp(max=most)
        limits = torch.tensor([width, height] * 2, device=masks.device) - 1
        boxes = (boxes + moves).clamp(min=torch.zeros_like(limits), max=limits)
    return Points(boxes.float().view(-1, 2, 2), labels)
