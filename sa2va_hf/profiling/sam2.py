"""Time and memory of a SAM 2 training step against the original training code, in one process.

Both use the same random weights, clips and prompts, forward and backward, without an optimiser. The original code is
the `training` folder of the `sam2` package; two of its imports that a step does not need (its trainer, tensordict) are
replaced by empty modules. The original has torch's choice of an attention kernel; `--parts` shows it with that of this
package's training on a CPU as well.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.model.grounding_protocol import PIXEL_MEAN, PIXEL_STD
from sa2va_hf.profiling.report import measure, table
from sa2va_hf.profiling.sam2_parts import REST, Parts, watch_network
from sa2va_hf.training.sam2.clip_model import Sam2ClipModel
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.prompting import PromptSettings

FIXED = {  # makes every step the same
    "rand_frames_to_correct_for_train": False,
    "num_init_cond_frames_for_train": 1,
    "rand_init_cond_frames_for_train": False,
    "num_frames_to_correct_for_train": 2,
    "add_all_frames_to_correct_as_cond": True,
    "num_correction_pt_per_frame": 7,
}
PROMPTS = {
    "mask prompts": FIXED | {"prob_to_use_pt_input_for_train": 0.0},
    "a click, 7 corrections on 2 frames": FIXED | {"prob_to_use_pt_input_for_train": 1.0},
}
LOSSES = "losses"
PARTS = ("image encoder", "memory attention", "memory encoder", "prompts and mask decoder", LOSSES, REST)
WEIGHTS = {"loss_mask": 20, "loss_dice": 1, "loss_iou": 1, "loss_class": 1}


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables one by one."""
    clip = make_clip(arguments)
    if arguments.parts:  # what the first step of a process does in addition counts for nobody
        small = argparse.Namespace(**vars(arguments) | {"image_size": 64, "frames": 2, "repeats": 1})
        _by_part(small, PROMPTS["mask prompts"], make_clip(small))
    for title, flags in PROMPTS.items():
        shape = f"{arguments.frames} frames of {arguments.image_size} px, {arguments.objects} objects"
        if arguments.parts:
            yield f"### SAM 2.1 {arguments.size}, {shape}: {title}\n\n" + _by_part(arguments, flags, clip)
            continue
        rows: list[list[Any]] = []
        for name, make in STEPS.items():
            step = make(arguments, flags, clip)
            seconds, peak = measure(step, arguments.device, arguments.repeats)
            base = rows[0][1:3] if rows else [seconds, peak]
            rows.append([name, seconds, peak, base[0] / seconds, peak / base[1]])
            del step
        columns = ["", "seconds", "peak MiB", "times as fast", "times the memory"]
        yield f"### SAM 2.1 {arguments.size}, {shape}: {title}\n\n" + table(columns, rows)


def _by_part(arguments: argparse.Namespace, flags: dict[str, Any], clip: tuple[Tensor, Tensor]) -> str:
    """CPU seconds of a step by part, sam2's and ours, forward and backward; the medians over the repeats."""
    steps: dict[str, list] = {name: [] for name in BY_PART}
    for _ in range(arguments.repeats):  # in turn, so that other load slows all of them alike
        for name, make in BY_PART.items():
            parts = Parts(arguments.device)
            parts.step(make(arguments, flags, clip, parts=parts))
            steps[name].append((parts.forward, parts.backward))
    found, whole = {}, "all"
    for name, own in steps.items():
        found[name] = [{part: float(np.median([one[way][part] for one in own])) for part in PARTS} for way in (0, 1)]
        for way in found[name]:
            way[whole] = sum(way.values())
    rows = []
    for part in (*PARTS, whole):
        seconds = [[way[part] for way in ways] for ways in found.values()]
        first, ours = sum(seconds[0]), sum(seconds[-1])
        rows.append([part, *(value for ways in seconds for value in ways), first / max(ours, 1e-9)])
    columns = [text for name in BY_PART for text in (f"{name}: forward, s", "backward, s")]
    return table(["", *columns, "times as fast"], rows)


def make_clip(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Frames of noise, uint8 (1, T, 3, S, S), and masks of squares, bool (T, O, S, S)."""
    side, frames, objects = arguments.image_size, arguments.frames, arguments.objects
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (1, frames, 3, side, side), np.uint8))
    masks = torch.zeros(frames, objects, side, side, dtype=torch.bool)
    for frame in range(frames):
        for thing in range(objects):
            start = side * (thing + 1) // (objects + 2) + frame
            masks[frame, thing, start : start + side // 5, start : start + side // 4] = True
    return images.to(arguments.device), masks.to(arguments.device)


def precision(device: str) -> Any:
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()


def original(
    arguments: argparse.Namespace,
    flags: dict[str, Any],
    clip: tuple[Tensor, Tensor],
    parts: Parts | None = None,
    flash: bool = True,
) -> Callable[[], Any]:
    """A training step of the original code; with `parts`, which watch it, the forward pass of one. flash: whether
    attention may be FlashAttention, which it is on a GPU in any case."""
    train, losses = _package()
    config = Sa2VAGroundingConfig(version="2.1", size=arguments.size, image_size=arguments.image_size)
    torch.manual_seed(0)
    with patch("sa2va_hf.model.grounding.SAM2Base", partial(train, **flags)):
        model = build_sam2(config).to(arguments.device).train()
    set_dropout(model, 0.1, 0.1)
    loss_of = losses(WEIGHTS, supervise_all_iou=True, iou_use_l1_loss=True, pred_obj_scores=True)
    images, masks = clip
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    batch = SimpleNamespace(
        flat_img_batch=(images[0].float() / 255 - mean) / std,
        masks=masks,
        num_frames=len(masks),
        flat_obj_to_img_idx=torch.arange(len(masks), device=images.device).view(-1, 1).expand(-1, masks.shape[1]),
    )

    def forward() -> Tensor:
        _attention(arguments, flash)
        model.rng = np.random.default_rng(0)
        torch.manual_seed(0)
        with precision(arguments.device):
            return loss_of(model(batch), masks)["core_loss"]

    if parts:
        watch_network(parts, model)
        parts.watch(LOSSES, loss_of)
        return forward
    return lambda: _backward(model, forward())


def ours(
    arguments: argparse.Namespace,
    flags: dict[str, Any],
    clip: tuple[Tensor, Tensor],
    parts: Parts | None = None,
    checkpointing: bool = False,
) -> Callable[[], Any]:
    """A training step of this package; parts: as in `original`."""
    config = Sa2VAGroundingConfig(version="2.1", size=arguments.size, image_size=arguments.image_size)
    torch.manual_seed(0)
    sam2 = build_sam2(config)
    set_dropout(sam2, 0.1, 0.1)
    settings = {"prob_to_use_box_input_for_train": 0.0, "prob_to_sample_from_gt_for_train": 0.0}
    model = Sam2ClipModel(sam2, config, PromptSettings(**settings, **flags)).to(arguments.device).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    images, masks = clip
    clips = torch.zeros(masks.shape[1], dtype=torch.long, device=images.device)

    def forward() -> Tensor:
        _attention(arguments, False)  # as `training/sam2/build.py` has it
        torch.manual_seed(0)
        with precision(arguments.device):
            return model(images, masks, clips, np.random.default_rng(0)).loss

    if parts:
        watch_network(parts, sam2)
        model._learn = parts.watched(LOSSES, model._learn)
        return forward
    return lambda: _backward(model, forward())


STEPS = {"sam2's training": original, "ours": ours, "ours, checkpointing": partial(ours, checkpointing=True)}
BY_PART = {"sam2's training": original, "with our attention kernel": partial(original, flash=False), "ours": ours}


def _attention(arguments: argparse.Namespace, flash: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash or arguments.device == "cuda")


def _backward(model: nn.Module, loss: Tensor) -> None:
    loss.backward()
    model.zero_grad(set_to_none=True)


def _package() -> tuple[type, type]:
    """The original `SAM2Train` and its loss class."""
    empty = {"tensordict": {"tensorclass": lambda kind: kind}, "training.trainer": {"CORE_LOSS_KEY": "core_loss"}}
    for name, content in empty.items():
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(content)
    from training.loss_fns import MultiStepMultiMasksAndIous
    from training.model.sam2 import SAM2Train

    return SAM2Train, MultiStepMultiMasksAndIous
