"""The sheets that the quickstart writes: truth beside prediction, with hits and misses marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..drawing import contact_sheet, overlay
from .questions import Question, iou

SIDE = 256  # pixels of the longer side of an image on a sheet
BORDER = 5
HIT_IOU = 0.5  # an answer above it is a hit
COLOURS = {True: (0, 140, 70), False: (200, 40, 30), None: (120, 120, 120)}  # hit, miss, truth


def picture_sheet(asked: Sequence[Question], answers: dict[str, Sequence[np.ndarray]], rows: int = 6) -> Image.Image:
    """Truth and the `answers` (name -> one mask per question) for up to `rows` questions, evenly spread."""
    chosen = np.unique(np.linspace(0, len(asked) - 1, min(rows, len(asked))).astype(int))
    tiles, captions = [], []
    for i in chosen:
        tiles.append(tile(asked[i].image, asked[i].target, None))
        captions.append(f"{asked[i].phrase} (truth)")
        for name, masks in answers.items():
            value = iou(masks[i], asked[i].target)
            tiles.append(tile(asked[i].image, masks[i], value > HIT_IOU))
            captions.append(f"{name}: {verdict(value)}")
    columns = 1 + len(answers)
    return contact_sheet(tiles, columns=columns * (2 if len(chosen) > 3 else 1), captions=captions, font_size=15)


def clip_sheet(
    frames: Sequence[Image.Image], truth: np.ndarray, answer: np.ndarray, phrase: str, columns: int = 4
) -> Image.Image:
    """Rows of truth and rows of prediction in turn; truth, answer: bool (F, H, W)."""
    values = [iou(*pair) for pair in zip(answer, truth, strict=True)]
    tiles, captions = [], []
    for start in range(0, len(frames), columns):
        numbers = range(start, min(start + columns, len(frames)))
        empty = columns - len(numbers)  # the last rows may be shorter
        rows = (
            ([tile(frames[n], truth[n], None) for n in numbers], [f"frame {n}: {phrase} (truth)" for n in numbers]),
            (
                [tile(frames[n], answer[n], values[n] > HIT_IOU) for n in numbers],
                [f"frame {n}: {verdict(values[n])}" for n in numbers],
            ),
        )
        for pictures, texts in rows:
            tiles += pictures + [Image.new("RGB", (1, 1), (255, 255, 255))] * empty
            captions += texts + [""] * empty
    return contact_sheet(tiles, columns=columns, captions=captions, font_size=15)


def verdict(value: float) -> str:
    """An IoU in words."""
    return f"{'hit' if value > HIT_IOU else 'miss'}, IoU {value:.2f}"


def tile(image: Image.Image, mask: np.ndarray, hit: bool | None) -> Image.Image:
    """The image with its mask, SIDE pixels long, in a border that says hit, miss or truth (None)."""
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    large = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    picture = ImageOps.expand(overlay(image.resize(size), [large] if mask.any() else []), BORDER, COLOURS[hit])
    if hit is not None:
        _mark(ImageDraw.Draw(picture), picture.width, hit)
    return picture


def _mark(draw: ImageDraw.ImageDraw, width: int, hit: bool) -> None:
    """A tick or a cross on a plate in the upper right corner."""
    x, y, side = width - 28, 6, 22
    draw.rectangle((x, y, x + side, y + side), fill=COLOURS[hit])
    strokes = [[(5, 12), (9, 17), (17, 6)]] if hit else [[(6, 6), (16, 16)], [(16, 6), (6, 16)]]
    for stroke in strokes:
        draw.line([(x + dx, y + dy) for dx, dy in stroke], fill=(255, 255, 255), width=3)
