"""Relations: every phrase is true on every frame it is given for, and a mirror swaps left and right.

Run: pytest tests/data/test_relations.py
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from sa2va_hf import boxes, masks
from sa2va_hf.data.relations import KINDS, MAX_RANK, MIN_FRAMES, choose_run, find_relations, ordinal, relate, runs
from sa2va_hf.data.schema import Expression, Object, Sample, validate

WIDTH, HEIGHT = 100, 20
ALL = 10_000  # relations
ABSENT = masks.empty(HEIGHT, WIDTH)
WORDS = {ordinal(number): number for number in range(1, 30)}


def block(x, y=5, width=6):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + 6, max(x, 0) : x + width] = True
    return masks.encode(mask)


def clip(*tracks, categories=None, name="zoo"):
    """A track has an x, "absent" or None (nobody looked) per frame."""
    rles = [[ABSENT if x == "absent" else None if x is None else block(x) for x in track] for track in tracks]
    names = categories or [None] * len(tracks)
    objects = [Object(of_thing, [None] * len(of_thing), name) for of_thing, name in zip(rles, names, strict=True)]
    frames = [f"{number:05d}.jpg" for number in range(len(tracks[0]))]
    return Sample(name, "referring", WIDTH, HEIGHT, frames=frames, objects=objects, source="toy")


def found(sample, kinds=KINDS, margin=0.05):
    return [one for of_kind in find_relations(sample, kinds, margin, rng()).values() for one in of_kind]


def rng():
    return np.random.default_rng(0)


def texts(sample, **how):
    return {one.text: one.meant for one in found(sample, **how)}


def test_ordinals():
    assert [ordinal(n) for n in (1, 3, 10, 11, 12, 13, 21, 22, 23, 24, 111)] == (
        "first third tenth 11th 12th 13th 21st 22nd 23rd 24th 111th".split()
    )


def test_all_that_can_be_said_of_three_objects_in_a_picture():
    named = "the one at [0, 250, 60, 550]", "the one at [400, 250, 460, 550]", "the one at [800, 250, 860, 550]"
    a, b, c = named
    assert texts(clip([0], [40], [80])) == {
        **{f"the {word} object from the left": (n,) for n, word in enumerate(("first", "second", "third"))},
        **{f"the {word} object from the right": (2 - n,) for n, word in enumerate(("first", "second", "third"))},
        f"the first object to the right of {a}": (1,),
        f"the second object to the right of {a}": (2,),
        f"the first object to the right of {b}": (2,),
        f"the first object to the left of {b}": (0,),
        f"the first object to the left of {c}": (1,),
        f"the second object to the left of {c}": (0,),
    }


def test_categories_name_what_is_counted_and_what_is_beside():
    said = texts(clip([0], [40], [80], categories=["dog", "cat", "dog"]))
    assert said["the second dog from the left"] == (2,) and said["the second object from the left"] == (1,)
    assert said["the first dog to the right of the cat"] == (2,)
    assert said["the first object to the left of the one at [800, 250, 860, 550]"] == (1,)  # there are two dogs
    assert not any("cat from" in text for text in said)  # the only cat
    said = texts(clip([0], [40], categories=["dog", "dog"]))
    assert said and not any("object" in text for text in said)  # every object is a dog
    said = texts(clip([0], [40], [80], categories=["dog", None, "dog"]))
    assert said and not any("dog" in text for text in said)  # the other may be a dog as well


def test_a_phrase_has_the_frames_on_which_it_is_clear():
    still, crossing = [50] * 12, [0, 5, 10, 20, 30, 48, 52, 90, 90, 90, 90, 90]
    said = texts(clip(still, crossing))
    assert said["the first object from the left"] == (1,) * 5 + (None,) * 7  # the first of two runs
    assert said["the second object from the left"] == (0,) * 5 + (None,) * 7
    assert said["the leftmost object"] == (1,) * 5 + (None,) * 2 + (0,) * 5
    assert said["the rightmost object"] == (0,) * 5 + (None,) * 2 + (1,) * 5
    right_of_crossing = [text for text, meant in said.items() if "right of" in text and 0 in meant]
    assert not right_of_crossing  # its box moves on: no five frames on which the same box means it
    assert said["the first object to the right of the one at [500, 250, 560, 550]"] == (None,) * 7 + (1,) * 5


def test_the_composed_sample_is_exactly_this():
    sample = clip([50] * 12, [0, 5, 10, 20, 30, 48, 52, 90, 90, 90, 90, 90], categories=["dog", "cat"])
    sample.expressions = [Expression("what it said before", [0])]
    sample.ignore = [block(70) if at == 5 else None for at in range(12)]
    related = relate(sample, ["switch"], per_clip=1)
    validate(related)
    (expression,) = related.expressions
    side = expression.text.split()[1]
    first, second = (1, 0) if side == "leftmost" else (0, 1)
    assert expression == Expression(f"the {side} object", [0, 1], "switch")
    assert related.annotated == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]  # nothing is said of the two others
    for thing, wanted, name in (
        (related.objects[0], [*sample.objects[first].masks[:5], *[ABSENT] * 5], sample.objects[first].category),
        (related.objects[1], [*[ABSENT] * 5, *sample.objects[second].masks[7:]], sample.objects[second].category),
    ):
        assert thing == Object(wanted, [masks.rle_to_box(rle) for rle in wanted], name)
    assert related.ignore == [None] * 10
    assert (related.id, related.frames, related.num_frames) == (sample.id, sample.frames, 12)


def test_margins_and_unknown_masks_leave_nothing_to_say():
    assert not found(clip([40], [44]))
    assert found(clip([40], [44]), margin=0.03, kinds=["absolute"])
    assert not found(clip([0], [None], [80]), kinds=["absolute"])  # the unknown one could be anywhere
    assert not found(clip([0], ["absent"]))
    assert len(texts(clip([0], ["absent"], [80]), kinds=["absolute"])) == 4  # the absent one is not in the way
    assert relate(clip([40], [44])) is None and relate(clip([40])) is None


def test_what_overlaps_is_not_beside():
    wide = clip([0], [60])
    wide.objects[0].masks[0] = block(0, width=80)  # its middle is left of the other's, which lies within it
    assert not found(wide)
    rider = clip([40], [42], [0], [90])  # on a horse, a dog, and a cat
    said = texts(rider, kinds=["absolute"])
    assert said == {"the first object from the left": (2,), "the first object from the right": (3,)}
    assert all(one.targets for one in relate(rider, ["absolute"], negatives=2).expressions)
    still, arm = [30] * 12, [31] * 8 + [60] * 4  # an arm is part of who it is on most frames
    assert not found(clip(still, arm), kinds=["absolute", "switch"])


def test_runs():
    values = np.array([1, 1, 0, 2, 2, 2, 1])
    assert list(runs(values)) == [range(0, 2), range(3, 6), range(6, 7)]
    assert choose_run(values) == range(3, 6) and choose_run(values, least=4) == range(0)
    assert choose_run(np.array([1, 1, 0, 2, 2])) == range(0, 2)
    assert len(choose_run(np.array([0, 0]))) == 0
    assert choose_run(np.array([1, 1, 1, 1]), lambda first, at: at - first < 3) == range(0, 3)
    assert choose_run(values, window="first", least=2) == range(0, 2)
    taken = {choose_run(values, window="random", rng=np.random.default_rng(n), least=2) for n in range(20)}
    assert taken == {range(0, 2), range(3, 6)}


def test_hard_negatives_count_one_further_than_there_are_objects():
    three = clip(*([x] * 6 for x in (0, 30, 60)))
    related = relate(three, ["absolute"], negatives=5)
    validate(related)
    none_there = {one.text for one in related.expressions if not one.targets}
    assert none_there == {"the fourth object from the left", "the fourth object from the right"}
    assert {one.kind for one in related.expressions if not one.targets} == {"no_target"}
    assert sum(not one.targets for one in relate(three, ["absolute"], negatives=1).expressions) == 1
    assert relate(three, ["absolute"]) == replace(related, expressions=related.expressions[:-2])
    coming = clip([0] * 6, [30] * 6, ["absent"] * 3 + [60] * 3)  # three at some time, never four
    said = [one.text for one in relate(coming, ["absolute"], negatives=5).expressions if not one.targets]
    assert said and all("fourth" in text for text in said)
    unknown = clip([0] * 6, [30] * 6, [None] + [60] * 5)
    related = relate(unknown, ["absolute"], negatives=5)
    assert all("fourth" in one.text for one in related.expressions if not one.targets), "of the frames that are given"


# ---------------------------------------------------------------- laws


def random_clips(count=60):
    """Objects that wander, come and go; some masks unknown, some objects named."""
    rng = np.random.default_rng(5)
    for number in range(count):
        frames, things = int(rng.choice([1, 3, 9])), int(rng.integers(2, 6))
        tracks = []
        for _ in range(things):
            steps = rng.integers(-9, 10, frames).cumsum() if rng.random() < 0.6 else np.zeros(frames, int)
            track = np.clip(rng.integers(0, 90) + steps, 0, 94).tolist()
            late = int(rng.integers(frames)) if rng.random() < 0.3 else 0
            track[:late] = ["absent"] * late
            track[0] = None if rng.random() < 0.1 else track[0]
            tracks.append(track)
        names = [str(rng.choice(["dog", "cat"])) for _ in tracks] if rng.random() < 0.5 else None
        sample = clip(*tracks, categories=names, name=f"clip {number}")
        for thing in sample.objects:  # at heights of their own
            y = int(rng.integers(0, 14))
            thing.masks = [m if m in (None, ABSENT) else shifted(m, y) for m in thing.masks]
        if any(m is not None for thing in sample.objects for m in thing.masks):
            yield sample


def shifted(rle, y):
    return masks.encode(np.roll(masks.decode(rle), y - 5, axis=0))


def middles(sample, at):
    """object -> middle of its pixels' columns, of those present on a frame; and who is unknown there."""
    present, unknown = {}, set()
    for number, thing in enumerate(sample.objects):
        if thing.masks[at] is None:
            unknown.add(number)
        elif (columns := np.flatnonzero(masks.decode(thing.masks[at]).any(axis=0))).size:
            present[number] = (columns[0] + columns[-1] + 1) / 2
    return present, unknown


def overlap(box, mask):
    """IoU of a box with the box of a mask, by their pixels (the boxes of blocks are whole numbers)."""
    tight = masks.mask_to_box(mask)
    area = [np.zeros((HEIGHT, WIDTH), bool) for _ in range(2)]
    for canvas, (x0, y0, x1, y1) in zip(area, (box, tight), strict=True):
        canvas[round(y0) : round(y1), round(x0) : round(x1)] = True
    return masks.iou(*area)


def is_true(text, target, sample, at):
    """Whether the phrase means this object on a frame, read off the words and the pixels alone."""
    present, unknown = middles(sample, at)
    names = [thing.category for thing in sample.objects]
    extreme = re.fullmatch(r"the (left|right)most (\w+)", text)
    match = extreme or re.fullmatch(r"the (\w+) (\w+) (?:from|to) the (left|right)(?: of the (.+))?", text)
    noun = match[2]
    counted = {n for n in range(len(names)) if noun == "object" or names[n] == noun}
    assert not counted & unknown and target in counted
    if extreme or match[4] is None:
        side, rank = (match[1], 1) if extreme else (match[3], WORDS[match[1]])
        order = sorted(counted & set(present), key=lambda n: present[n], reverse=side == "right")
        return order[rank - 1] == target
    rank, side, called = WORDS[match[1]], match[3], match[4]
    if called.startswith("one at "):
        ((box,),) = boxes.read(called, WIDTH, HEIGHT).frames
        near = [n for n in present if overlap(box, masks.decode(sample.objects[n].masks[at])) > 0.45]
    else:
        near = [n for n in range(len(names)) if names[n] == called]
    (reference,) = near
    beyond = [
        n for n in (counted & set(present)) - {reference}
        if (present[n] < present[reference] if side == "left" else present[n] > present[reference])
    ]  # fmt: skip
    return sorted(beyond, key=lambda n: abs(present[n] - present[reference]))[rank - 1] == target


def test_every_phrase_is_true_on_every_frame_it_is_given_for():
    checked = dict.fromkeys(KINDS, 0)
    for sample in random_clips():
        for one in found(sample):
            where = [at for at, who in enumerate(one.meant) if who is not None]
            assert len(where) >= min(MIN_FRAMES, len(one.meant)) and one.rank <= MAX_RANK
            assert all(is_true(one.text, one.meant[at], sample, at) for at in where), (sample.id, one)
            checked[one.kind] += 1
    assert min(checked.values()) > 10, checked


def test_a_mirror_swaps_left_and_right():
    def facts(relations):
        return {(one.kind, one.side, one.meant, one.rank, one.noun, one.reference) for one in relations}

    swap, seen = {"left": "right", "right": "left"}, 0
    for sample in random_clips():
        mirrored = replace(sample, objects=[replace(thing, masks=list(thing.masks)) for thing in sample.objects])
        for thing in mirrored.objects:
            thing.masks = [None if m is None else masks.encode(masks.decode(m)[:, ::-1]) for m in thing.masks]
        here, there = facts(found(sample)), facts(found(mirrored))
        assert {(kind, swap[side], *rest) for kind, side, *rest in here} == there
        seen += len(here)
    assert seen > 300


def test_what_is_drawn_depends_on_the_id_alone():
    sample = clip(*([x] * 6 for x in (0, 20, 40, 60, 80)))
    assert relate(sample) == relate(sample)
    drawn = {tuple(one.text for one in relate(replace(sample, id=str(n))).expressions) for n in range(5)}
    assert len(drawn) == 5
    related = relate(sample, per_clip=6)
    validate(related)
    kinds = [one.kind for one in related.expressions]
    assert kinds == ["absolute", "relative"] * 3  # nothing switches
    said = [one.text for one in relate(sample, per_clip=ALL).expressions]
    assert len(set(said)) == len(said) == 2 * 5 + 4 * 5


@pytest.mark.parametrize("sample", [clip([0, 1], [40, 41]), clip([0], [40])], ids=["clip", "image"])
def test_short_clips_and_pictures_are_taken_whole(sample):
    related = relate(sample)
    validate(related)
    assert related.annotated == sample.annotated and len(related.expressions) == 6
