"""Laws of the drawn data: what the text says, the masks show and the facts hold are the same thing.

Run: pytest tests/data/shapes/test_source.py
"""

import functools
import io
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.data.schema import from_row, to_row, validate
from sa2va_hf.data.shapes.dialogue import DIALOGUES
from sa2va_hf.data.shapes.scene import MIN_VISIBLE
from sa2va_hf.data.shapes.source import TASKS, WORLDS, Options, Scene, Shape, draw, expressions, render, shapes
from sa2va_hf.data.shapes.text import EXPRESSION_KINDS
from sa2va_hf.data.shapes.world import vocabulary
from sa2va_hf.masks import decode, mask_to_box

BOTH = pytest.mark.parametrize("world", sorted(WORLDS))


def scenes(count: int, **options):
    """`count` drawn scenes with frames and masks."""
    rng = random.Random(str(sorted(options.items())))
    return [draw(rng, Options(**options)) for _ in range(count)]


def inner(mask: np.ndarray, steps: int = 2) -> np.ndarray:
    """The mask without the pixels near its rim, which are blends."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


# ---- what a text means, worked out from its words alone ----


def meaning(text: str, scene: Scene) -> list[int]:
    """The shapes that an English text means, by brute force over the facts; shares no code with the package's text."""
    if match := re.fullmatch(r"the (.+) and the (.+)", text):
        if not text.endswith("leaves and comes back"):
            return sorted(meaning(f"the {match[1]}", scene) + meaning(f"the {match[2]}", scene))
    body = text.removeprefix("all ").removeprefix("the ")
    numbers = range(len(scene.shapes))
    if match := re.fullmatch(r"(.+) (left of|right of|above|below) the (.+)", body):
        (anchor,) = meaning(f"the {match[3]}", scene)
        return [i for i in named(match[1], scene) if i != anchor and beside(scene, i, match[2], anchor)]
    if match := re.fullmatch(r"(.+?) (moving \w+|that .+)", body):
        return [i for i in named(match[1], scene) if moves(scene.shapes[i], match[2])]
    if match := re.fullmatch(r"(first|second|third) (.+) from the (left|right|top|bottom)", body):
        return [along(named(match[2], scene), scene, match[3])[("first", "second", "third").index(match[1])]]
    word, _, rest = body.partition(" ")
    if word in (ends := {"leftmost": "left", "rightmost": "right", "topmost": "top", "bottommost": "bottom"}):
        return [along(named(rest, scene), scene, ends[word])[0]]
    if word in ("largest", "smallest"):
        group = named(rest, scene)
        by_radius, by_area = (
            [size(i) for i in numbers] for size in (lambda i: scene.shapes[i].radius, lambda i: whole_area(scene, i))
        )
        pick = max if word == "largest" else min
        answers = {pick(group, key=by_radius.__getitem__), pick(group, key=by_area.__getitem__)}
        assert len(answers) == 1, f"{text!r}: radius and area disagree"
        return list(answers)
    return named(body, scene)


def named(words: str, scene: Scene) -> list[int]:
    """The shapes that have every attribute of "small striped red circles"."""
    *adjectives, noun = words.split()
    singular = {kind.plural: name for name, kind in scene.world.kinds.items()} | {"shapes": "shape"}
    noun = singular.get(noun, noun)
    known = {word for family in vocabulary(scene.world).values() for word in family} | {"shape"}
    assert {*adjectives, noun} <= known, f"unknown words in {words!r}"
    return [
        i
        for i, s in enumerate(scene.shapes)
        if noun in ("shape", s.kind) and set(adjectives) <= {s.size, s.texture, s.colour}
    ]


def beside(scene: Scene, number: int, relation: str, anchor: int) -> bool:
    (x, y), (other_x, other_y) = scene.shapes[number].path[0], scene.shapes[anchor].path[0]
    return {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[relation]


def along(group: list[int], scene: Scene, side: str) -> list[int]:
    places = {i: scene.shapes[i].path[0] for i in group}
    key = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    return sorted(group, key=lambda i: key[1] * places[i][key[0]])


def whole_area(scene: Scene, number: int) -> int:
    return _area_alone(replace(scene.shapes[number], path=((0.5, 0.5),)), scene.options.world)


@functools.cache
def _area_alone(shape: Shape, world: str) -> int:
    """Pixels of the shape drawn alone in the middle of a picture."""
    return np.count_nonzero(render(Scene(Options(world=world, size=256), (shape,), ((0, 0, 0),) * 4))[1][0])


def is_off(shape: Shape, frame: int) -> bool:
    return any(not -1.2 * shape.radius < v < 1 + 1.2 * shape.radius for v in shape.path[frame])


def moves(shape: Shape, words: str) -> bool:
    """Read off the path alone."""
    off = [is_off(shape, frame) for frame in range(len(shape.path))]
    (x0, y0), (x1, y1) = shape.path[0], shape.path[-1]
    returns = not off[0] and not off[-1] and any(off)
    if words == "that stays still":
        return len(set(shape.path)) == 1
    if words == "that leaves and comes back":
        return returns
    if words == "that leaves the picture":
        return not off[0] and off[-1]
    if words == "that enters the picture":
        return off[0] and not off[-1]
    across, down = x1 - x0, y1 - y0
    if returns or max(abs(across), abs(down)) < 0.2:
        return False
    direction = ("left" if across < 0 else "right") if abs(across) > abs(down) else ("up" if down < 0 else "down")
    return words == f"moving {direction}"


@BOTH
@pytest.mark.parametrize("num_frames", [1, 8])
def test_every_expression_means_exactly_its_targets(world, num_frames):
    rng, seen = random.Random(5), set()
    for scene, _, _ in scenes(25 if num_frames > 1 else 80, world=world, num_frames=num_frames, max_objects=5):
        found = expressions(scene, rng)
        assert len({e.text for e in found}) == len(found)
        for expression in found:
            assert sorted(expression.targets) == meaning(expression.text, scene), (expression, scene.shapes)
            seen.add(expression.kind)
    assert seen == set(EXPRESSION_KINDS) - ({"ordinal", "relation"} if num_frames > 1 else {"motion"})


@BOTH
def test_no_expression_hangs_on_a_hair(world):
    """Moving every shape a little changes no answer: places that are nearly the same are never compared."""
    rng = random.Random(6)
    for scene, _, _ in scenes(50, world=world, min_objects=2, max_objects=5):
        found = expressions(scene, rng, kinds=("ordinal", "relation"))
        for _ in range(3):
            nudged = tuple(
                replace(
                    s, path=tuple((x + rng.uniform(-0.035, 0.035), y + rng.uniform(-0.035, 0.035)) for x, y in s.path)
                )
                for s in scene.shapes
            )
            moved = replace(scene, shapes=nudged)
            for expression in found:
                assert expression.targets == meaning(expression.text, moved), expression


def test_one_picture_offers_many_expressions():
    rng = random.Random(7)
    counts = [len(expressions(scene, rng)) for scene, _, _ in scenes(50, min_objects=3)]
    assert min(counts) >= 8 and np.mean(counts) > 11


# ---- pixels ----


@BOTH
def test_masks_are_what_the_picture_shows(world):
    """Inside a mask one sees the shape's colour and its pattern's tone, outside all masks the background."""
    for scene, (picture,), masks in scenes(60, world=world, max_objects=6, max_overlap=0.5):
        together = np.sum([mask for (mask,) in masks], axis=0)
        assert together.max() <= 1
        for shape, (mask,) in zip(scene.shapes, masks, strict=True):
            seen = picture[inner(mask)].astype(float)
            main = np.array(scene.world.palette[shape.colour], float)
            if shape.texture == "plain":
                assert (seen == main).all()
            else:  # a blend of two tones: on the line through the main colour, at most half the way to black or white
                assert (np.abs(seen - main) <= 1).all(axis=1).mean() > 0.2
                assert (np.abs(seen - main) > 1).any()
        low, high = scene.world.background
        plain = picture[inner(together == 0)]
        assert (plain >= np.array(low) - 1).all() and (plain <= np.array(high) + 1).all()


@BOTH
def test_a_shape_alone_covers_its_outline_area(world):
    for scene, _, masks in scenes(40, world=world, max_objects=1, size=256):
        expected = scene.area(scene.shapes[0]) * 256**2
        # triangles and arrows may stick out of the picture by a tip
        assert 0.9 * expected <= np.count_nonzero(masks[0][0]) <= 1.06 * expected


def test_later_shapes_hide_earlier_ones():
    below = Shape("square", "red", "plain", "large", 0.3, 0.0, ((0.5, 0.5),))
    above = Shape("circle", "blue", "plain", "small", 0.1, 0.0, ((0.5, 0.5),))
    picture, (square, circle) = render(Scene(Options(), (below, above), ((150, 150, 150),) * 4))
    assert tuple(picture[64, 64]) == WORLDS["default"].palette["blue"]
    assert circle[64, 64] and not square[64, 64]
    assert tuple(picture[64, 40]) == WORLDS["default"].palette["red"]
    assert square[64, 40]


def test_something_of_every_shape_can_be_seen():
    for _, _, masks in scenes(80, min_objects=4, max_objects=6, max_overlap=0.9):
        assert all(np.count_nonzero(mask) >= MIN_VISIBLE for (mask,) in masks)


def test_shapes_of_one_colour_never_touch():
    for scene, _, _ in scenes(15, colours=("red", "blue"), min_objects=3, num_frames=6, max_overlap=0.9):
        for i, first in enumerate(scene.shapes):
            for second in scene.shapes[:i]:
                if first.colour == second.colour:
                    assert all(
                        math.dist(a, b) >= first.radius + second.radius
                        for a, b in zip(first.path, second.path, strict=True)
                    )


# ---- clips ----


@pytest.mark.parametrize("num_frames", [4, 5, 8, 12])
def test_motions_show_in_the_masks(num_frames):
    """Leaving: empty at the end. Entering: empty at the start. Coming back: empty in the middle, seen at both ends."""
    seen = set()
    for scene, _, masks in scenes(25, num_frames=num_frames, max_objects=2, max_overlap=0):
        if len(scene.shapes) > 1:
            continue  # another shape may hide it
        motion, full = scene.shapes[0].motion, [bool(mask.any()) for mask in masks[0]]
        seen.add(motion)
        ends = {"leave": (True, False), "enter": (False, True)}.get(motion, (True, True))
        assert (full[0], full[-1]) == ends, motion
        assert full[num_frames // 2] == (motion != "return") or motion in ("leave", "enter")
        assert motion != "return" or not full[(num_frames - 1) // 2]
    assert len(seen) >= 4


def test_absent_is_an_empty_mask_without_a_box():
    absent = 0
    for sample in shapes(None, "train", count=15, clip_fraction=1.0):
        assert sample.num_frames == 8 and sample.annotated == list(range(8))
        for thing in sample.objects:
            for rle, box in zip(thing.masks, thing.boxes, strict=True):
                mask = decode(rle)
                assert box == mask_to_box(mask)
                absent += not mask.any()
    assert absent > 10


# ---- samples ----


def test_a_sample_depends_on_its_index_alone():
    options = dict(clip_fraction=0.3, tasks=TASKS, seed=4)
    whole = list(shapes(None, "val", count=12, **options))
    assert whole == list(shapes(None, "val", count=12, **options))
    assert whole[5:9] == list(shapes(None, "val", start=5, count=4, **options))
    assert len({sample.id for sample in whole}) == 12


def test_splits_and_seeds_share_no_picture():
    pictures = [
        frame
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for sample in shapes(None, split, count=40, seed=seed, size=64)
        for frame in sample.frames
    ]
    assert len(set(pictures)) == len(pictures) == 240


@BOTH
@pytest.mark.parametrize("task", TASKS)
def test_samples_are_valid_and_survive_arrow(world, task):
    for sample in shapes(None, "train", count=200, world=world, tasks=(task,), size=64, clip_fraction=0.1):
        validate(sample)
        assert sample.task == task and (sample.expressions or sample.turns)
        assert from_row(to_row(sample)) == sample


def test_the_picture_in_the_sample_is_the_scene():
    (sample,) = shapes(None, "train", count=1, size=96)
    picture = Image.open(io.BytesIO(sample.frames[0]))
    assert picture.size == (sample.width, sample.height) == (96, 96) and picture.mode == "RGB"


def test_tasks_and_clips_come_in_their_shares():
    samples = list(shapes(None, "train", count=300, size=32, clip_fraction=0.2, num_frames=4, tasks=TASKS))
    assert 0.12 < np.mean([s.num_frames > 1 for s in samples]) < 0.28
    assert {s.task for s in samples if s.num_frames > 1} == {s.task for s in samples} == set(TASKS)


def test_files_instead_of_bytes(tmp_path):
    (embedded,) = shapes(None, "val", count=1, clip_fraction=1.0, num_frames=4)
    (stored,) = shapes(tmp_path, "val", count=1, clip_fraction=1.0, num_frames=4, embed=False)
    assert [open(path, "rb").read() for path in stored.frames] == embedded.frames
    assert replace(stored, frames=embedded.frames) == embedded


# ---- dialogues ----


@BOTH
@pytest.mark.parametrize("num_frames", [1, 6])
def test_grounded_captions_point_at_what_they_name(world, num_frames):
    rng = random.Random(8)
    for scene, _, masks in scenes(30, world=world, num_frames=num_frames):
        dialogue = DIALOGUES["grounded_caption"](scene, rng, [i for i, m in enumerate(masks) if m[0].any()])
        if dialogue is None:
            continue
        (turn,), _ = dialogue
        spoken = re.findall(r"<p> an? (.+?) </p> \[SEG\](?: (moving \w+|that [a-z ]+?)(?= and <p>|\.))?", turn.answer)
        assert len(spoken) == len(turn.targets) == turn.answer.count("[SEG]")
        for (name, motion), (target,) in zip(spoken, turn.targets, strict=True):
            assert target in named(name, scene) and len(name.split()) == 4
            assert bool(motion) == (num_frames > 1)
            assert not motion or moves(scene.shapes[target], motion), (motion, scene.shapes[target])
        relation = re.search(r"\[SEG\] (left of|right of|above|below) <p>", turn.answer)
        if relation:
            assert beside(scene, turn.targets[0][0], relation[1], turn.targets[1][0])


@BOTH
def test_answers_are_facts(world):
    rng, kinds_of_question = random.Random(9), set()
    numbers = ["None.", "One.", "Two.", "Three.", "Four.", "Five."]
    for scene, _, _ in scenes(120, world=world, max_objects=5):
        turns, _ = DIALOGUES["question"](scene, rng, [])
        for turn in turns:
            asked, answer = turn.question, turn.answer
            if match := re.fullmatch(r"How many (.+) are there\?", asked):
                assert numbers.index(answer) == len(named(match[1], scene))
            elif match := re.fullmatch(r"Is there an? (.+)\?", asked):
                assert answer == ("Yes." if named(match[1], scene) else "No.")
            elif match := re.fullmatch(r"What (colour|kind of shape) is the (.+)\?", asked):
                (number,) = named(match[2], scene)
                value = re.fullmatch(r"(?:An? )?(.+)\.", answer)[1].lower()
                assert value == (scene.shapes[number].colour if match[1] == "colour" else scene.shapes[number].kind)
            else:
                words = re.fullmatch(r"Is the (.+?)\?", asked)[1].split()
                cut = next(i for i, w in enumerate(words) if w in scene.world.kinds or w == "shape") + 1
                (number,) = named(" ".join(words[:cut]), scene)
                assert answer.lower() == scene.shapes[number].texture + "."
            kinds_of_question.add(asked.split()[0] + asked.split()[1])
    assert kinds_of_question >= {"Howmany", "Isthere", "Whatcolour", "Whatkind", "Isthe"}


def test_region_captions_name_the_region():
    rng = random.Random(10)
    for scene, _, masks in scenes(30, num_frames=6):
        visible = [i for i, m in enumerate(masks) if m[0].any()]
        dialogue = DIALOGUES["region_caption"](scene, rng, visible)
        assert (dialogue is None) == (not visible)
        if visible:
            (turn,), (number,) = dialogue
            name, motion = re.fullmatch(r"An? (.+?) (moving \w+|that .+)\.", turn.answer).groups()
            assert number in named(name, scene) and moves(scene.shapes[number], motion)
            assert "region1" in turn.question


def test_it_is_the_shape_of_the_turn_before():
    rng = random.Random(11)
    for scene, _, _ in scenes(30):
        dialogue = DIALOGUES["conversation"](scene, rng, [])
        if dialogue is not None:
            (first, second), _ = dialogue
            words = re.search(r" the (.+?)\?", first.question)[1].split()
            cut = next(i for i, w in enumerate(words) if w in scene.world.kinds or w == "shape") + 1
            assert second.targets == [named(" ".join(words[:cut]), scene)]


# ---- options ----


def test_worlds_share_no_attribute_word():
    words = [{w for family in vocabulary(world).values() for w in family} for world in WORLDS.values()]
    assert not set.intersection(*words)


def test_subsets_limit_what_is_drawn_and_said():
    options = dict(colours=("red", "blue"), nouns=("circle", "star"), textures=("plain",), sizes=("large",))
    for scene, _, _ in scenes(20, **options):
        for shape in scene.shapes:
            looks = (shape.colour, shape.kind, shape.texture, shape.size)
            assert all(look in allowed for look, allowed in zip(looks, options.values(), strict=True))
    texts = " ".join(
        e.text
        for sample in shapes(
            None, "train", count=60, kinds=("attribute", "no_target"), attributes=("colour",), **options
        )
        for e in sample.expressions
    )
    assert set(texts.split()) == {"the", "red", "blue", "shape", "shapes"}


@pytest.mark.parametrize("kind", EXPRESSION_KINDS)
def test_kinds_choose_expressions(kind):
    samples = shapes(None, "train", count=8, kinds=(kind,), clip_fraction=float(kind == "motion"), num_frames=4)
    for sample in samples:
        assert {e.kind for e in sample.expressions} == {kind}  # a scene that offers none is drawn again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(world="mars"), "world: expected one of"),
        (dict(split="dev"), "split: expected one of"),
        (dict(min_objects=3, max_objects=2), "min_objects, max_objects"),
        (dict(size=8), "size: expected at least 32"),
        (dict(tasks=("segment",)), "tasks: expected some of"),
        (dict(kinds=("shape",)), "kinds: expected some of"),
        (dict(attributes=("color",)), "attributes: expected some of"),
        (dict(colours=("teal",)), "colours: expected some of"),
        (dict(clip_fraction=1.5), "clip_fraction"),
        (dict(clip_fraction=0.5, num_frames=3), "num_frames: a clip needs"),
        (dict(embed=False), "root: embed=False"),
        (dict(kinds=("relation",), max_objects=1), "no text for task"),
        (dict(sizes=("large",), min_objects=10, max_objects=10, max_overlap=0), "no room for the shapes"),
    ],
)
def test_impossible_options_are_named(options, message):
    options = {"split": "train", **options}
    with pytest.raises(ValueError, match=message):
        next(shapes(None, options.pop("split"), **options))
