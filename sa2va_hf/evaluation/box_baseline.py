"""A baseline without training: the LLM writes the box of an expression, SAM 2 predicts the mask of that box.

The question that each family of LLMs is asked: see `locating.styles`.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sa2va_hf import masks
from sa2va_hf.boxes import Box, read
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.sources.folder_parts import Shapes
from sa2va_hf.evaluation.following import follow
from sa2va_hf.evaluation.items import Answer, Item, Settings
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.locating.styles import BOX_STYLES, sides
from sa2va_hf.model.frames import uniform_frames
from sa2va_hf.pseudo_labels import prompted_mask


def box_prompt(settings: Settings) -> str:
    """The question for a box in the style of an LLM family.

    Raises:
        ValueError: `settings.box_style` is missing or unknown.
    """
    if settings.box_style not in BOX_STYLES:
        raise ValueError(f"box_style: expected one of {', '.join(BOX_STYLES)}, got {settings.box_style!r}")
    return BOX_STYLES[settings.box_style].prompt


def ask_for_boxes(predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
    """The union of SAM 2's masks of the boxes; in a clip, SAM 2 then tracks that mask.

    Of a clip, `settings.num_frames` evenly spaced frames are asked about one by one as images, until a box is written
    for one of them; frames before it have empty masks.
    """
    shown = [uniform_frames(item.sample.num_frames, settings.num_frames) for item in items]
    answers = [Answer("", more={"boxes": [], "said": False}) for _ in items]
    waiting, turn = list(range(len(items))), 0
    while waiting := [number for number in waiting if not answers[number].masks and turn < len(shown[number])]:
        pictures = [load_frames(items[number].sample, [shown[number][turn]])[0] for number in waiting]
        questions = [items[number].question for number in waiting]
        replies = predictor(image=pictures, text=questions, max_new_tokens=settings.max_new_tokens)
        for number, picture, reply in zip(waiting, pictures, replies, strict=True):
            boxes = read_boxes(reply.text, picture, settings.box_style, predictor)
            answers[number] = _answer(predictor, items[number], shown[number][turn], picture, reply.text, boxes)
        turn += 1
    return answers


def read_boxes(text: str, picture: Image.Image, style: str, predictor: Sa2VAPredictor) -> list[Box]:
    """The boxes in a text that have an area, in pixels of the image."""
    (found,) = read(text, *picture.size, frames=1, sides=sides(BOX_STYLES[style], predictor.processor, picture)).frames
    return [box for box in found or () if box[2] > box[0] and box[3] > box[1]]


def _answer(
    predictor: Sa2VAPredictor, item: Item, frame: int, picture: Image.Image, text: str, boxes: list[Box]
) -> Answer:
    more = {"boxes": [list(box) for box in boxes], "frame": frame, "said": bool(boxes)}
    if not boxes:
        return Answer(text, more=more)
    mask = prompted_mask(predictor, picture, Shapes(boxes=boxes))[0]
    track = [masks.empty(picture.height, picture.width)] * item.sample.num_frames
    if item.sample.num_frames > 1 and mask.any():
        (track,) = follow(predictor, item.sample, [{frame: mask}])
    track[frame] = masks.encode(mask)
    return Answer(text, [track], more)
