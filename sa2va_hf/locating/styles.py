"""How a model is asked for boxes, and how what it writes is read.

A model that was trained to answer with boxes per frame has the tokens of that form. Every other one asks and answers
as its family of LLMs does; these forms are those of InternVL's model cards, of Qwen2.5-VL's fine-tuning example and of
Qwen3-VL's grounding cookbook. They know pictures only, so the frames of a clip are shown one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from sa2va_hf.boxes import GRID, NEXT, NO_BOX, SEPARATOR


@dataclass(frozen=True)
class BoxStyle:
    """prompt: how a box is asked for. in_pixels: it is written in pixels of the picture as the LLM gets it, which is
    resized, instead of in thousandths of its sides. clips: one answer holds the boxes of all frames of a clip."""

    prompt: str
    in_pixels: bool = False
    clips: bool = False


BOX_STYLES = {  # by the `model_type` of the LLM
    "internvl": BoxStyle(  # <ref>the dog</ref><box>[[x0, y0, x1, y1]]</box>
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
    ),
    "qwen2_5_vl": BoxStyle(  # {"bbox_2d": [x0, y0, x1, y1], "label": "the dog"}, as is the next
        "<image>\nLocate {} in this image and output the bbox coordinates in JSON format.", in_pixels=True
    ),
    "qwen3_vl": BoxStyle(
        '<image>\nLocate every object that matches the description "{}" in the image. '
        "Report bbox coordinates in JSON format."
    ),
}
TRAINED = BoxStyle("Give the bounding box of {} in every frame.", clips=True)
TRAINED_TOKENS = (NEXT, SEPARATOR, NO_BOX)


def style_of(model_type: str, vocabulary: dict[str, int]) -> BoxStyle:
    """The style of a model, by its LLM's `model_type` and its tokens.

    Raises:
        ValueError: a family of LLMs that is not known.
    """
    if all(token in vocabulary for token in TRAINED_TOKENS):
        return TRAINED
    if model_type not in BOX_STYLES:
        raise ValueError(f"boxes: expected an LLM of {', '.join(BOX_STYLES)}, got {model_type!r}")
    return BOX_STYLES[model_type]


def sides(style: BoxStyle, processor: Any, picture: Image.Image) -> tuple[int, int]:
    """What integers in an answer call the width and the height of a picture."""
    if not style.in_pixels:
        return GRID, GRID
    *_, rows, columns = processor.pictures.inputs([([picture], False)])["image_grid_thw"][0].tolist()
    return columns * processor.pictures.patch_size, rows * processor.pictures.patch_size
