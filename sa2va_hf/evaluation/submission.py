"""Clips whose masks are kept secret: predictions become the zip that the benchmark's server takes.

MeViS (its README, CodaLab guideline): the videos' folders directly in the zip. Ref-YouTube-VOS (ReferFormer's guide):
in a folder Annotations. In both VIDEO/EXPRESSION/FRAME.png.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va_hf.evaluation.items import Answer, Item
from sa2va_hf.evaluation.referring import CLIP_PROMPT, QUESTION_PROMPT, Referring, clip_prompt

FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # of files in the zip: the same predictions, the same bytes


@dataclass(frozen=True)
class Submission(Referring):
    """`folder`: what the paths in the zip start with: FOLDER/VIDEO/EXPRESSION/00000.png, 0 and 255."""

    folder: str = ""

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        shares = [answer.mask(item, frame).mean() for frame in range(item.sample.num_frames)]
        return {
            "score": float(np.mean(shares)),
            "said": bool(answer.masks),
        }  # the predicted share: nothing else is known

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        said = [answer.figures["said"] for answer in answers]
        return {"expressions": len(items), "emission": 100 * sum(said) / len(said)}

    def write(self, path: Path, items: Sequence[Item], answers: Sequence[Answer]) -> None:
        """The zip of all predictions, in the order of the items."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for item, answer in zip(items, answers, strict=True):
                for number, frame in enumerate(item.sample.frames):
                    png = io.BytesIO()
                    Image.fromarray(answer.mask(item, number).astype(np.uint8) * 255).save(png, "PNG")
                    name = "/".join([*filter(None, [self.folder]), item.sample.id, f"{Path(frame).stem}.png"])
                    archive.writestr(zipfile.ZipInfo(name, FIRST_DATE), png.getvalue())


def submission(folder: str) -> Submission:
    return Submission(clip_prompt, (CLIP_PROMPT, QUESTION_PROMPT), folder=folder)
