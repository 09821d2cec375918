"""Training data from a few photos: each one many times, cropped, mirrored and in other light."""

from __future__ import annotations

import io
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, load_from_disk
from PIL import Image, ImageEnhance

from ..data.media import load_frames
from ..data.schema import FEATURES, Object, Sample, from_row, to_row
from ..masks import decode, encode, mask_to_box

LONGEST = 320  # pixels of the longer side of a copy: the small model sees 128 to 256
UNCHANGED = 0.3  # share of the copies that are the whole photo
SMALLEST = 0.65  # of a photo's side that a crop keeps
SIDED = re.compile(r"\b(left|right)", re.IGNORECASE)  # a mirrored photo would make such a phrase wrong


def augmented(prepared: Path | str, output: Path | str, copies: int, seed: int = 0) -> int:
    """Writes a prepared folder of `copies` samples, made in turn from the images of `prepared`; returns their number.

    A copy is a crop of the image, mirrored half of the time (unless a phrase speaks of left or right), with another
    brightness, contrast and colour. Phrases whose objects the crop cuts off are not asked. Clips are used as they are.
    """
    prepared, output = Path(prepared), Path(output)
    originals = [from_row(row) for row in load_from_disk(str(prepared))]
    images = [load_frames(sample, [0])[0] if sample.num_frames == 1 else None for sample in originals]
    rows = []
    for number in range(copies):
        sample, image = (items[number % len(originals)] for items in (originals, images))
        name = f"{sample.id}-copy{number // len(originals)}"
        made = sample if image is None else copy_of(sample, image, random.Random(f"{seed}/{number}"))
        rows.append(to_row(replace(made, id=name)))
    shutil.rmtree(output, ignore_errors=True)
    Dataset.from_list(rows, features=FEATURES).save_to_disk(str(output))
    return len(rows)


def copy_of(sample: Sample, image: Image.Image, rng: random.Random) -> Sample:
    """One copy of a sample of one image, which is given as well."""
    masks = [None if thing.masks[0] is None else decode(thing.masks[0]) for thing in sample.objects]
    if rng.random() >= UNCHANGED:
        box = _crop(image.size, rng)
        cut = [None if mask is None else mask[box[1] : box[3], box[0] : box[2]] for mask in masks]
        if any(_kept(expression.targets, cut) for expression in sample.expressions):
            image, masks = image.crop(box), cut
        if rng.random() < 0.5 and not any(SIDED.search(expression.text) for expression in sample.expressions):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            masks = [None if mask is None else np.ascontiguousarray(mask[:, ::-1]) for mask in masks]
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(rng.uniform(0.75, 1.3))
    image, masks = _shrunk(image, masks)
    expressions = [e for e in sample.expressions if not e.targets or _kept(e.targets, masks)]
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    objects = [
        Object([None if m is None else encode(m)], [None if m is None else mask_to_box(m)], thing.category)
        for thing, m in zip(sample.objects, masks, strict=True)
    ]
    width, height = image.size
    return replace(
        sample,
        width=width,
        height=height,
        frames=[buffer.getvalue()],
        objects=objects,
        expressions=expressions,
        ignore=[],
    )


def _crop(size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    sides = [max(1, round(side * rng.uniform(SMALLEST, 1))) for side in size]
    corner = [rng.randint(0, side - kept) for side, kept in zip(size, sides, strict=True)]
    return corner[0], corner[1], corner[0] + sides[0], corner[1] + sides[1]


def _kept(targets: list[int], masks: list[np.ndarray | None]) -> bool:
    """Whether something of every target is in its mask."""
    return bool(targets) and all(masks[target] is not None and masks[target].any() for target in targets)


def _shrunk(image: Image.Image, masks: list[np.ndarray | None]) -> tuple[Image.Image, list[np.ndarray | None]]:
    scale = min(1.0, LONGEST / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if size == image.size:
        return image.convert("RGB"), masks
    small = [
        None if mask is None else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in masks
    ]
    return image.convert("RGB").resize(size), small
