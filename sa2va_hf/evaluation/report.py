"""What people look at: a table of the figures, the worst and best samples, and when and by what a run was made."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sa2va_hf.data.media import load_frames
from sa2va_hf.drawing import contact_sheet, overlay
from sa2va_hf.evaluation.items import Answer, Item
from sa2va_hf.masks import decode

SHOWN = 6  # worst samples, and as many of the best
TILE = 320  # pixels, the longer side
PACKAGES = ("torch", "transformers", "accelerate", "sam2", "numpy")


def flat(figures: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """("by_kind / colour / cIoU", 0.7), ... of nested figures."""
    for key, value in figures.items():
        path = f"{name} / {key}" if name else key
        if isinstance(value, Mapping):
            yield from flat(value, path)
        else:
            yield path, value


def table(name: str, figures: Mapping[str, Any]) -> str:
    """The figures as a markdown table."""
    rows = [
        f"| {path} | {value:.4f} |" if isinstance(value, float) else f"| {path} | {value} |"
        for path, value in flat(figures)
    ]
    return "\n".join([f"| {name} | |", "|---|---|", *rows]) + "\n"


def contact_sheet_of(items: Sequence[Item], answers: Sequence[Answer]) -> Image.Image:
    """The worst samples, then the best: the truth on the left, the prediction on the right, question and score below.

    Equal scores are sorted by key, so that the same answers give the same picture.
    """
    pairs = sorted(zip(items, answers, strict=True), key=lambda pair: (pair[1].figures["score"], pair[0].key))
    shown = pairs if len(pairs) <= 2 * SHOWN else pairs[:SHOWN] + pairs[-SHOWN:]
    captions = [
        f"{answer.figures['score']:.3f} {item.key}: {item.question.strip()} - {answer.text}" for item, answer in shown
    ]
    return contact_sheet([_tile(*pair) for pair in shown], columns=2, captions=captions)


def _tile(item: Item, answer: Answer) -> Image.Image:
    place = _worst_frame(answer) if item.sample.annotated else 0
    frame = item.sample.annotated[place] if item.sample.annotated else 0
    picture = load_frames(item.sample, [frame])[0]
    true = list(item.truth(place)) if item.targets else []
    drawn = [decode(track[frame]) for track in answer.masks if frame < len(track)]
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    both = Image.new("RGB", (2 * size[0], size[1]))
    for number, masks in enumerate((true, drawn)):
        both.paste(overlay(picture, masks).resize(size), (number * size[0], 0))
    return both


def _worst_frame(answer: Answer) -> int:
    """The place among the annotated frames of a clip where J is lowest."""
    frames = answer.figures.get("frames")
    return int(np.argmin(frames["J"])) if frames else 0


def run_record(processes: int) -> dict[str, Any]:
    """When and where: what may differ between runs that give the same figures."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processes": processes,
    }
    return found | {
        "device": device,
        "python": platform.python_version(),
        "versions": {p: version(p) for p in PACKAGES},
    }


def commit() -> str | None:
    """The package's git commit, "+" behind it when files are changed; None where there is no repository."""
    folder = Path(__file__).parent
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("+" if found[1] else "")
