"""Fixed dialogues about drawn scenes: region captions, questions, grounded captions, conversations with a mask."""

import random
from collections.abc import Callable
from dataclasses import replace

from sa2va_hf.data.prompts.templates import GCG_QUESTIONS, REGION_QUESTIONS
from sa2va_hf.data.schema import Turn
from sa2va_hf.data.shapes.scene import Scene, Shape
from sa2va_hf.data.shapes.text import FAMILIES, MOTION_WORDS, RELATIONS, Phrase, is_beside, phrase_of, phrases
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

Dialogue = tuple[list[Turn], list[int]]  # turns, numbers of the shapes given as regions

NUMBERS = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
ATTRIBUTE_QUESTIONS = {
    "colour": "What colour is {it}?",
    "kind": "What kind of shape is {it}?",
    "texture": "Is {it} {textures}?",
}


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def full_name(scene: Scene, shape: Shape) -> str:
    """All four attributes: "a small striped red circle"."""
    return with_article(phrase_of(shape).text(scene.world))


def how_it_moves(shape: Shape) -> str:
    """How a shape of a clip moves, in the words that expressions use."""
    if shape.motion == "move":
        return f"moving {shape.direction}"
    return next(words for words, holds in MOTION_WORDS.items() if words.startswith("that") and holds(shape))


def region_caption(scene: Scene, rng: random.Random, visible: list[int]) -> Dialogue | None:
    """One shape, given as a mask on the first frame -> its full name (and how it moves)."""
    if not visible:
        return None
    number = rng.choice(visible)
    caption = full_name(scene, scene.shapes[number]).capitalize()
    if scene.num_frames > 1:
        caption += f" {how_it_moves(scene.shapes[number])}"
    return [Turn(rng.choice(REGION_QUESTIONS).replace("{n}", "1"), f"{caption}.")], [number]


def question(scene: Scene, rng: random.Random, visible: list[int]) -> Dialogue:
    """One to three questions whose answers are facts of the scene."""
    makers = rng.sample((_how_many, _is_there, _which_attribute), rng.randint(1, 3))
    turns = [maker(scene, rng) for maker in makers]
    return [turn for turn in turns if turn is not None] or [_how_many(scene, rng)], []


def _how_many(scene: Scene, rng: random.Random) -> Turn:
    phrase = rng.choice([p for p in phrases(scene) if p.words() <= 2])
    if rng.random() < 0.25:
        phrase = _exchanged(scene, rng, phrase)
    number = len(phrase.among(scene))
    return Turn(f"How many {phrase.text(scene.world, many=True)} are there?", f"{NUMBERS[number]}.")


def _is_there(scene: Scene, rng: random.Random) -> Turn:
    phrase = rng.choice([p for p in phrases(scene) if 0 < p.words() <= 3])
    if rng.random() < 0.75:  # some exchanges hit a shape again: about as many no as yes
        phrase = _exchanged(scene, rng, phrase)
    answer = "Yes." if phrase.among(scene) else "No."
    return Turn(f"Is there {with_article(phrase.text(scene.world))}?", answer)


def _exchanged(scene: Scene, rng: random.Random, phrase: Phrase) -> Phrase:
    """The phrase with one of its words exchanged for any word of that family; "shape" for a noun."""
    name = rng.choice([n for n in FAMILIES if getattr(phrase, n)] or ["kind"])
    return replace(phrase, **{name: rng.choice(scene.options.words(FAMILIES[name]))})


def _which_attribute(scene: Scene, rng: random.Random) -> Turn | None:
    """The colour, kind or texture of a shape that is named without it."""
    asked = _attribute_turn(scene, rng)
    return asked and asked[0]


def _attribute_turn(scene: Scene, rng: random.Random) -> tuple[Turn, int] | None:
    """The question and the shape it is about; None when no shape can be singled out without the answer."""
    one_texture = len(scene.options.words("textures")) == 1
    name = rng.choice([n for n in ATTRIBUTE_QUESTIONS if not (n == "texture" and one_texture)])
    known = phrases(scene)
    few = [p for p in known if len(known[p]) == 1 and 0 < p.words() <= 3 and getattr(p, name) is None]
    if not few:
        return None
    phrase = rng.choice(few)
    number = known[phrase][0]
    textures = " or ".join(scene.options.words("textures"))
    text = ATTRIBUTE_QUESTIONS[name].format(it=f"the {phrase.text(scene.world)}", textures=textures)
    value = getattr(scene.shapes[number], name)
    answer = with_article(value) if name == "kind" else value
    return Turn(text, f"{answer.capitalize()}."), number


def grounded_caption(scene: Scene, rng: random.Random, visible: list[int]) -> Dialogue | None:
    """One sentence that names up to three shapes of the first frame, each with its mask.

    In a picture the first two are tied by a relation where one is clear, in a clip each says how it moves.
    """
    if not visible:
        return None
    named = rng.sample(visible, min(len(visible), rng.randint(1, 3)))
    parts = [f"<p> {full_name(scene, scene.shapes[i])} </p> {SEG_TOKEN}" for i in named]
    if scene.num_frames > 1:
        parts = [f"{part} {how_it_moves(scene.shapes[i])}" for part, i in zip(parts, named, strict=True)]
    elif len(named) > 1:
        first, second = (scene.shapes[i] for i in named[:2])
        clear = [relation for relation in RELATIONS if is_beside(first, relation, second)]
        if clear:
            parts[:2] = [f"{parts[0]} {rng.choice(clear)} {parts[1]}"]
    return [Turn(rng.choice(GCG_QUESTIONS), f"{' and '.join(parts)}.", [[i] for i in named])], []


def conversation(scene: Scene, rng: random.Random, visible: list[int]) -> Dialogue | None:
    """A question about one shape, then "it" is segmented: which mask is meant stands in the turn before."""
    asked = _attribute_turn(scene, rng)
    if asked is None:
        return None
    turn, number = asked
    return [turn, Turn("Can you segment it?", f"Sure, {SEG_TOKEN}.", [[number]])], []


DIALOGUES: dict[str, Callable[[Scene, random.Random, list[int]], Dialogue | None]] = {
    "region_caption": region_caption,
    "question": question,
    "grounded_caption": grounded_caption,
    "conversation": conversation,
}
