"""Random samples of a prepared dataset with their masks, boxes and texts drawn, for a check by eye before training."""

import base64
import html
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.boxes import read
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Object, Sample, from_row
from sa2va_hf.drawing import contact_sheet, overlay
from sa2va_hf.model.frames import uniform_frames

FRAMES = 4  # of a clip, shown side by side
SIDE = 480  # pixels of a tile's longer side
ENLARGED = 3  # the largest scale of a small image

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.4 sans-serif;margin:24px}} figure{{margin:0 0 32px}} img{{max-width:100%}}
figcaption{{white-space:pre-wrap;max-width:80em}}</style>
<h1>{title}</h1>
{figures}
"""


@dataclass
class Drawn:
    """A sample as an image with masks, boxes and names drawn on it, and its text in lines."""

    picture: Image.Image
    lines: list[str]


def draw_samples(folder: Path | str, count: int = 24, seed: int = 0, by_expression: bool = False) -> list[Drawn]:
    """`count` random samples of a prepared dataset, in its order; all samples where it has fewer.

    by_expression: a drawing for each of their expressions, see `of_expression`.

    Raises:
        ValueError: the folder is no prepared dataset, or a file of a sample is missing or was changed.
    """
    if count < 1:
        raise ValueError(f"count: expected a positive number, got {count}")
    if not (Path(folder) / "dataset_info.json").is_file():
        raise ValueError(f"{folder}: no prepared dataset; run scripts/prepare_data.py with --output {folder}")
    rows = load_from_disk(str(folder))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    samples = (from_row(rows[int(number)]) for number in chosen)
    if by_expression:
        samples = (of_expression(sample, number) for sample in samples for number in range(len(sample.expressions)))
    return [draw_sample(sample) for sample in samples]


def of_expression(sample: Sample, number: int) -> Sample:
    """What an expression says: the sample with its objects alone, on the frames on which all of them are known.

    A box that is written in the expression becomes an object named "reference".
    """
    expression = sample.expressions[number]
    things = [sample.objects[target] for target in expression.targets]
    kept = [
        at
        for at in range(len(sample.annotated))
        if all(thing.masks[at] is not None or thing.boxes[at] is not None for thing in things)
    ]
    things = [
        replace(thing, masks=[thing.masks[at] for at in kept], boxes=[thing.boxes[at] for at in kept])
        for thing in things
    ]
    (written,) = read(expression.text, sample.width, sample.height, frames=1).frames
    things += [Object([None] * len(kept), [box] * len(kept), "reference") for box in written or ()]
    expression = replace(expression, targets=list(range(len(expression.targets))))
    annotated, ignore = ([values[at] for at in kept] if values else [] for values in (sample.annotated, sample.ignore))
    return replace(
        sample, annotated=annotated, objects=things, expressions=[expression], turns=[], regions=[], ignore=ignore
    )


def draw_sample(sample: Sample) -> Drawn:
    """All masks and boxes of a sample, on its image or on up to FRAMES frames of its clip, and all its text.

    Raises:
        ValueError: a file of the sample is missing or was changed.
    """
    if sample.num_frames == 0:
        return Drawn(Image.new("RGB", (SIDE, 24), "white"), _lines(sample))
    annotated = sample.annotated or list(range(sample.num_frames))
    positions = uniform_frames(len(annotated), FRAMES)
    pictures = load_frames(sample, [annotated[position] for position in positions])
    tiles = [_draw_frame(sample, picture, position) for picture, position in zip(pictures, positions, strict=True)]
    if len(tiles) == 1:
        return Drawn(tiles[0], _lines(sample))
    captions = [f"frame {annotated[position]}" for position in positions]
    return Drawn(contact_sheet(tiles, len(tiles), captions), _lines(sample))


def save_sheet(drawn: list[Drawn], path: Path | str, title: str = "samples", columns: int = 3) -> None:
    """Writes a .png, or one self-contained .html file.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".png":
        contact_sheet([one.picture for one in drawn], columns, ["\n".join(one.lines) for one in drawn]).save(path)
    elif path.suffix in (".html", ".htm"):
        path.write_text(_PAGE.format(title=html.escape(title), figures="\n".join(map(_figure, drawn))), "utf-8")
    else:
        raise ValueError(f"{path}: expected a file name that ends with .png or .html")


def _figure(drawn: Drawn) -> str:
    file = io.BytesIO()
    drawn.picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    text = html.escape("\n".join(drawn.lines))
    return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _draw_frame(sample: Sample, picture: Image.Image, position: int) -> Image.Image:
    """The image is scaled to SIDE before drawing, so that lines and names have the same size on all tiles."""
    scale = min(SIDE / max(picture.size), ENLARGED)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    layers, boxes, names = [], [], []
    for number, obj in enumerate(sample.objects):
        layers.append(_shrunk(obj.masks[position], sample, size))
        box = obj.boxes[position]
        absent = box is None or box[2] <= box[0] or box[3] <= box[1]
        boxes.append(None if absent else [value * scale for value in box])
        region = f"region{sample.regions.index(number) + 1} " if number in sample.regions else ""
        names.append(f"{region}{number}{': ' + obj.category if obj.category else ''}")
    if sample.ignore and sample.ignore[position] is not None:
        layers.append(_shrunk(sample.ignore[position], sample, size))
        boxes.append(None)
        names.append("ignored")
    seen = [name if mask.any() or box else None for name, mask, box in zip(names, layers, boxes, strict=True)]
    return overlay(picture.resize(size, Image.Resampling.BICUBIC), layers, boxes, seen)


def _shrunk(rle: masks.RLE | None, sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """A mask at the size of the tile; empty where the mask is unknown."""
    if rle is None:
        return np.zeros(size[::-1], bool)
    return np.asarray(Image.fromarray(masks.decode(rle)).resize(size, Image.Resampling.NEAREST))


def _lines(sample: Sample) -> list[str]:
    lines = [f"{sample.id} ({sample.task}, {sample.width} x {sample.height}, {sample.num_frames} frames)"]
    for expression in sample.expressions:
        meant = ", ".join(map(str, expression.targets)) or "nothing"
        lines.append(f"{expression.text} -> {meant}" + (f" ({expression.kind})" if expression.kind else ""))
    for turn in sample.turns:
        meant = "; ".join(", ".join(map(str, targets)) for targets in turn.targets)
        lines += [f"Q: {turn.question}", f"A: {turn.answer}" + (f" -> {meant}" if meant else "")]
    return lines
