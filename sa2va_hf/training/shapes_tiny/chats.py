"""Drawn scenes as conversations: several questions about one picture or clip, and which shapes each [SEG] means."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ...data.prompts.templates import referring_turn
from ...data.shapes.dialogue import DIALOGUES
from ...data.shapes.scene import MIN_VISIBLE
from ...data.shapes.text import expressions
from .scenes import Drawn

# How often each kind of expression is asked: what has to be compared or denied more often than what is named.
WEIGHTS = {"attribute": 2, "several": 2, "ordinal": 3, "relation": 3, "no_target": 3, "motion": 3}


@dataclass
class Chat:
    """messages: as the processor takes them. targets: per [SEG] the indices of the shapes it means. kinds: per turn
    the kind of expression, or the task. frames: indices of the frames that are shown."""

    messages: list[dict[str, Any]]
    targets: list[list[int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    frames: list[int] = field(default_factory=lambda: [0])


def make_chat(
    drawn: Drawn,
    rng: random.Random,
    turns: int,
    dialogues: float,
    frames: list[int],
    marks_cell: Callable[[np.ndarray], bool],
    weights: dict[str, float] = WEIGHTS,
) -> Chat:
    """A conversation about one scene: up to `turns` expressions, or with chance `dialogues` one of the other tasks.

    frames: those that are shown. marks_cell: whether a mask is large enough to be a region of the model's grid.
    """
    if rng.random() < dialogues:
        chat = _dialogue(drawn, rng, frames, marks_cell)
        if chat is not None:
            return chat
    words = np.random.default_rng(rng.getrandbits(32))
    found = expressions(drawn.scene, rng, tuple(weights), limit=24)
    keys = {id(e): rng.random() ** (1 / weights[e.kind]) for e in found}  # weighted sample without replacement
    chosen = sorted(found, key=lambda e: -keys[id(e)])[:turns]
    rng.shuffle(chosen)
    chat = Chat([], frames=frames)
    for expression in chosen:
        question, answer = referring_turn(expression.text, bool(expression.targets), words)
        _add_turn(chat, drawn, question, answer)
        chat.kinds.append(expression.kind)
        chat.targets += [expression.targets] if expression.targets else []
    return chat


def _dialogue(
    drawn: Drawn, rng: random.Random, frames: list[int], marks_cell: Callable[[np.ndarray], bool]
) -> Chat | None:
    clip = len(frames) > 1
    task = rng.choice([name for name in DIALOGUES if not (clip and name == "region_caption")])
    visible = [i for i, of_shape in enumerate(drawn.masks) if np.count_nonzero(of_shape[0]) >= MIN_VISIBLE]
    if task == "region_caption":  # a thin bar may lie between the cells that a region is marked on
        visible = [i for i in visible if marks_cell(drawn.masks[i][0])]
    made = DIALOGUES[task](drawn.scene, rng, visible)
    if made is None:
        return None
    chat, (turns, regions) = Chat([], frames=frames), made
    for turn in turns:
        _add_turn(chat, drawn, turn.question, turn.answer, regions)
        chat.targets += turn.targets or []
        chat.kinds.append(task)
    return chat


def _add_turn(chat: Chat, drawn: Drawn, question: str, answer: str, regions: list[int] | None = None) -> None:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if not chat.messages:
        pictures = [Image.fromarray(drawn.frames[frame]) for frame in chat.frames]
        clip = len(pictures) > 1
        shown = {"type": "video", "video": pictures} if clip else {"type": "image", "image": pictures[0]}
        content = [shown, *({"type": "region", "mask": drawn.masks[i][0]} for i in regions or []), *content]
    chat.messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
