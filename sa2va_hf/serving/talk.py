"""One user's conversation in the demo: what was uploaded, asked and answered, and how it is shown. Never shared."""

from __future__ import annotations

import html
import json
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va_hf.drawing import COLOURS, overlay, second_tone
from sa2va_hf.masks import decode
from sa2va_hf.prediction import write_clip
from sa2va_hf.serving.limits import Limits
from sa2va_hf.serving.media import IMAGE_FORMS, Region, Video, VideoFrames, Visual, form_of, read_image, read_video
from sa2va_hf.serving.pen import Stroke, draw_regions
from sa2va_hf.serving.session import PARTS, SEG_TOKEN, phrases_of

SHOWN = 640  # pixels that the longer side of a small image is enlarged to, so that labels and outlines are fine


@dataclass(frozen=True)
class Talk:
    """Immutable, so that two events of one user cannot mix.

    Args:
        visual: an uploaded image or video. regions: region1, region2, ... of an image.
        turns: (question, answer) pairs. masks: of the last answer, as `masks_json` writes them.
    """

    visual: Visual | None = None
    regions: tuple[Region, ...] = ()
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

    def draw(self, stroke: Stroke) -> Talk:
        """With what was drawn on the image as a region; on a video nothing changes."""
        if self.visual is None or isinstance(self.visual, Video):
            return self
        return replace(self, regions=stroke.add(self.regions, self.visual.size))

    def answered(self, question: str, answer: str, masks: Iterable[dict[str, Any]]) -> Talk:
        return replace(self, turns=(*self.turns, (question, answer)), masks=tuple(masks))

    def show(self, frame: int = 0, video: VideoFrames | None = None) -> Image.Image | None:
        """The image or a frame, with the masks of the last answer and the regions. video: `visual.open()`, where
        frames are shown one after the other."""
        if self.visual is None:
            return None
        opened = video or self.visual.open()
        image = opened[min(frame, len(opened) - 1)] if isinstance(self.visual, Video) else opened
        scale = _scale(image.size)
        drawn = self._overlay(image.resize((image.width * scale, image.height * scale)), frame, scale)
        draw_regions(drawn, self.regions, self.visual.size, scale)
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
        """Path of a new zip in `folder`: the conversation, and the last answer's masks (JSON and PNG) and what they
        look like on the image (overlay.png) or the video (overlay.mp4)."""
        with tempfile.NamedTemporaryFile(dir=folder, prefix="sa2va-", suffix=".zip", delete=False) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                turns = [{"question": question, "answer": answer} for question, answer in self.turns]
                archive.writestr("answer.json", json.dumps({"turns": turns, "masks": list(self.masks)}, indent=1))
                for entry in self.masks:
                    name = f"masks/object{entry['index'] + 1}_frame{entry['frame']:05d}.png"
                    _write_png(archive, name, Image.fromarray(decode(entry["rle"]).astype(np.uint8) * 255))
                if isinstance(self.visual, Video):
                    with tempfile.NamedTemporaryFile(dir=folder, suffix=".mp4") as video:
                        frames = (self._overlay(image, frame) for frame, image in enumerate(self.visual.open()))
                        write_clip(frames, Path(video.name), self.visual.rate)
                        archive.write(video.name, "overlay.mp4")
                elif self.visual is not None:
                    _write_png(archive, "overlay.png", self._overlay(self.visual.open(), 0))
        return file.name

    def html(self, question: str | None = None, answer: str = "", note: str = "") -> str:
        """The conversation, and the turn that is under way. All text of users and models is escaped."""
        turns = [*self.turns, *([(question, answer)] if question is not None else [])]
        rows = []
        for number, (asked, said) in enumerate(turns, start=1):
            age = (
                "last" if number == len(self.turns) else "past"
            )  # the masks on the image are those of the last answer
            rows.append(f'<div class="turn user">{html.escape(asked)}</div>')
            rows.append(f'<div class="turn model {age}">{answer_html(said)}</div>')
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
