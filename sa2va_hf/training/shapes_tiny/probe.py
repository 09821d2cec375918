"""What a model has learned so far, measured on held-out scenes after each stage of the recipe."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from ...data.shapes.scene import Options
from ...data.shapes.text import ATTRIBUTES, EXPRESSION_KINDS, FAMILIES
from ...model.losses import soft_iou
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .chats import referring_chats
from .choosing import Choosing, decode, levels_of
from .memory import Following, step_loss
from .scenes import cell_cover, draw_scenes, pixel_values
from .seen import SHOWN

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
    frames = [one.frames for one in drawn]
    tokens = [
        model.backbone.features(model.mllm, pixel_values(frames[i : i + 50], processor)) for i in range(0, scenes, 50)
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
def choosing(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, images: int = 120, objects: tuple = (1, 2, 3)
) -> dict[str, float]:
    """Mean IoU by kind of expression (teacher-forced, at the masks' own resolution), and the share of first words that
    wrongly decline or do not."""
    model.eval()
    lesson = Choosing(
        model, processor, (), pictures=images, clips=0, clip_every=0, masks=1.0, objects=objects, scenes="probe"
    )
    lesson.prepare(None)
    rng, ious, wrong = random.Random("probe"), {}, []
    for start in range(0, images, lesson.batch):
        scenes = lesson.seen[False][start : start + lesson.batch]
        chats = [referring_chats(one.scene, rng, 5, dict.fromkeys(EXPRESSION_KINDS, 1)) for one in scenes]
        rows = lesson.rows(scenes, chats)
        hidden = lesson.read(scenes, rows)
        flat = [chat for of_scene in chats for chat in of_scene]
        owners = [one for one, of_scene in zip(scenes, chats, strict=True) for _ in of_scene]
        wrong.append(float(lesson.decisions(hidden, rows, flat)[1]))
        asked = [(one, chat) for one, chat in zip(owners, flat, strict=True) if chat.targets]
        levels = levels_of([one for one, _ in asked], [0] * len(asked))
        prompts = model.project(hidden[rows.segs[:, 0], rows.segs[:, 1]])
        masks = torch.stack([one.masks[chat.targets[0], 0].amax(0) for one, chat in asked]).float()
        for (_, chat), iou in zip(asked, soft_iou(decode(model, levels, prompts).masks, masks).tolist(), strict=True):
            ious.setdefault(chat.kinds[0], []).append(iou)
    means = {kind: float(np.mean(values)) for kind, values in sorted(ious.items())}
    return means | {"wrong declines": float(np.mean(wrong))}


@torch.no_grad()
def following(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, clips: int = 24) -> dict[str, float]:
    """Mean IoU of shapes on the frames that are followed by memory: between key frames, and after the first one."""
    lesson = Following(model, processor)
    drawn = draw_scenes(random.Random("probe"), lesson.options, clips)
    found = {}
    for name, prompted in (("between key frames", list(SHOWN)), ("after the first frame", [0])):
        found[name] = float(np.mean([step_loss(*step)[1] for step in lesson.walk(drawn, prompted, random.Random(0))]))
    return found
