"""Phrases that say where an object is, made from nothing but masks: "the second dog from the left".

    absolute    the N-th from the left or right, among all objects or those of a category
    relative    the N-th to the left or right of another object, named by its category where it is the only one of it,
                else by its box ("the one at [67, 314, 177, 658]", see boxes.PLAIN)
    switch      the leftmost or rightmost, where that is not the same object throughout the clip. It means one object
                for each identity: where it is meant its mask, elsewhere an empty one
    no_target   the N-th from the left or right where there are N - 1 at most: it means nothing

What counts is the middle of an object's box. A phrase is made only of frames on which it is clear: every object that
could matter is annotated or known to be absent and lies `margin` of the picture's width away, the middles of objects
that are ordered or counted lie outside each other's width, and they are not parts of each other. Its mask is given on
those frames alone and is not known (None) on the others.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sa2va_hf import masks
from sa2va_hf.boxes import PLAIN, box_iou, write
from sa2va_hf.data.schema import Expression, Object, Sample

KINDS = ("absolute", "relative", "switch")
SIDES = ("left", "right")

MARGIN = 0.05  # of the picture's width
MIN_FRAMES = 5  # that a phrase of a clip is clear on, as many as training takes; all of a clip that has fewer
MAX_RANK = 5  # who counts further?
WINDOWS = ("longest", "first", "random")  # which of the runs of frames on which a phrase is clear it is given for
SAME_PLACE = 0.5  # IoU with a box from which on the box names the object

_WORDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def ordinal(number: int) -> str:
    """1 -> "first", 11 -> "11th", 22 -> "22nd"."""
    if number <= len(_WORDS):
        return _WORDS[number - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def absolute_phrase(rank: int, side: str, noun: str = "object") -> str:
    return f"the {ordinal(rank)} {noun} from the {side}"


def relative_phrase(rank: int, side: str, reference: str, noun: str = "object") -> str:
    """reference: how the other object is called, with its article."""
    return f"the {ordinal(rank)} {noun} to the {side} of {reference}"


def extreme_phrase(side: str, noun: str = "object") -> str:
    return f"the {side}most {noun}"


def box_name(box: Sequence[float], width: int, height: int) -> str:
    """How an object without a name of its own is called. box: in pixels."""
    return f"the one at {write([[box]], width, height, PLAIN)}"


@dataclass(frozen=True)
class Relation:
    """A phrase and, per annotated frame, the object (by index) that it means; None where that is not clear."""

    text: str
    kind: str
    side: str
    meant: tuple[int | None, ...]
    rank: int = 1
    noun: str = "object"
    reference: int | None = None


def relate(
    sample: Sample,
    kinds: Sequence[str] = KINDS,
    per_clip: int = 8,
    margin: float = MARGIN,
    window: str = WINDOWS[0],
    negatives: int = 0,
) -> Sample | None:
    """The sample with relations as its only expressions, at most per_clip; None when none is clear.

    They are sampled by the sample's id, as many of each kind as possible. Objects are those that are meant, with the
    frames on which they are; annotated are the frames on which any is.

    Args:
        window: which run of frames a phrase of one object is given for, one of `WINDOWS`.
        negatives: phrases beside these that mean nothing, at most. They are true where every object that counts is
            annotated.
    """
    seed = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8], "big")
    found = find_relations(sample, kinds, margin, np.random.default_rng(seed), window)
    chosen = _select(found, kinds, per_clip)
    if not chosen:
        return None
    kept = [at for at in range(len(sample.annotated)) if any(one.meant[at] is not None for one in chosen)]
    index_of: dict[tuple[int, tuple[int | None, ...]], int] = {}
    expressions = []
    for one in chosen:
        identities = dict.fromkeys(who for who in one.meant if who is not None)
        targets = [index_of.setdefault((who, one.meant), len(index_of)) for who in identities]
        expressions.append(Expression(one.text, targets, one.kind))
    rng, places = np.random.default_rng(seed), _Places(sample, margin)
    absent = _none_there(sample, places, kept, rng, negatives) if negatives else []
    return replace(
        sample,
        annotated=[sample.annotated[at] for at in kept],
        objects=[_composed(sample, who, [meant[at] for at in kept], kept) for who, meant in index_of],
        expressions=expressions + [Expression(text, [], "no_target") for text in absent],
        turns=[],
        regions=[],
        ignore=[sample.ignore[at] for at in kept] if sample.ignore else [],
    )


def _select(found: dict[str, Iterator[Relation]], kinds: Sequence[str], count: int) -> list[Relation]:
    """The first of each kind in turn; no text twice: it could mean another object on other frames."""
    chosen: dict[str, Relation] = {}
    waiting = list(kinds)
    while waiting and len(chosen) < count:
        kind = waiting.pop(0)
        relation = next((one for one in found[kind] if one.text not in chosen), None)
        if relation is not None:
            chosen[relation.text] = relation
            waiting.append(kind)
    return list(chosen.values())


def _composed(sample: Sample, who: int, meant: Sequence[int | None], frames: Sequence[int]) -> Object:
    """An object on the frames on which it is meant; where another one is meant it counts as absent."""
    empty = masks.empty(sample.height, sample.width)
    rles = [
        None if one is None else sample.objects[who].masks[at] if one == who else empty
        for one, at in zip(meant, frames, strict=True)
    ]
    boxes = [None if rle is None else masks.rle_to_box(rle) for rle in rles]
    return Object(rles, boxes, sample.objects[who].category)


def _none_there(
    sample: Sample, places: "_Places", frames: Sequence[int], rng: np.random.Generator, count: int
) -> list[str]:
    """Phrases of a rank just above the number of objects, which is clear on all of these frames."""
    touching = places.touching[:, :, frames].any(-1)
    rles = [[thing.masks[at] for at in frames] for thing in sample.objects]
    known = np.array([[rle is not None for rle in of_thing] for of_thing in rles], bool)
    there = np.array([[rle is not None and masks.area(rle) > 0 for rle in of_thing] for of_thing in rles], bool)
    texts = [
        absolute_phrase(int(there[pool].sum(0).max()) + 1, side, noun)
        for noun, pool in _pools(sample).items()
        if known[pool].all() and not any(touching[pair] for pair in itertools.combinations(pool, 2))
        for side in SIDES
    ]
    return [texts[number] for number in rng.permutation(len(texts))[:count].tolist()]


# ---------------------------------------------------------------- what can be said


def find_relations(
    sample: Sample, kinds: Sequence[str], margin: float, rng: np.random.Generator, window: str = WINDOWS[0]
) -> dict[str, Iterator[Relation]]:
    """All relations of each kind in random order, found one by one as they are asked for."""
    places = _Places(sample, margin)
    pools = _pools(sample)
    members = [(noun, target) for noun, pool in pools.items() for target in pool]
    asked = {
        "absolute": [(noun, target, None, side) for noun, target in members for side in SIDES],
        "relative": [
            (noun, target, reference, side)
            for noun, target in members
            for reference in range(len(sample.objects))
            if reference != target
            for side in SIDES
        ],
        "switch": [(noun, None, None, side) for noun in pools for side in SIDES],
    }

    def find(kind: str) -> Iterator[Relation]:
        for number in rng.permutation(len(asked[kind])).tolist():
            noun, target, reference, side = asked[kind][number]
            if kind == "switch":
                relation = _switch(places, noun, pools[noun], side)
            else:
                choose = partial(choose_run, window=window, rng=rng, least=places.long_enough)
                relation = _ranked(sample, places, noun, pools[noun], target, reference, side, choose)
            if relation is not None:
                yield relation

    return {kind: find(kind) for kind in kinds}


def _pools(sample: Sample) -> dict[str, list[int]]:
    """noun -> the objects it can mean, two at least. Categories count where every object has one."""
    everything = list(range(len(sample.objects)))
    names = [thing.category for thing in sample.objects]
    pools = {name: [n for n in everything if names[n] == name] for name in names if name} if all(names) else {}
    pools = {name: pool for name, pool in pools.items() if len(pool) > 1}
    return pools if everything in pools.values() else pools | {"object": everything}


class _Places:
    """Where the objects are. x: middles of their boxes in pixels, NaN where absent or not known: (objects, frames)."""

    def __init__(self, sample: Sample, margin: float):
        things = sample.objects
        self.boxes = [[None if rle is None else masks.rle_to_box(rle) for rle in thing.masks] for thing in things]
        shape = (len(things), len(sample.annotated))
        corners = [[[np.nan] * 4 if box is None else box for box in of_thing] for of_thing in self.boxes]
        x0, y0, x1, y1 = np.moveaxis(np.array(corners, dtype=np.float64).reshape(*shape, 4), -1, 0)
        self.x, self.y = (x0 + x1) / 2, (y0 + y1) / 2
        self.half_width, self.half_height = np.nan_to_num((x1 - x0) / 2), np.nan_to_num((y1 - y0) / 2)
        self.known = np.array([[rle is not None for rle in thing.masks] for thing in things], bool).reshape(shape)
        self.margin = margin * sample.width
        self.touching = self._touching()
        self.long_enough = min(MIN_FRAMES, len(sample.annotated))

    def ranks(self, pool: Sequence[int], target: int, side: str, reference: int | None = None) -> np.ndarray:
        """Which of the pool the target is on each frame, from a side or to a side of the reference; 0: not clear."""
        others = [thing for thing in pool if thing not in (target, reference)]
        named = [target] if reference is None else [target, reference]
        clear = self.known[[*others, *named]].all(axis=0) & ~np.isnan(self.x[named]).any(axis=0)
        gaps = self.x[others] - self.x[target]  # NaN: it is absent and neither in the way nor counted
        clear &= ~self.touching[target, others].any(axis=0)
        sign = 1 if side == "left" else -1
        if reference is None:
            clear &= ~np.isnan(gaps).all(axis=0)  # the first of one is nothing to say
            return self._ranked(clear, others, sign * gaps < 0)
        away = -sign * (self.x[target] - self.x[reference])  # how far to that side
        others_away = -sign * (self.x[others] - self.x[reference])
        beside = np.maximum(self.margin, self.half_width[reference])
        clear &= (
            (away >= beside) & ~(np.abs(others_away) < self.margin).any(axis=0) & ~self.touching[target, reference]
        )
        return self._ranked(clear, others, (others_away > 0) & (others_away < away))

    def _ranked(self, clear: np.ndarray, others: Sequence[int], before: np.ndarray) -> np.ndarray:
        """1 + how many others come before, where it is clear: where those that are counted do not touch.

        clear: (frames,). before: which of the others come before, (others, frames).
        """
        for one, other in itertools.combinations(range(len(others)), 2):
            clear = clear & ~(before[one] & before[other] & self.touching[others[one], others[other]])
        return np.where(clear, 1 + before.sum(axis=0), 0)

    def _touching(self) -> np.ndarray:
        """Which objects have no order on a frame: the middle of one lies within the width of the other, or nearer than
        the margin, or so it is, in height too, on most frames that both are on: a rider and the horse, a person and an
        arm. bool (objects, objects, frames).
        """
        gap = np.abs(self.x[:, None] - self.x[None])
        reach = np.maximum(self.half_width[:, None], self.half_width[None])
        both = ~np.isnan(gap)
        beside = both & (gap < np.maximum(reach, self.margin))
        tall = np.abs(self.y[:, None] - self.y[None]) < np.maximum(self.half_height[:, None], self.half_height[None])
        attached = 2 * (both & (gap < reach) & tall).sum(-1) > both.sum(-1)
        return beside | (both & attached[..., None])

    def box_names(self, thing: int, first: int, frame: int) -> bool:
        """Whether the object's box on `first` means it, and no other object, on `frame`."""
        box = self.boxes[thing][first]
        near = [
            number
            for number, of_thing in enumerate(self.boxes)
            if of_thing[frame] is not None and box_iou(box, of_thing[frame]) >= SAME_PLACE
        ]
        return near == [thing]


def _ranked(
    sample: Sample,
    places: _Places,
    noun: str,
    pool: list[int],
    target: int,
    reference: int | None,
    side: str,
    choose: Callable[..., range],
) -> Relation | None:
    """That the target is the N-th from the side, or to that side of the reference, in a run of frames."""
    ranks = places.ranks(pool, target, side, reference)
    ranks[ranks > MAX_RANK] = 0
    names = [thing.category for thing in sample.objects]
    own_name = reference is not None and all(names) and names.count(names[reference]) == 1
    by_box = reference is not None and not own_name
    window = choose(ranks, (lambda first, at: places.box_names(reference, first, at)) if by_box else None)
    if not window:
        return None
    rank = int(ranks[window[0]])
    meant = tuple(target if at in window else None for at in range(len(ranks)))
    if reference is None:
        return Relation(absolute_phrase(rank, side, noun), "absolute", side, meant, rank, noun)
    box = places.boxes[reference][window[0]]
    called = f"the {names[reference]}" if own_name else box_name(box, sample.width, sample.height)
    return Relation(relative_phrase(rank, side, called, noun), "relative", side, meant, rank, noun, reference)


def _switch(places: _Places, noun: str, pool: list[int], side: str) -> Relation | None:
    """The outermost object of the pool on every frame on which that is clear, when it is not always the same."""
    first = np.stack([places.ranks(pool, target, side) == 1 for target in pool])  # (pool, frames): at most one each
    meant = tuple(pool[int(column.argmax())] if column.any() else None for column in first.T)
    known = [who for who in meant if who is not None]
    if len(known) < places.long_enough or len(set(known)) < 2:
        return None
    return Relation(extreme_phrase(side, noun), "switch", side, meant, 1, noun)


def runs(values: np.ndarray, holds: Callable[[int, int], bool] | None = None) -> Iterator[range]:
    """The runs of one value other than 0, in order.

    holds: whether a run from one frame may reach to another.
    """
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] != 0 and (holds is None or holds(start, end)):
            end += 1
        if end > start:
            yield range(start, end)
        start = max(end, start + 1)


def choose_run(
    values: np.ndarray,
    holds: Callable[[int, int], bool] | None = None,
    *,
    window: str = WINDOWS[0],
    rng: np.random.Generator | None = None,
    least: int = 1,
) -> range:
    """One of the runs of at least `least` frames; an empty range where there is none.

    window: the longest (of several the first), the first, or a random one.
    """
    found = [run for run in runs(values, holds) if len(run) >= least]
    if not found:
        return range(0)
    if window == "longest":
        return max(found, key=len)
    return found[0 if window == "first" else int(rng.integers(len(found)))]
