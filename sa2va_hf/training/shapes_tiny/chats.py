"""Drawn scenes as conversations: questions, answers, and which shapes each [SEG] means."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...data.prompts.templates import referring_turn
from ...data.schema import Expression
from ...data.shapes.dialogue import DIALOGUES
from ...data.shapes.scene import Scene
from ...data.shapes.text import ATTRIBUTES, FAMILIES, MOTION_WORDS, RANKS, RELATIONS, SIDES, Phrase, expressions

# How often each kind of expression is asked: what has to be compared or denied more often than what is named.
WEIGHTS = {"attribute": 2, "several": 2, "ordinal": 3, "relation": 3, "no_target": 3, "motion": 3}
NAMING = ("attribute", "several")  # the target is told by attributes alone


@dataclass
class Chat:
    """turns: (question, answer). kinds: per turn the kind of expression, or the task. targets: per [SEG] the indices
    of the shapes it means. groups: per turn those that the attributes in front fit, of which an order or a relation
    selects the target; None for another task. chains: per turn what is found one after another on the way to the
    target (`chain_of`), None for another task. regions: indices of the shapes that are marked in the image."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    groups: list[list[int] | None] = field(default_factory=list)
    chains: list[list[list[int]] | None] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)


def referring_chats(scene: Scene, rng: random.Random, count: int, weights: dict[str, float]) -> list[Chat]:
    """Up to `count` conversations about one scene, of one expression each."""
    words = np.random.default_rng(rng.getrandbits(32))
    found = expressions(scene, rng, tuple(weights), limit=24)
    keys = {id(e): rng.random() ** (1 / weights[e.kind]) for e in found}  # weighted sample without replacement
    chats = []
    for expression in sorted(found, key=lambda e: -keys[id(e)])[:count]:
        turn = referring_turn(expression.text, bool(expression.targets), words)
        targets = [expression.targets] if expression.targets else []
        group, chain = group_of(scene, expression), chain_of(scene, expression)
        chats.append(Chat([turn], [expression.kind], targets, [group], [chain]))
    return chats


def joined(chats: list[Chat]) -> Chat:
    """One conversation of several turns."""
    return Chat(
        [turn for chat in chats for turn in chat.turns],
        [kind for chat in chats for kind in chat.kinds],
        [target for chat in chats for target in chat.targets],
        [group for chat in chats for group in chat.groups],
        [chain for chat in chats for chain in chat.chains],
    )


def dialogue_chat(scene: Scene, rng: random.Random, marks_cell: Callable[[int], bool]) -> Chat | None:
    """A conversation of one of the other tasks; None where the scene has nothing for it.

    marks_cell: whether a shape is large enough to be a region of the model's grid.
    """
    clip = scene.num_frames > 1
    task = rng.choice([name for name in DIALOGUES if not (clip and name == "region_caption")])
    visible = list(range(len(scene.shapes)))
    made = DIALOGUES[task](scene, rng, [i for i in visible if task != "region_caption" or marks_cell(i)])
    if made is None:
        return None
    turns, regions = made
    targets = [target for turn in turns for target in turn.targets or []]
    chat = Chat(targets=targets, regions=regions)
    for turn in turns:
        chat.turns.append((turn.question, turn.answer))
        chat.kinds.append(task)
        chat.groups.append(None)
        chat.chains.append(None)
    return chat


_TAILS = re.compile("|".join(f" {words} " for words in RELATIONS) + "|" + "|".join(f" {w}$" for w in MOTION_WORDS))
_RANKED = re.compile(rf"({'|'.join(RANKS)}) .* from the ({'|'.join(SIDES)})$")


def group_of(scene: Scene, expression: Expression) -> list[int]:
    """Indices of the shapes that the attributes of an expression fit, whatever it says of order, place or motion."""
    if expression.kind == "several":
        return expression.targets
    return _said(scene, _TAILS.split(expression.text)[0]).among(scene)


def chain_of(scene: Scene, expression: Expression) -> list[list[int]]:
    """What is found one after another: of a relation the shape that it is a relation to, of "the third from the left"
    the first and the second; then the target.

    No single comparison of a phrase with a shape tells the second of three from the third.
    """
    if expression.kind == "relation":
        return [_said(scene, _TAILS.split(expression.text)[1]).among(scene), expression.targets]
    if found := _RANKED.search(expression.text):
        axis, sign = SIDES[found[2]]
        order = sorted(group_of(scene, expression), key=lambda i: sign * scene.shapes[i].centre[axis])
        return [[i] for i in order[: RANKS.index(found[1]) + 1]]
    return [expression.targets]


def _said(scene: Scene, text: str) -> Phrase:
    """The attributes that a text names."""
    singular = {kind.plural: name for name, kind in scene.world.kinds.items()}
    said = [singular.get(word, word) for word in text.split()]
    return Phrase(
        **{n: next((word for word in said if word in scene.options.words(FAMILIES[n])), None) for n in ATTRIBUTES}
    )
