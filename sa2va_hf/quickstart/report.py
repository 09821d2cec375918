"""What the quickstart says at the end: one line of figures, and what they mean."""

from __future__ import annotations

from pathlib import Path

LEARNED = 0.7  # cIoU from which the training photos count as learned

Figures = dict[str, dict[str, float]]  # name -> {"cIoU": ..., "gIoU": ...}


def last_line(figures: Figures, count: int) -> str:
    """All figures in one line. The answers are generated: the model wrote them itself, [SEG] included."""
    held_out = ", ".join(f"{name} {_pair(figures[name])}" for name in ("before", "after", "constant mask"))
    line = f"held-out cIoU / gIoU over {count} expressions (generated answers): {held_out}"
    if "training photos" in figures:
        line = f"training photos {_pair(figures['training photos'])}; {line}"
    return line


def explanation(figures: Figures, model: str) -> str:
    """What the figures of a run on a few photos say, and what to do about it."""
    after, constant, trained = (figures[name]["cIoU"] for name in ("after", "constant mask", "training photos"))
    if after > constant:
        return f"Held-out photos: cIoU {after:.3f}, better than a mask that is always the same ({constant:.3f})."
    text = f"Held-out photos: cIoU {after:.3f}, not better than a mask that is always the same ({constant:.3f}). "
    if trained < LEARNED:
        return text + (
            f"The model has not learned its training photos either (cIoU {trained:.3f}): training was too short on "
            "this machine. Give it a larger --minutes."
        )
    text += f"The model has learned its training photos (cIoU {trained:.3f}), but nothing that holds for others. "
    if model == "shapes-tiny":
        return text + (
            "shapes-tiny has seen drawn shapes only, and a few photos cannot teach it what things look like. Start "
            "from a real model (--model FOLDER_OR_HUB_ID, on a GPU), or give it more photos and a larger --minutes."
        )
    return text + "Give it more photos, or a larger --minutes."


def add_figures(card: Path, figures: Figures, count: int) -> None:
    """Adds the figures of generated answers to the end of a model card; makes the card where there is none."""
    rows = [f"| {name} | {values['cIoU']:.3f} | {values['gIoU']:.3f} |" for name, values in figures.items()]
    text = [
        "",
        "## Generated answers",
        "",
        f"The model wrote each answer itself, [SEG] included; {count} held-out expressions.",
        "",
        "| answers | cIoU | gIoU |",
        "|---|---|---|",
        *rows,
    ]
    before = card.read_text(encoding="utf-8") if card.is_file() else "# Sa2VA\n"
    card.write_text(before.rstrip("\n") + "\n" + "\n".join(text) + "\n", encoding="utf-8")


def _pair(values: dict[str, float]) -> str:
    return f"{values['cIoU']:.3f} / {values['gIoU']:.3f}"
