"""One user's conversation in the demo: what was uploaded, asked and answered, and how it is shown. Never shared."""

from __future__ import annotations

import html
import json
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sa2va_hf.drawing import COLOURS, overlay, second_tone
from sa2va_hf.masks import decode
from sa2va_hf.serving.limits import Limits
from sa2va_hf.serving.media import IMAGE_FORMS, Region, Video, Visual, form_of, read_image, read_video
from sa2va_hf.serving.session import PARTS, SEG_TOKEN, Answer, masks_json, phrases_of

SHOWN = 640  # pixels that the longer side of a small image is enlarged to, so that labels and outlines are fine


@dataclass(frozen=True)
class Talk:
    """Immutable, so that two events of one user cannot mix.

    Args:
        visual: an uploaded image or video. corner: the first click of a box that has no second yet, in pixels.
        turns: (question, answer) pairs. masks: of the last answer, as `masks_json` writes them.
    """

    visual: Visual | None = None
    regions: tuple[Region, ...] = ()
    corner: tuple[float, float] | None = None
    turns: tuple[tuple[str, str], ...] = ()
    masks: tuple[dict[str, Any], ...] = ()

    @classmethod
    def about(cls, data: bytes, limits: Limits) -> Talk:
        """A new conversation about a file's bytes. `Refused` when they are no image or video within the limits."""
        read = read_image if form_of(data) in IMAGE_FORMS else read_video
        return cls(visual=read(data, limits))

    @property
    def frames(self) -> int:
        return self.visual.frames if self.visual else 0

    def click(self, x: float, y: float) -> Talk:
        """A click on the shown image, in its pixels: the second one completes a box."""
        if self.visual is None or isinstance(self.visual, Video):
            return self
        scale = _scale(self.visual.size)
        x, y = x / scale, y / scale
        if self.corner is None:
            return replace(self, corner=(x, y))
        box = (*map(min, self.corner, (x, y)), *(max(a, b) + 1 for a, b in zip(self.corner, (x, y), strict=True)))
        return replace(self, corner=None, regions=(*self.regions, Region(box=box)))

    def answered(self, question: str, answer: Answer) -> Talk:
        masks = tuple(masks_json(answer.prediction))
        return replace(self, turns=(*self.turns, (question, answer.text)), masks=masks)

    def show(self, frame: int = 0) -> Image.Image | None:
        """The image or a frame, with the masks of the last answer and the region boxes."""
        if self.visual is None:
            return None
        opened = self.visual.open()
        image = opened[min(frame, len(opened) - 1)] if isinstance(self.visual, Video) else opened
        scale = _scale(image.size)
        drawn = self._overlay(image.resize((image.width * scale, image.height * scale)), frame, scale)
        pen, width = ImageDraw.Draw(drawn), max(2, max(drawn.size) // 300)
        for number, region in enumerate(self.regions, start=1):
            box = [value * scale for value in region.box]
            pen.rectangle(box, outline=(255, 255, 255), width=3 * width)
            pen.rectangle([box[0] + width, box[1] + width, box[2] - width, box[3] - width], outline=0, width=width)
            pen.text((box[0] + 4 * width, box[1] + 3 * width), f"region{number}", 0, font_size=18, stroke_width=3,
                     stroke_fill=(255, 255, 255))  # fmt: skip
        if self.corner is not None:
            x, y = (value * scale for value in self.corner)
            for extent, colour in ((12, (255, 255, 255)), (8, (0, 0, 0))):
                pen.ellipse((x - extent, y - extent, x + extent, y + extent), outline=colour, width=4)
        return drawn

    def _overlay(self, image: Image.Image, frame: int, scale: int = 1) -> Image.Image:
        entries = [entry for entry in self.masks if entry["frame"] == frame]
        masks = [decode(entry["rle"]).repeat(scale, 0).repeat(scale, 1) for entry in entries]
        labels = [
            (entry["phrase"] or f"{entry['index'] + 1}") if mask.any() else None
            for entry, mask in zip(entries, masks, strict=True)
        ]
        return overlay(image, masks, labels=labels)

    def archive(self, folder: Path) -> str:
        """Path of a new zip in `folder`: the conversation, and the last answer's masks (JSON and PNG) and overlays."""
        with tempfile.NamedTemporaryFile(dir=folder, prefix="sa2va-", suffix=".zip", delete=False) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                turns = [{"question": question, "answer": answer} for question, answer in self.turns]
                archive.writestr("answer.json", json.dumps({"turns": turns, "masks": list(self.masks)}, indent=1))
                for entry in self.masks:
                    name = f"masks/object{entry['index'] + 1}_frame{entry['frame']:05d}.png"
                    _write_png(archive, name, Image.fromarray(decode(entry["rle"]).astype(np.uint8) * 255))
                if self.visual is not None:
                    opened = self.visual.open()
                    for frame, image in enumerate(opened if isinstance(self.visual, Video) else [opened]):
                        _write_png(archive, f"overlay/{frame:05d}.png", self._overlay(image, frame))
        return file.name

    def html(self, question: str | None = None, answer: str = "", note: str = "") -> str:
        """The conversation, and the turn that is under way. All text of users and models is escaped."""
        turns = [*self.turns, *([(question, answer)] if question is not None else [])]
        rows = []
        for asked, said in turns:
            rows.append(f'<div class="turn user">{html.escape(asked)}</div>')
            rows.append(f'<div class="turn model">{answer_html(said)}</div>')
        if note:
            rows.append(f'<div class="note">{html.escape(note)}</div>')
        return f'<div class="talk">{"".join(rows)}</div>'


def answer_html(text: str) -> str:
    """An answer with every phrase in the colour of its mask; a [SEG] becomes the number of its mask."""
    phrases, pieces, index = phrases_of(text), [], 0
    for part in PARTS.split(text):
        if part.startswith("<p>"):
            phrase = part.removeprefix("<p>").removesuffix("</p>").strip()
            pieces.append(_coloured(phrase, index) if index < len(phrases) else html.escape(phrase))
        elif part == SEG_TOKEN:
            pieces.append(_coloured(f"{index + 1}", index))
            index += 1
        else:
            pieces.append(html.escape(part))
    return "".join(pieces)


def _coloured(text: str, index: int) -> str:
    colour = COLOURS[index % len(COLOURS)]
    style = f"background: rgb{colour}; color: rgb{second_tone(colour)}"
    return f'<span class="object" data-object="{index + 1}" style="{style}">{html.escape(text)}</span>'


def _scale(size: tuple[int, int]) -> int:
    return max(1, SHOWN // max(size))


def _write_png(archive: zipfile.ZipFile, name: str, image: Image.Image) -> None:
    with archive.open(name, "w") as file:
        image.save(file, "PNG")


def examples_of(folder: Path) -> list[list[str]]:
    """[file, question] of a folder with examples.json, a list of such pairs; file names are relative to it."""
    pairs = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [[str(folder / name), question] for name, question in pairs]
