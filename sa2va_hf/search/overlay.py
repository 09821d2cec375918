"""A search drawn for a person: where it looked, in which order, why there, and what it found."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sa2va_hf.drawing import COLOURS, INK, PAPER
from sa2va_hf.search.patches import Crop
from sa2va_hf.search.picture import LargePicture
from sa2va_hf.search.result import SearchResult, Visit

SIDE = 1100  # pixels of the drawn picture's longer side
PANEL = 430  # pixels of the list beside it
LISTED = 20  # visits in the list
DIM = 0.4  # brightness of what was never looked at closely
FOUND, MISSED = COLOURS[2], COLOURS[3]


def draw_search(picture: LargePicture, result: SearchResult) -> Image.Image:
    """The picture with every visited crop, numbered in the order of visits and joined by a line, and a list of them.

    What was looked at in smaller crops is brighter. The colour of a crop is its level; what was found is green.
    """
    shown = picture.read(Crop(0, 0, *picture.size), SIDE)
    scale = shown.width / picture.size[0]
    canvas = _brightened(shown, result, scale)
    draw = ImageDraw.Draw(canvas)
    for visit in result.visits[1:]:
        x, y, width, height = (scale * value for value in visit.crop.xywh)
        inset = min(visit.level, 6)
        box = (x + inset, y + inset, max(x + width - inset, x + inset + 1), max(y + height - inset, y + inset + 1))
        draw.rectangle(box, outline=_colour(visit), width=max(5 - visit.level, 2))
    _path(draw, result, scale)
    _candidates(draw, result, scale)
    sheet = Image.new("RGB", (canvas.width + PANEL, max(canvas.height, _panel_height(result))), PAPER)
    sheet.paste(canvas, (0, 0))
    _list(ImageDraw.Draw(sheet), result, canvas.width + 12)
    return sheet


def _colour(visit: Visit) -> tuple[int, int, int]:
    return (COLOURS[1], COLOURS[0], COLOURS[4], COLOURS[5])[(visit.level - 1) % 4]


def _brightened(shown: Image.Image, result: SearchResult, scale: float) -> Image.Image:
    deepest = max((visit.level for visit in result.visits), default=1)
    light = np.full((shown.height, shown.width), DIM)
    for visit in sorted(result.visits, key=lambda one: one.level):
        x, y, width, height = (round(scale * value) for value in visit.crop.xywh)
        level = DIM + (1 - DIM) * (visit.level - 1) / max(deepest - 1, 1)
        light[y : y + height, x : x + width] = max(level, DIM)
    return Image.fromarray(np.rint(np.asarray(shown) * light[..., None]).astype(np.uint8))


def _path(draw: ImageDraw.ImageDraw, result: SearchResult, scale: float) -> None:
    middles = [
        (scale * (visit.crop.x + visit.crop.width / 2), scale * (visit.crop.y + visit.crop.height / 2))
        for visit in result.visits
    ]
    if len(middles) > 1:
        draw.line(middles, fill=PAPER, width=2, joint="curve")
    font = ImageFont.load_default(17)
    for number, ((x, y), visit) in enumerate(zip(middles, result.visits, strict=True), start=1):
        draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=FOUND if visit.hit else _colour(visit), outline=PAPER)
        draw.text((x, y), str(number), fill=(0, 0, 0), font=font, anchor="mm")


def _candidates(draw: ImageDraw.ImageDraw, result: SearchResult, scale: float) -> None:
    font = ImageFont.load_default(18)
    for number, one in enumerate(result.instances or result.near_misses):
        x0, y0, x1, y1 = (scale * value for value in one.box)
        pad = max(0.0, 18 - max(x1 - x0, y1 - y0)) / 2  # a frame around what is too small to see
        colour = FOUND if result.found else MISSED
        frame = (x0 - pad - 3, y0 - pad - 3, x1 + pad + 3, y1 + pad + 3)
        draw.rectangle(frame, outline=PAPER, width=6)
        draw.rectangle(frame, outline=colour, width=4)
        if number and not result.found:  # the names of near misses would cover each other
            continue
        text = f"{result.target if result.found else 'best candidate'} {one.score:.2f}"
        left = max(min(frame[0], result.size[0] * scale - font.getlength(text) - 8), 0)
        top = frame[1] - 26 if frame[1] > 26 else frame[3] + 4
        draw.rectangle((left, top, left + font.getlength(text) + 8, top + 23), fill=colour)
        draw.text((left + 4, top + 2), text, fill=PAPER, font=font)


def _panel_height(result: SearchResult) -> int:
    return 120 + 42 * (min(len(result.visits), LISTED) + 1)


def _list(draw: ImageDraw.ImageDraw, result: SearchResult, left: int) -> None:
    small, large = ImageFont.load_default(13), ImageFont.load_default(18)
    draw.text((left, 10), f"Search for: {result.target}"[:44], fill=INK, font=large)
    draw.text((left, 36), _wrapped(result.describe()), fill=FOUND if result.found else MISSED, font=small)
    for row, visit in enumerate(result.visits[:LISTED]):
        y = 96 + 42 * row
        draw.ellipse((left, y, left + 24, y + 24), fill=FOUND if visit.hit else _colour(visit))
        draw.text((left + 12, y + 12), str(visit.index + 1), fill=(0, 0, 0), font=small, anchor="mm")
        draw.text((left + 32, y - 3), "\n".join(_why(visit)), fill=INK, font=small)
    if len(result.visits) > LISTED:
        rest = f"and {len(result.visits) - LISTED} more crops, see trace.json"
        draw.text((left, 96 + 42 * LISTED), rest, fill=INK, font=small)


def _wrapped(text: str, length: int = 62) -> str:
    cut = text.rfind(" ", 0, length)
    return text if len(text) <= length or cut < 0 else f"{text[:cut]}\n{_wrapped(text[cut + 1 :], length)}"


def _why(visit: Visit) -> tuple[str, str]:
    """Two lines: what was seen in a crop, and what that led to."""
    score = "no candidate" if visit.score is None else f"best score {visit.score:.2f}"
    of = "" if visit.parent < 0 else f" of crop {visit.parent + 1}"
    seen = f"level {visit.level}{of}, {visit.crop.width} x {visit.crop.height}: {score}"
    if visit.hit:
        return seen, "found"
    if visit.cue is None:
        return seen, "smallest size, not split" if visit.leaf else "the search ended here"
    heat = f"heat {visit.heat:.1f}, threshold {visit.threshold:.1f}"
    if visit.cue == "target":
        return seen, f"{heat}: follow the target's heat"
    if visit.cue == "context":
        return seen, f"{heat}: look for '{visit.phrase}'"[:64]
    return seen, f"{heat}: weak, but all there is"
