"""Drawn scenes: what is in a picture or clip of `shapes`, and its exact pixels.

A `Scene` is a handful of facts (kind, colour, texture, size, place, path over the frames); `render` turns them into
pixels and masks, `shapes_text` into words. Lengths are fractions of the picture's side, so that a scene means the same
at any size.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sa2va_hf.data.shapes.world import RGB, WORLDS, Point, World, vocabulary

SUPERSAMPLE = 4  # a pixel is covered in steps of 1/16
MIN_VISIBLE = 24  # pixels: a scene that shows less of a shape is drawn again
TRIES = 300  # canvases to start before giving up
MIN_SHARE = 0.4  # of the shape's area, likewise
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = ("still", "move", "leave", "enter", "return")


@dataclass(frozen=True)
class Options:
    """What `draw_scene` may draw. The subsets (`colours` ...) keep the world's order; None = all of it."""

    size: int = 128  # pixels, side of the square picture
    world: str = "default"
    min_objects: int = 1
    max_objects: int = 4
    num_frames: int = 1
    max_overlap: float = 0.3  # share of a shape's round hull that another one may cover, by two circles
    colours: tuple[str, ...] | None = None
    nouns: tuple[str, ...] | None = None
    textures: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.world not in WORLDS:
            raise ValueError(f"world: expected one of {sorted(WORLDS)}, got {self.world!r}")
        if not 1 <= self.min_objects <= self.max_objects <= 10:
            raise ValueError(
                f"min_objects, max_objects: expected 1 <= min <= max <= 10, got {self.min_objects}, {self.max_objects}"
            )
        if self.size < 32:
            raise ValueError(f"size: expected at least 32 pixels, so that small shapes can be seen, got {self.size}")
        if self.num_frames < 1:
            raise ValueError(f"num_frames: expected at least 1, got {self.num_frames}")
        for name, known in vocabulary(WORLDS[self.world]).items():
            chosen = getattr(self, name)
            if chosen is not None and (not chosen or not set(chosen) <= set(known)):
                raise ValueError(f"{name}: expected some of {known} (world {self.world!r}), got {chosen}")

    def words(self, name: str) -> tuple[str, ...]:
        """The words of one family ("colours", "nouns", "textures", "sizes") that may be drawn."""
        return getattr(self, name) or vocabulary(WORLDS[self.world])[name]


@dataclass(frozen=True)
class Shape:
    """One object. `path` holds its middle on every frame; `direction` is where it first goes ("" when still)."""

    kind: str
    colour: str
    texture: str
    size: str
    radius: float
    rotation: float  # radians, clockwise on the picture
    path: tuple[Point, ...]
    motion: str = "still"  # one of MOTIONS
    direction: str = ""  # one of DIRECTIONS

    @property
    def centre(self) -> Point:
        return self.path[0]


@dataclass(frozen=True)
class Scene:
    """Everything about one picture or clip; later shapes lie on top of earlier ones."""

    options: Options
    shapes: tuple[Shape, ...]
    background: tuple[RGB, RGB, RGB, RGB]  # corner colours: top left, top right, bottom left, bottom right

    @property
    def world(self) -> World:
        return WORLDS[self.options.world]

    @property
    def num_frames(self) -> int:
        return self.options.num_frames

    def area(self, shape: Shape) -> float:
        """Area of the whole shape, hidden or not, as a fraction of the picture."""
        return self.world.kinds[shape.kind].area * shape.radius**2


def draw_scene(rng: random.Random, options: Options) -> Scene:
    """A scene drawn at random. Its shapes may still hide each other in a clip: `draw` looks at the pixels too.

    ValueError when the shapes find no room in TRIES canvases.
    """
    world = WORLDS[options.world]
    for _ in range(TRIES):  # a crowded canvas starts over
        shapes: list[Shape] = []
        for _ in range(rng.randint(options.min_objects, options.max_objects)):
            shape = _place(rng, options, _look(rng, options, shapes), shapes)
            if shape is None:
                break
            shapes.append(shape)
        else:
            low, high = world.background
            mixes = [rng.random() for _ in range(4)]
            corners = tuple(tuple(round(a + (b - a) * m) for a, b in zip(low, high, strict=True)) for m in mixes)
            return Scene(options, tuple(shapes), corners)
    raise ValueError(f"max_objects, sizes, max_overlap: no room for the shapes in {TRIES} canvases of {options}")


def _look(rng: random.Random, options: Options, others: list[Shape]) -> dict[str, str]:
    """Kind, colour, texture and size; one in three is copied from another shape, so that one word seldom suffices."""
    look = {}
    for name, family in (("kind", "nouns"), ("colour", "colours"), ("texture", "textures"), ("size", "sizes")):
        if others and rng.random() < 1 / 3:
            look[name] = getattr(rng.choice(others), name)
        else:
            look[name] = rng.choice(options.words(family))
    return look


def _place(rng: random.Random, options: Options, look: dict[str, str], others: list[Shape]) -> Shape | None:
    """The shape somewhere where it does not cover too much, None when 30 tries found no such place."""
    world = WORLDS[options.world]
    radius = rng.uniform(*world.sizes[look["size"]])
    rotation = rng.uniform(-1, 1) * world.kinds[look["kind"]].turn
    for _ in range(30):
        start = (rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius))
        motion, direction, path = "still", "", (start,) * options.num_frames
        if options.num_frames > 1:
            motion = rng.choice(MOTIONS)
            if motion != "still":
                direction = rng.choice(tuple(DIRECTIONS))
                path = _path(rng, motion, direction, start, radius, options.num_frames)
        if path is not None and all(_fits(path, radius, look["colour"], o, options.max_overlap) for o in others):
            return Shape(**look, radius=radius, rotation=rotation, path=path, motion=motion, direction=direction)
    return None


def _fits(path: tuple[Point, ...], radius: float, colour: str, other: Shape, max_overlap: float) -> bool:
    """Whether the shape may be there beside another one: later in a clip they may cross, but on the first frame they
    cover little, and shapes of one colour stay apart throughout: nobody could tell where one ends."""
    if colour == other.colour:
        places = zip(path, other.path, strict=True)
        return all(math.dist(mine, theirs) >= radius + other.radius for mine, theirs in places)
    return _shared(math.dist(path[0], other.centre), radius, other.radius) <= max_overlap


def _shared(distance: float, radius: float, other: float) -> float:
    """The area that two discs share, as a share of the smaller one's."""
    small, large = sorted((radius, other))
    if distance >= small + large:
        return 0.0
    if distance <= large - small:
        return 1.0
    a = math.acos((distance**2 + small**2 - large**2) / (2 * distance * small))
    b = math.acos((distance**2 + large**2 - small**2) / (2 * distance * large))
    lens = small**2 * (a - math.sin(2 * a) / 2) + large**2 * (b - math.sin(2 * b) / 2)
    return lens / (math.pi * small**2)


def _path(
    rng: random.Random, motion: str, direction: str, place: Point, radius: float, num_frames: int
) -> tuple[Point, ...] | None:
    """The middle of a moving shape on every frame; None when there is no room for that motion from `place`."""
    dx, dy = DIRECTIONS[direction]
    if motion == "enter":  # a leaving shape with the clock turned back, so that it goes out on the other side
        dx, dy = -dx, -dy
    ahead = place[0] if dx < 0 else 1 - place[0] if dx else place[1] if dy < 0 else 1 - place[1]
    out = ahead + 1.25 * radius  # so far on, nothing of it is left in the picture
    times = [i / (num_frames - 1) for i in range(num_frames)]
    if motion == "move":
        if ahead - radius < 0.3:
            return None
        way = rng.uniform(0.3, ahead - radius)
        along = [way * t for t in times]
    elif motion == "return":
        turning = (num_frames - 1) // 2 / (num_frames - 1)  # the frame next to the middle, where it must be away
        along = [min(out, 1.05 * out * min(t, 1 - t) / turning) for t in times]
    else:
        speed = out / rng.uniform(0.5, 0.8)
        along = [speed * t for t in times]
        if motion == "enter":
            along = along[::-1]
    drift = rng.uniform(-0.06, 0.06)
    return tuple(
        (place[0] + a * dx + drift * t * abs(dy), place[1] + a * dy + drift * t * abs(dx))
        for a, t in zip(along, times, strict=True)
    )


# ---- pixels ----


def _points(outline: tuple[Point, ...], centre: Point, radius: float, rotation: float) -> list[Point]:
    cos, sin = radius * math.cos(rotation), radius * math.sin(rotation)
    cx, cy = centre
    return [(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in outline]


def _stripes(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    for i in range(-3, 4):
        u = 0.44 * i
        bar = ((u - 0.11, -1.3), (u + 0.11, -1.3), (u + 0.11, 1.3), (u - 0.11, 1.3))
        draw.polygon(_points(bar, centre, radius, rotation + math.pi / 4), fill=255)


def _dots(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    grid = tuple((0.5 * i + 0.25 * (j % 2), 0.43 * j) for j in range(-3, 4) for i in range(-3, 3))
    dot = 0.15 * radius
    for x, y in _points(grid, centre, radius, rotation):
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)


def _checks(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    step = 0.42
    for j in range(-3, 3):
        for i in range(-3 + (j % 2), 3, 2):
            x, y = i * step, j * step
            cell = ((x, y), (x + step, y), (x + step, y + step), (x, y + step))
            draw.polygon(_points(cell, centre, radius, rotation), fill=255)


PATTERNS = {"plain": None, "striped": _stripes, "dotted": _dots, "checked": _checks, "framed": None}


def _second(colour: RGB) -> RGB:
    """The pattern's other tone: darker, lighter for a dark colour, so that the colour keeps its name.

    Black and white move less: halfway they would be the background's grey, and patterns would look like holes.
    """
    if sum(colour) < 240:
        return tuple(round(c + (255 - c) * 0.3) for c in colour)
    factor = 0.82 if min(colour) > 240 else 0.5
    return tuple(round(c * factor) for c in colour)


def _background(corners: tuple[RGB, ...], size: int) -> np.ndarray:
    """The gradient between four corner colours, float32 (size, size, 3)."""
    top_left, top_right, bottom_left, bottom_right = np.array(corners, np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    left = top_left + (bottom_left - top_left) * ramp
    right = top_right + (bottom_right - top_right) * ramp
    return left[:, None] + (right - left)[:, None] * ramp[None]


def _cover(scene: Scene, shape: Shape, frame: int) -> tuple[slice, slice, np.ndarray, np.ndarray | None] | None:
    """Rows, columns, and the share of each pixel that the shape and its pattern cover; None when off the frame."""
    size, kind = scene.options.size, scene.world.kinds[shape.kind]
    x, y, radius = shape.path[frame][0] * size, shape.path[frame][1] * size, shape.radius * size
    outline = _points(kind.outline, (x, y), radius, shape.rotation)
    xs, ys = [p[0] for p in outline], [p[1] for p in outline]
    left, top = max(0, math.floor(min(xs)) - 1), max(0, math.floor(min(ys)) - 1)
    right, bottom = min(size, math.ceil(max(xs)) + 1), min(size, math.ceil(max(ys)) + 1)
    if right <= left or bottom <= top:
        return None
    s = SUPERSAMPLE
    local, scaled = ((x - left) * s, (y - top) * s), radius * s
    canvas = Image.new("L", ((right - left) * s, (bottom - top) * s))
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_points(kind.outline, local, scaled, shape.rotation), fill=255)
    if kind.hole:
        draw.polygon(_points(kind.hole, local, scaled, shape.rotation), fill=0)
    pattern = None
    if shape.texture == "framed":  # where a box around the pixel is not full; `point` is a table of 256 values
        pattern = canvas.filter(ImageFilter.BoxBlur(0.16 * scaled)).point([255] * 250 + [0] * 6)
    elif PATTERNS[shape.texture] is not None:
        pattern = Image.new("L", canvas.size)
        PATTERNS[shape.texture](ImageDraw.Draw(pattern), local, scaled, shape.rotation)
    cover = np.asarray(canvas.reduce(s), np.float32) / 255
    tone = None if pattern is None else np.asarray(pattern.reduce(s), np.float32) / 255
    return slice(top, bottom), slice(left, right), cover, tone


def render(scene: Scene, frame: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """One frame: uint8 (H, W, 3) and per shape the bool mask (H, W) of the pixels where it is what one sees.

    A pixel belongs to the topmost shape that covers at least half of it, so masks never overlap.
    """
    size = scene.options.size
    picture = _background(scene.background, size)
    masks = [np.zeros((size, size), bool) for _ in scene.shapes]
    for number, shape in enumerate(scene.shapes):
        covered = _cover(scene, shape, frame)
        if covered is None:
            continue
        rows, columns, cover, tone = covered
        colour = np.array(scene.world.palette[shape.colour], np.float32)
        if tone is not None:
            other = np.array(_second(scene.world.palette[shape.colour]), np.float32)
            colour = colour + (other - colour) * tone[..., None]
        patch = picture[rows, columns]
        patch += (colour - patch) * cover[..., None]
        solid = cover >= 0.5
        masks[number][rows, columns] = solid
        for below in masks[:number]:
            below[rows, columns] &= ~solid
    return np.rint(picture).astype(np.uint8), masks


def draw(rng: random.Random, options: Options) -> tuple[Scene, list[np.ndarray], list[list[np.ndarray]]]:
    """A scene with its frames (H, W, 3) and masks (masks[shape][frame]) in which every shape can be seen.

    A picture shows MIN_VISIBLE pixels and MIN_SHARE of every shape, a clip does on at least a third of its frames.
    """
    needed = max(1, options.num_frames // 3)
    for _ in range(TRIES):
        scene = draw_scene(rng, options)
        frames, masks = zip(*(render(scene, frame) for frame in range(options.num_frames)), strict=True)
        masks = [list(of_shape) for of_shape in zip(*masks, strict=True)]
        least = [max(MIN_VISIBLE, MIN_SHARE * scene.area(shape) * options.size**2) for shape in scene.shapes]
        if all(
            sum(np.count_nonzero(mask) >= pixels for mask in of_shape) >= needed
            for of_shape, pixels in zip(masks, least, strict=True)
        ):
            return scene, list(frames), masks
    raise ValueError(f"min_objects, max_overlap: some shape is hidden in all of {TRIES} scenes of {options}")
