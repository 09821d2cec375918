"""How a model is asked for boxes, and how what it writes is read.

A model that was trained to answer with boxes per frame has the tokens of that form. Every other one asks and answers
as its family of LLMs does; these forms are those of InternVL's model cards, of Qwen2.5-VL's fine-tuning example and of
Qwen3-VL's grounding cookbook. They know pictures only, so the frames of a clip are shown one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from sa2va_hf.boxes import GRID, NEXT, NO_BOX, PLAIN, SEPARATOR, SPATIAL, mention
from sa2va_hf.data.prompts.box_templates import box_question


@dataclass(frozen=True)
class BoxStyle:
    """prompt: how a box is asked for. in_pixels: it is written in pixels of the picture as the LLM gets it, which is
    resized, instead of in thousandths of its sides. clips: one answer holds the boxes of all frames of a clip. form:
    of boxes within a question, a name of `boxes.TEXT_FORMS`."""

    prompt: str
    form: str = PLAIN
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
TRAINED_TOKENS = (NEXT, SEPARATOR, NO_BOX)


def style_of(processor: Any) -> BoxStyle:
    """The style of a model, by what its processor says: a model that was trained to answer with boxes is asked as in
    its training, about all frames at once.

    Raises:
        ValueError: a family of LLMs that is not known.
    """
    vocabulary = processor.tokenizer.get_vocab()
    if processor.box_form or all(token in vocabulary for token in TRAINED_TOKENS):
        return BoxStyle("", form=processor.box_form or SPATIAL, clips=True)
    if processor.backbone not in BOX_STYLES:
        raise ValueError(f"boxes: expected an LLM of {', '.join(BOX_STYLES)}, got {processor.backbone!r}")
    return BOX_STYLES[processor.backbone]


def asked(style: BoxStyle, text: str, is_clip: bool, question: str | None = None) -> str:
    """The question about a phrase. question: one with {} for the phrase, in place of the style's.

    Raises:
        ValueError: a box within the phrase that has no area or lies beyond the picture.
    """
    phrase = mention(text.strip(), style.form, strict=True)
    if question is None and style.clips:
        return box_question(phrase, "", is_clip)
    return (question or style.prompt).replace("{}", phrase)


def sides(style: BoxStyle, processor: Any, picture: Image.Image) -> tuple[int, int]:
    """What integers in an answer call the width and the height of a picture."""
    if not style.in_pixels:
        return GRID, GRID
    *_, rows, columns = processor.pictures.inputs([([picture], False)])["image_grid_thw"][0].tolist()
    return columns * processor.pictures.patch_size, rows * processor.pictures.patch_size
