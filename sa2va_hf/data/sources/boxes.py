"""What the sources of boxes share: four numbers in any of the usual forms as a box of the schema.

The objects of these sources have a box and no mask: None, "not annotated". Training takes no mask loss from them.
"""

import math
from typing import Any

from sa2va_hf.data.schema import Object
from sa2va_hf.masks import Box

FORMS = ("xywh", "xyxy", "xyxy_normalized", "xxyy_normalized")
MIN_SIDE = 1.0  # pixels, as in MDETR's and mmdet's readers: what is thinner is a slip of the mouse
MIN_INSIDE = 0.5  # share of a box that must lie in the picture: with less, the form or the picture is the wrong one


def check_form(form: str, option: str) -> None:
    """ValueError when the value of an option is none of `FORMS`."""
    if form not in FORMS:
        raise ValueError(f"option {option} must be one of {', '.join(FORMS)}, got {form!r}")


def to_box(numbers: Any, form: str, height: int, width: int) -> Box:
    """Four numbers as (x0, y0, x1, y1) in pixels, cut at the picture's edges.

    form: "xywh" (COCO) or "xyxy" in pixels, "xyxy_normalized" or "xxyy_normalized" (OpenImages) in shares of the
    picture. ValueError when they are no numbers, the box is thinner than a pixel, or more of it is out of the picture
    than within.
    """
    check_form(form, "boxes")
    usable = isinstance(numbers, list | tuple) and len(numbers) == 4
    if not usable or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in numbers
    ):
        raise ValueError(f"its box must be 4 numbers ({form}), got {numbers!r:.80}")
    first, second, third, fourth = map(float, numbers)
    if form == "xywh":
        x0, y0, x1, y1 = first, second, first + third, second + fourth
    elif form == "xxyy_normalized":
        x0, x1, y0, y1 = first * width, second * width, third * height, fourth * height
    else:
        x0, y0, x1, y1 = first, second, third, fourth
        if form == "xyxy_normalized":
            x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        raise ValueError(f"its box {list(numbers)} ({form}) is {x1 - x0:g} x {y1 - y0:g} pixels: no object")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    inside = max(cut[2] - cut[0], 0.0) * max(cut[3] - cut[1], 0.0)
    if inside < MIN_INSIDE * (x1 - x0) * (y1 - y0):
        raise ValueError(f"its box {list(numbers)} ({form}) is mostly out of its picture of {width} x {height}")
    return cut


def box_object(annotation: dict, height: int, width: int, form: str = "xywh") -> Object:
    """The object of an annotation's `bbox`, without a mask. ValueError as `to_box`."""
    return Object([None], [to_box(annotation.get("bbox"), form, height, width)])
