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
from sa2va_hf.drawing import PAPER, contact_sheet, overlay
from sa2va_hf.evaluation.items import Answer, Item, true_boxes
from sa2va_hf.masks import decode

SHOWN = 6  # worst samples, and as many of the best
WIDTH, HEIGHT, GAP = 320, 240, 4  # pixels: the largest size of an image, and the gap between the two of a tile
LONGEST = 300  # characters of a question or an answer
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
    """The figures as markdown: those of the whole benchmark, then a row for each group of samples (by kind, ...)."""
    whole = {key: value for key, value in figures.items() if not isinstance(value, Mapping)}
    parts = [_rows([name, ""], [[key, _cell(value)] for key, value in whole.items()])] if whole else []
    groups = dict(_groups({key: value for key, value in figures.items() if key not in whole}))
    if groups:
        columns = list(dict.fromkeys(column for group in groups.values() for column in group))
        cells = [[key, *(_cell(group.get(column, "")) for column in columns)] for key, group in groups.items()]
        parts.append(_rows([name if not whole else "", *columns], cells))
    return "\n\n".join(parts) + "\n"


def _groups(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, figures) of the innermost groups of nested figures."""
    for key, value in figures.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _groups(value)
        elif isinstance(value, Mapping):
            yield key, value


def _rows(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *cells)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def contact_sheet_of(items: Sequence[Item], answers: Sequence[Answer]) -> Image.Image:
    """The worst samples, then the best: ground truth and prediction, score, question and answer."""
    shown = worst_and_best(items, answers)
    return contact_sheet([_tile(*pair) for pair in shown], columns=2, captions=[_caption(*pair) for pair in shown])


def worst_and_best(items: Sequence[Item], answers: Sequence[Answer]) -> list[tuple[Item, Answer]]:
    """The worst and the best samples, at most SHOWN of each, sorted from the worst to the best.

    Neither half shows an image or clip twice. Among the best, expressions with targets come before those whose empty
    answer is correct. Equal scores are sorted by key, so that the same answers give the same contact sheet.
    """
    pairs = sorted(zip(items, answers, strict=True), key=lambda pair: (pair[1].figures["score"], pair[0].key))
    worst = _of_different_samples(pairs)
    shown = {item.key for item, _ in worst}
    rest = [pair for pair in pairs if pair[0].key not in shown]
    rest.sort(key=lambda pair: bool(pair[0].targets))
    return worst + _of_different_samples(rest[::-1])[::-1]


def _of_different_samples(pairs: Sequence[tuple[Item, Answer]]) -> list[tuple[Item, Answer]]:
    """The first pairs, at most SHOWN, each of a different sample."""
    first: dict[str, tuple[Item, Answer]] = {}
    for item, answer in pairs:
        first.setdefault(item.sample.id, (item, answer))
    return list(first.values())[:SHOWN]


def _caption(item: Item, answer: Answer) -> str:
    """Score, question, answer and, where there is one, the true text."""
    asked = item.question.removeprefix("<image>")
    said = [text for text in (_short(asked), _short(answer.text)) if text]
    name = f"{answer.figures['score']:.3f} {item.key}"
    right = f" (right: {_short(item.right)})" if item.right else ""
    return (f"{name}: {' - '.join(said)}" if said else name) + right


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _tile(item: Item, answer: Answer) -> Image.Image:
    """The ground truth beside the prediction; one image where no masks are required."""
    known = bool(item.sample.annotated)
    position = _worst_frame(item, answer) if known else 0
    frame = item.sample.annotated[position] if known else 0
    picture = load_frames(item.sample, [frame])[0]
    true = list(item.truth(position)) if item.targets and known else []
    drawn = [decode(track[frame]) for track in answer.masks if frame < len(track)]
    if _has_boxes(answer):
        true = _outlines(true_boxes(item, frame) or [], picture)
        drawn = _outlines(answer.more["boxes"].get(str(frame), []), picture)
    parts = [("truth" if known else "picture", true), ("prediction", drawn)]
    if not item.draws:
        parts = [("region" if true else None, true)]
    scale = min(WIDTH / picture.width, HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    width = max(WIDTH, len(parts) * (size[0] + GAP) - GAP)  # a narrow image leaves room for its caption
    tile = Image.new("RGB", (width, size[1]), PAPER)
    for number, (name, masks) in enumerate(parts):
        tinted = overlay(overlay(picture, masks).resize(size), [], labels=[name])
        tile.paste(tinted, (number * (size[0] + GAP), 0))
    return tile


def _has_boxes(answer: Answer) -> bool:
    """Whether boxes per frame are scored, not masks."""
    return isinstance(answer.more.get("boxes"), dict)


def _outlines(boxes: Sequence[Sequence[float]], picture: Image.Image) -> list[np.ndarray]:
    """Edges of boxes as masks of a picture, bool (H, W) each."""
    width = max(1, round(max(picture.size) / 160))
    found = []
    for box in boxes:
        x0, y0, x1, y1 = (round(value) for value in box)
        mask = np.zeros((picture.height, picture.width), bool)
        mask[y0:y1, x0:x1] = True
        mask[y0 + width : y1 - width, x0 + width : x1 - width] = False
        found.append(mask)
    return found


def _worst_frame(item: Item, answer: Answer) -> int:
    """The position among the annotated frames of a clip at which the mean J of its objects is lowest."""
    if _has_boxes(answer):
        return next((at for at, number in enumerate(item.sample.annotated) if str(number) in answer.more["boxes"]), 0)
    if "frames" in answer.figures:
        return int(np.argmin(answer.figures["frames"]["J"]))
    rows = [j for j, _ in answer.figures.get("objects", {}).values()]
    if not rows:
        return 0
    # the last annotated frame is not scored, and an object may be scored from a later one on than another
    count = max(map(len, rows))
    means = [np.mean([row[at - count] for row in rows if len(row) >= count - at]) for at in range(count)]
    return len(item.sample.annotated) - 1 - count + int(np.argmin(means))


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
