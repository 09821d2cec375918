"""The vocabularies of `shapes`: which nouns, colours, textures and sizes there are, and what they look like."""

import functools
import math
from dataclasses import dataclass

RGB = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """One noun: its plural, its outline around (0, 0) (the rim is about 1 away) and how far it may be turned."""

    plural: str
    outline: tuple[Point, ...]
    hole: tuple[Point, ...] = ()
    turn: float = math.pi  # rotations are drawn from +-turn: a square on its corner would be another noun

    @functools.cached_property
    def area(self) -> float:
        return _area(self.outline) - _area(self.hole)


@dataclass(frozen=True)
class World:
    """A vocabulary and its looks: everything that may occur in a picture."""

    palette: dict[str, RGB]
    kinds: dict[str, Kind]
    textures: tuple[str, ...]  # names of shapes_scene.PATTERNS
    sizes: dict[str, tuple[float, float]]  # word -> radius from, to; the ranges keep a clear gap
    background: tuple[RGB, RGB]  # darkest and lightest corner of its gradients


def _area(outline: tuple[Point, ...]) -> float:
    turns = zip(outline, outline[1:] + outline[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turns)) / 2


def _ring(points: int, radius: float = 1.0, inner: float | None = None) -> tuple[Point, ...]:
    """A regular polygon that starts at the top; with `inner` every second corner lies on that radius."""
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(points)]
    angles = [2 * math.pi * i / points - math.pi / 2 for i in range(points)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def _heart() -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return tuple(
        (
            1.02 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.12,
        )
        for t in angles
    )


def _angles(start: float, end: float, count: int) -> list[float]:
    """`count` angles from start to end, both in half turns."""
    return [math.pi * (start + (end - start) * i / (count - 1)) for i in range(count)]


def _crescent() -> tuple[Point, ...]:
    """A disc without the disc through its two tips around (0.62, 0), moved to the middle."""
    tip_x, tip_y = math.cos(0.28 * math.pi), math.sin(0.28 * math.pi)
    radius, tip = math.hypot(tip_x - 0.62, tip_y), math.atan2(tip_y, tip_x - 0.62) / math.pi
    outer = [(math.cos(t), math.sin(t)) for t in _angles(0.28, 1.72, 30)]
    inner = [(0.62 + radius * math.cos(t), radius * math.sin(t)) for t in _angles(2 - tip, tip, 22)[1:-1]]
    return tuple((1.1 * (x + 0.2), 1.1 * y) for x, y in outer + inner)


def _drop() -> tuple[Point, ...]:
    arc = [(0.72 * math.cos(a), 0.3 + 0.72 * math.sin(a)) for a in _angles(-0.16, 1.16, 26)]
    return ((0.0, -1.15), *arc)


def _flower() -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 60 for i in range(60)]
    return tuple(
        ((0.8 + 0.3 * math.cos(5 * a)) * math.sin(a), -(0.8 + 0.3 * math.cos(5 * a)) * math.cos(a)) for a in angles
    )


_CROSS = tuple(
    (1.0 * x, 1.0 * y)
    for x, y in [(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)]
    + [(0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34)]
)
_ARROW = ((1.15, 0), (0.1, -0.95), (0.1, -0.42), (-1, -0.42), (-1, 0.42), (0.1, 0.42), (0.1, 0.95))
_SIZES = {"small": (0.085, 0.115), "large": (0.165, 0.215)}

WORLDS = {
    "default": World(
        palette={
            "red": (214, 32, 38),
            "green": (34, 150, 50),
            "blue": (38, 70, 220),
            "yellow": (246, 220, 30),
            "purple": (140, 40, 170),
            "orange": (248, 132, 12),
            "white": (250, 250, 250),
            "black": (16, 16, 18),
        },
        kinds={
            "circle": Kind("circles", _ring(40, 0.95)),
            "square": Kind("squares", ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)), turn=0.2),
            "triangle": Kind("triangles", _ring(3, 1.15), turn=0.35),
            "star": Kind("stars", _ring(10, 1.15, 0.5), turn=0.6),
            "cross": Kind("crosses", _CROSS, turn=0.3),
            "ring": Kind("rings", _ring(40, 1.0), _ring(40, 0.52)),
            "bar": Kind("bars", ((-1.15, -0.36), (1.15, -0.36), (1.15, 0.36), (-1.15, 0.36))),
        },
        textures=("plain", "striped", "dotted"),
        sizes=_SIZES,
        background=((124, 124, 124), (168, 168, 168)),
    ),
    "shifted": World(
        palette={
            "pink": (255, 150, 190),
            "teal": (0, 140, 140),
            "brown": (112, 62, 24),
            "lime": (170, 230, 40),
            "navy": (20, 26, 96),
            "cream": (255, 244, 200),
        },
        kinds={
            "heart": Kind("hearts", _heart(), turn=0.4),
            "crescent": Kind("crescents", _crescent()),
            "arrow": Kind("arrows", _ARROW),
            "drop": Kind("drops", _drop(), turn=0.5),
            "flower": Kind("flowers", _flower()),
        },
        textures=("framed", "checked"),
        sizes={"tiny": _SIZES["small"], "huge": _SIZES["large"]},
        background=((150, 135, 175), (196, 182, 206)),
    ),
}


def vocabulary(world: World) -> dict[str, tuple[str, ...]]:
    """Every attribute word of a world, by family."""
    return {
        "colours": tuple(world.palette),
        "nouns": tuple(world.kinds),
        "textures": world.textures,
        "sizes": tuple(world.sizes),
    }
