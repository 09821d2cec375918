"""Words about drawn scenes: every text is derived from the scene's facts, and means exactly its targets.

A `Phrase` names attributes ("small striped red circle"). Whatever depends on a place, a size or a path answers True,
False or None, and None ("a reader could take it either way") refuses the expression. The vocabulary is small on
purpose: about sixty words.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from sa2va_hf.data.schema import Expression
from sa2va_hf.data.shapes.scene import DIRECTIONS, Scene, Shape
from sa2va_hf.data.shapes.world import World

FAMILIES = {
    "size": "sizes",
    "texture": "textures",
    "colour": "colours",
    "kind": "nouns",
}  # attribute -> its vocabulary
ATTRIBUTES = tuple(FAMILIES)  # in the order they are spoken
EXPRESSION_KINDS = ("attribute", "ordinal", "relation", "several", "no_target", "motion")
PLACE_MARGIN = 0.08  # of the picture's side: places closer than this have no order
RELATION_MARGIN = 0.1
RATIO_MARGIN = 1.3  # of the radius and of the area: sizes closer than this have no order

RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign
ENDS = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
RANKS = ("first", "second", "third")
SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}


@dataclass(frozen=True)
class Phrase:
    """Attributes that a shape may have; None = not said."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    kind: str | None = None

    def words(self) -> int:
        return sum(getattr(self, name) is not None for name in ATTRIBUTES)

    def fits(self, shape: Shape) -> bool:
        return all(getattr(self, name) in (None, getattr(shape, name)) for name in ATTRIBUTES)

    def among(self, scene: Scene) -> list[int]:
        """The numbers of the shapes it fits."""
        return [i for i, shape in enumerate(scene.shapes) if self.fits(shape)]

    def text(self, world: World, many: bool = False) -> str:
        noun = self.kind or "shape"
        if many:
            noun = world.kinds[self.kind].plural if self.kind else "shapes"
        return " ".join(word for word in (self.size, self.texture, self.colour, noun) if word)


Known = dict[Phrase, list[int]]  # with the numbers of the shapes that a phrase fits


def phrase_of(shape: Shape, names: tuple[str, ...] = ATTRIBUTES) -> Phrase:
    return Phrase(**{name: getattr(shape, name) for name in names})


def phrases(scene: Scene, attributes: tuple[str, ...] = ATTRIBUTES) -> Known:
    """Every phrase that fits a shape of the scene, with all the shapes it fits."""
    subsets = [names for n in range(len(attributes) + 1) for names in itertools.combinations(attributes, n)]
    found: Known = {}
    for number, shape in enumerate(scene.shapes):
        for names in subsets:
            found.setdefault(phrase_of(shape, names), []).append(number)
    return found


# ---- facts with a margin: True, False, or None for "not clear" ----


def is_beside(shape: Shape, relation: str, anchor: Shape) -> bool | None:
    axis, sign = RELATIONS[relation]
    ahead = sign * (shape.centre[axis] - anchor.centre[axis])
    return None if abs(ahead) < RELATION_MARGIN else ahead > 0


def is_moving(shape: Shape, direction: str) -> bool | None:
    """A shape that comes back has moved both ways: not clear on its own axis."""
    if shape.motion == "return" and DIRECTIONS[direction][0] ** 2 == DIRECTIONS[shape.direction][0] ** 2:
        return None
    return shape.direction == direction


def is_still(shape: Shape) -> bool:
    return shape.motion == "still"


def is_leaving(shape: Shape) -> bool | None:
    return None if shape.motion == "return" else shape.motion == "leave"


def is_entering(shape: Shape) -> bool | None:
    return None if shape.motion == "return" else shape.motion == "enter"


def is_returning(shape: Shape) -> bool:
    return shape.motion == "return"


MOTION_WORDS: dict[str, Callable[[Shape], bool | None]] = {
    **{f"moving {d}": (lambda shape, d=d: is_moving(shape, d)) for d in DIRECTIONS},
    "that stays still": is_still,
    "that leaves the picture": is_leaving,
    "that enters the picture": is_entering,
    "that leaves and comes back": is_returning,
}


def ranked(scene: Scene, group: list[int], axis: int, sign: int, rank: int) -> int | None:
    """The shape of `group` at place `rank` (0 = first) along an axis, None when its neighbours are too near."""
    order = sorted(group, key=lambda i: sign * scene.shapes[i].centre[axis])
    places = [sign * scene.shapes[i].centre[axis] for i in order]
    near = [b - a for a, b in itertools.pairwise(places[max(0, rank - 1) : rank + 2])]
    return order[rank] if near and min(near) >= PLACE_MARGIN else None


def extreme(scene: Scene, group: list[int], largest: bool) -> int | None:
    """The largest (smallest) shape of `group` by radius and by area alike, None when another one comes near."""

    def clearly(a: Shape, b: Shape) -> bool:
        areas = scene.area(a), scene.area(b)
        return a.radius >= RATIO_MARGIN * b.radius and areas[0] >= RATIO_MARGIN * areas[1]

    for i in group:
        rest = [scene.shapes[j] for j in group if j != i]
        if all(clearly(scene.shapes[i], o) if largest else clearly(o, scene.shapes[i]) for o in rest):
            return i
    return None


# ---- expressions ----


def expressions(
    scene: Scene,
    rng: random.Random,
    kinds: tuple[str, ...] | None = None,
    attributes: tuple[str, ...] = ATTRIBUTES,
    limit: int = 12,
) -> list[Expression]:
    """Up to `limit` different expressions, the kinds in turns; none of them can be read in two ways.

    Ordinals and relations speak of places, so they are left out of clips, where places change; motion needs a clip.
    """
    clip = scene.num_frames > 1
    wanted = [k for k in (kinds or EXPRESSION_KINDS) if k not in (("ordinal", "relation") if clip else ("motion",))]
    unknown = set(wanted) - set(EXPRESSION_KINDS)
    if unknown:
        raise ValueError(f"kinds: expected some of {EXPRESSION_KINDS}, got {sorted(unknown)}")
    known = phrases(scene, attributes)
    chosen: dict[str, Expression] = {}
    makers = {**_MAKERS, "no_target": partial(_no_target, kinds=wanted, attributes=attributes)}
    queues = [makers[kind](scene, rng, known) for kind in wanted]
    while queues and len(chosen) < limit:
        for queue in list(queues):
            expression = next(queue, None)
            if expression is None:
                queues.remove(queue)
            elif len(chosen) < limit:
                chosen.setdefault(expression.text, expression)
    return list(chosen.values())


def _shuffled(rng: random.Random, items: list) -> list:
    return rng.sample(items, len(items))


def _attribute(scene: Scene, rng: random.Random, known: Known) -> Iterator[Expression]:
    """Attribute sets that fit one shape; the shapes take turns."""
    by_target: dict[int, list[Phrase]] = {}
    for phrase in _shuffled(rng, [p for p, fit in known.items() if len(fit) == 1]):
        by_target.setdefault(known[phrase][0], []).append(phrase)
    for row in itertools.islice(itertools.zip_longest(*by_target.values()), 4):
        for phrase in row:
            if phrase is not None:
                yield Expression(f"the {phrase.text(scene.world)}", known[phrase], "attribute")


def _several(scene: Scene, rng: random.Random, known: Known) -> Iterator[Expression]:
    for phrase in _shuffled(rng, [p for p, fit in known.items() if len(fit) > 1])[:3]:
        article = rng.choice(("the", "all the"))
        yield Expression(f"{article} {phrase.text(scene.world, many=True)}", known[phrase], "several")
    single = [p for p, fit in known.items() if len(fit) == 1 and 0 < p.words() <= 2]
    for _ in range(2 if len(single) > 1 else 0):
        first, second = rng.sample(single, 2)
        if known[first] != known[second]:
            text = f"the {first.text(scene.world)} and the {second.text(scene.world)}"
            yield Expression(text, sorted(known[first] + known[second]), "several")


def _ordinal(scene: Scene, rng: random.Random, known: Known) -> Iterator[Expression]:
    groups = [p for p, fit in known.items() if len(fit) > 1 and p.words() <= 2]
    for _ in range(8 if groups else 0):
        phrase = rng.choice(groups)
        group, noun = known[phrase], phrase.text(scene.world)
        form = rng.randrange(3)
        if form == 0:
            word = rng.choice(tuple(ENDS))
            target, text = ranked(scene, group, *ENDS[word], 0), f"the {word} {noun}"
        elif form == 1:
            rank = rng.randrange(min(len(RANKS), len(group)))
            side = rng.choice(tuple(SIDES))
            target, text = ranked(scene, group, *SIDES[side], rank), f"the {RANKS[rank]} {noun} from the {side}"
        else:
            word = rng.choice(("largest", "smallest"))
            target, text = extreme(scene, group, word == "largest"), f"the {word} {noun}"
        if target is not None:
            yield Expression(text, [target], "ordinal")


def _relations(scene: Scene, rng: random.Random, known: Known, tries: int) -> Iterator[tuple[str, list[int], bool]]:
    """Clear relations: text, the shapes they fit, and whether the noun alone would not have told as much."""
    anchors = [p for p, fit in known.items() if len(fit) == 1 and 0 < p.words() <= 2]
    nouns = [p for p in known if p.words() <= 2]
    for _ in range(tries if anchors and len(scene.shapes) > 1 else 0):
        anchor, phrase, relation = rng.choice(anchors), rng.choice(nouns), rng.choice(tuple(RELATIONS))
        number = known[anchor][0]
        others = [i for i in known[phrase] if i != number]
        answers = [is_beside(scene.shapes[i], relation, scene.shapes[number]) for i in others]
        if others and None not in answers:
            targets = [i for i, answer in zip(others, answers, strict=True) if answer]
            text = f"the {phrase.text(scene.world)} {relation} the {anchor.text(scene.world)}"
            yield text, targets, len(known[phrase]) > 1


def _relation(scene: Scene, rng: random.Random, known: Known) -> Iterator[Expression]:
    found = [(text, t, needed) for text, t, needed in _relations(scene, rng, known, 24) if len(t) == 1]
    found.sort(key=lambda item: not item[2])  # the telling ones first
    for text, targets, _ in found[:4]:
        yield Expression(text, targets, "relation")


def _motion(scene: Scene, rng: random.Random, known: Known) -> Iterator[Expression]:
    for phrase in _shuffled(rng, [p for p in known if p.words() <= 1]):
        for words in _shuffled(rng, list(MOTION_WORDS))[:4]:
            answers = [MOTION_WORDS[words](scene.shapes[i]) for i in known[phrase]]
            targets = [i for i, answer in zip(known[phrase], answers, strict=True) if answer]
            if None in answers or not targets:
                continue
            if len(targets) == 1:
                yield Expression(f"the {phrase.text(scene.world)} {words}", targets, "motion")
            elif words.startswith("moving"):
                yield Expression(f"the {phrase.text(scene.world, many=True)} {words}", targets, "motion")


def _no_target(
    scene: Scene, rng: random.Random, known: Known, kinds: list[str], attributes: tuple[str, ...]
) -> Iterator[Expression]:
    """Near misses: a phrase of the scene with one word exchanged, and relations and motions (where those kinds are
    wanted) that nothing here has."""
    yield from itertools.islice(_missing(scene, rng, attributes), 2)
    if "motion" in kinds:
        for words in _shuffled(rng, list(MOTION_WORDS))[:2]:
            if all(MOTION_WORDS[words](shape) is False for shape in scene.shapes):
                yield Expression(f"the shape {words}", [], "no_target")
    if "relation" in kinds:
        empty = (text for text, targets, _ in _relations(scene, rng, known, 6) if not targets)
        yield from (Expression(text, [], "no_target") for text in itertools.islice(empty, 1))


def _missing(scene: Scene, rng: random.Random, attributes: tuple[str, ...]) -> Iterator[Expression]:
    for _ in range(6):
        names = tuple(a for a in attributes if rng.random() < 0.5) or (rng.choice(attributes),)
        name = rng.choice(names)
        phrase = phrase_of(rng.choice(scene.shapes), names)
        phrase = replace(phrase, **{name: rng.choice(scene.options.words(FAMILIES[name]))})
        if not phrase.among(scene):
            text = phrase.text(scene.world, many=rng.random() < 0.2)
            yield Expression(f"the {text}", [], "no_target")


_MAKERS = {
    "attribute": _attribute,
    "ordinal": _ordinal,
    "relation": _relation,
    "several": _several,
    "motion": _motion,
}
