"""What a model has learned so far, measured on held-out scenes after each stage of the recipe."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from ...data.shapes.scene import Options
from ...data.shapes.text import ATTRIBUTES, FAMILIES
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .memory import Following, step_loss
from .referring import SHOWN, Referring
from .scenes import cell_cover, draw_scenes, pixel_values

RIDGE = 1e-2


@torch.no_grad()
def sight(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, scenes: int = 300, objects: tuple = (4, 8)
) -> dict[str, float]:
    """Share of the shapes whose attributes a linear classifier reads off the token under their largest part.

    The classifier is least squares on three quarters of the scenes; the share is of the others.
    """
    drawn = draw_scenes(random.Random("probe"), Options(min_objects=objects[0], max_objects=objects[1]), scenes)
    grid = processor.pictures.region_grid
    tokens = [
        model.backbone.features(model.mllm, pixel_values(drawn[i : i + 50], processor)) for i in range(0, scenes, 50)
    ]
    tokens = torch.cat(tokens).view(scenes, grid * grid, -1).float()
    rows, shapes, held_out = [], [], []
    for number, one in enumerate(drawn):
        for cell, shape in zip(cell_cover(one.masks[:, 0], grid).argmax(1), one.scene.shapes, strict=True):
            rows.append(tokens[number, cell])
            shapes.append(shape)
            held_out.append(number >= 0.75 * scenes)
    inputs, test = torch.stack(rows), torch.tensor(held_out)
    shares = {}
    for name in ATTRIBUTES:
        words = list(Options().words(FAMILIES[name]))
        index = torch.tensor([words.index(getattr(shape, name)) for shape in shapes])
        shares[name] = _linear_accuracy(inputs, index, test)
    return shares


def _linear_accuracy(inputs: Tensor, index: Tensor, test: Tensor) -> float:
    inputs = (inputs - inputs[~test].mean(0)) / (inputs[~test].std(0) + 1e-6)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    wanted = torch.nn.functional.one_hot(index).double()
    train, regular = inputs[~test], RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(train.T @ train + regular, train.T @ wanted[~test])
    return (inputs[test] @ weights).argmax(1).eq(index[test]).double().mean().item()


@torch.no_grad()
def referring(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, images: int = 128, objects: tuple = (1, 2, 3)
) -> dict[str, float]:
    """Mean IoU by kind of expression (teacher-forced), and the share of first words that wrongly decline or do not."""
    lesson = Referring(model, processor, train=(), masks=1.0, batch=32, dialogues=0.0, objects=objects)
    rng, ious, wrong = random.Random("probe"), {}, []
    for _ in range(images // lesson.batch):
        drawn, chats = lesson.lesson_of(rng, clip=False)
        inputs = lesson.encode(chats)
        masks, hidden = lesson.predict(inputs)
        wrong.append(float(lesson.decisions(hidden, inputs["labels"], chats)[1]))
        for one, chat, of_chat in zip(drawn, chats, masks, strict=True):
            kinds = [kind for kind in chat.kinds if kind != "no_target"]
            for kind, targets, mask in zip(kinds, chat.targets, of_chat, strict=True):
                ious.setdefault(kind, []).append(_iou(mask[0], one.masks[targets, 0].any(0)))
    means = {kind: float(np.mean(values)) for kind, values in sorted(ious.items())}
    return means | {"wrong declines": float(np.mean(wrong))}


def _iou(logits: Tensor, target: np.ndarray) -> float:
    """IoU of a mask of logits (h, w) with a target (H, W), at the target's size."""
    large = torch.nn.functional.interpolate(logits[None, None], target.shape, mode="bilinear", align_corners=False)
    drawn = (large[0, 0] > 0).numpy()
    return np.count_nonzero(drawn & target) / max(1, np.count_nonzero(drawn | target))


@torch.no_grad()
def following(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, clips: int = 24) -> dict[str, float]:
    """Mean IoU of shapes on the frames that are followed by memory: between key frames, and after the first one."""
    lesson = Following(model, processor)
    drawn = draw_scenes(random.Random("probe"), lesson.options, clips)
    found = {}
    for name, prompted in (("between key frames", list(SHOWN)), ("after the first frame", [0])):
        found[name] = float(np.mean([step_loss(*step)[1] for step in lesson.walk(drawn, prompted, random.Random(0))]))
    return found
