"""`shapes`, the embedded data source: drawn pictures and clips with exact masks, boxes and text for every task.

Sample `index` of a split is a pure function of (seed, split, index, options): nothing is stored or downloaded, and two
splits never share a random stream. shapes_scene.py draws, shapes_text.py and shapes_dialogue.py find the words.
"""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_hf.data.schema import Object, Sample
from sa2va_hf.data.shapes.dialogue import DIALOGUES
from sa2va_hf.data.shapes.scene import MIN_VISIBLE, Options, Scene, Shape, draw, draw_scene, render
from sa2va_hf.data.shapes.text import ATTRIBUTES, expressions
from sa2va_hf.data.shapes.world import WORLDS, Kind, World
from sa2va_hf.masks import encode, mask_to_box

__all__ = [
    "WORLDS",
    "Kind",
    "Options",
    "Scene",
    "Shape",
    "World",
    "draw",
    "draw_scene",
    "expressions",
    "render",
    "shapes",
]

SPLITS = ("train", "val", "test")
TASKS = ("referring", *DIALOGUES)
TRIES = 200  # scenes to draw for one sample before giving up


def shapes(
    root: Path | str | None = None,
    split: str = "train",
    *,
    size: int = 128,
    world: str = "default",
    min_objects: int = 1,
    max_objects: int = 4,
    count: int = 1000,
    start: int = 0,
    seed: int = 0,
    clip_fraction: float = 0.0,
    num_frames: int = 8,
    tasks: tuple[str, ...] = ("referring",),
    kinds: tuple[str, ...] | None = None,
    attributes: tuple[str, ...] = ATTRIBUTES,
    max_expressions: int = 12,
    embed: bool = True,
    **looks,
) -> Iterator[Sample]:
    """Samples `start` ... `start + count - 1` of a split.

    size: pixels of the square picture.
    clip_fraction: share of the samples that are clips of num_frames frames.
    tasks: some of TASKS, one drawn per sample.
    kinds: expression kinds of the referring task, some of shapes_text.EXPRESSION_KINDS; None = all.
    attributes: those that referring expressions may name, some of shapes_text.ATTRIBUTES.
    embed: frames as PNG bytes; False: as PNG files below root / split.
    looks: further fields of `Options` (max_overlap, colours, nouns, textures, sizes).
    ValueError for an option that cannot be met.
    """
    _check(root, split, clip_fraction, num_frames, tasks, attributes, embed)
    still = Options(size, world, min_objects, max_objects, 1, **looks)
    clip = Options(size, world, min_objects, max_objects, num_frames, **looks)
    for index in range(start, start + count):
        # a string seed goes through SHA-512: no two (seed, split, index) share a stream
        rng = random.Random(f"shapes/{seed}/{split}/{index}")
        options = clip if rng.random() < clip_fraction else still
        task = rng.choice(tasks)
        for _ in range(TRIES):
            scene, frames, masks = draw(rng, options)
            text = _text(scene, masks, rng, task, kinds, attributes, max_expressions)
            if text is not None:
                break
        else:
            raise ValueError(
                f"no text for task {task!r} in {TRIES} scenes: {kinds=}, {attributes=} never apply to {options}"
            )
        sample = Sample(
            id=f"shapes-{world}-{split}-{seed}-{index}",
            task=task,
            width=size,
            height=size,
            frames=[_png(frame) for frame in frames],
            objects=[_object(shape, of_shape) for shape, of_shape in zip(scene.shapes, masks, strict=True)],
            source="shapes",
            **text,
        )
        if not embed:
            sample.frames = _store(Path(root) / split, sample.id, sample.frames)
        yield sample


def _text(scene, masks, rng, task, kinds, attributes, max_expressions) -> dict | None:
    """The sample's expressions, or its turns and regions; None when this scene offers none."""
    if task == "referring":
        found = expressions(scene, rng, kinds, attributes, max_expressions)
        return {"expressions": found} if found else None
    visible = [i for i, of_shape in enumerate(masks) if np.count_nonzero(of_shape[0]) >= MIN_VISIBLE]
    dialogue = DIALOGUES[task](scene, rng, visible)
    return dialogue and {"turns": dialogue[0], "regions": dialogue[1]}


def _check(root, split, clip_fraction, num_frames, tasks, attributes, embed) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    if not 0 <= clip_fraction <= 1:
        raise ValueError(f"clip_fraction: expected a share between 0 and 1, got {clip_fraction}")
    if clip_fraction and num_frames < 4:
        raise ValueError(f"num_frames: a clip needs at least 4 frames to leave and come back, got {num_frames}")
    if not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks: expected some of {TASKS}, got {tasks}")
    if not attributes or not set(attributes) <= set(ATTRIBUTES):
        raise ValueError(f"attributes: expected some of {ATTRIBUTES}, got {attributes}")
    if not embed and root is None:
        raise ValueError("root: embed=False writes the frames to files, so it needs a folder; got None")


def _object(shape: Shape, masks: list[np.ndarray]) -> Object:
    """An object that is off the frame has an empty mask there (annotated as absent) and no box."""
    return Object(masks=[encode(m) for m in masks], boxes=[mask_to_box(m) for m in masks], category=shape.kind)


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _store(folder: Path, name: str, frames: list[bytes]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{number:03d}.png" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        path.write_bytes(frame)
    return [str(path) for path in paths]
