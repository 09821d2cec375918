"""Runs of evaluate.py as one page: a table per benchmark, with what is published of the released models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf.evaluation.report import flat

# (benchmarks, figures of a run that go into the table)
FIGURES = (
    (("shapes",), ("cIoU", "gIoU", "J&F", "emission", "silence")),
    (("refcoco", "refcoco+", "refcocog"), ("cIoU", "gIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9", "emission")),
    (("grefcoco",), ("gIoU", "cIoU", "N_acc", "T_acc")),
    (("reason_seg",), ("gIoU", "cIoU", "emission")),
    (("gcg",), ("METEOR", "CIDEr", "AP50", "mIoU", "recall")),
    (("region_caption",), ("METEOR", "CIDEr")),
    (("vstar_bench",), ("direct_attributes", "relative_position", "overall")),
    (
        ("revos",),
        tuple(f"{kind} / J&F" for kind in ("referring", "reasoning", "overall")) + ("overall / A", "overall / R"),
    ),
    (("davis17_vos",), ("J&F", "J_mean", "F_mean")),
    (("",), ("J&F", "J", "F")),  # every other one
)
CARD = "model card"
SA2VA_I = "Sa2VA-i's README"
CARD_FIGURES = ("RefCOCO", "RefCOCO+", "RefCOCOg", "MeViS val_u", "DAVIS")
CARDS = {
    "Sa2VA-InternVL3-2B": (81.4, 75.7, 80.3, 53.9, 74.5),
    "Sa2VA-InternVL3-8B": (83.3, 78.9, 81.8, 56.4, 76.3),
    "Sa2VA-InternVL3-14B": (83.6, 79.9, 83.6, 59.2, 76.6),
    "Sa2VA-Qwen2.5-VL-3B": (79.6, 74.0, 77.1, 51.6, 73.4),
    "Sa2VA-Qwen2.5-VL-7B": (82.4, 77.5, 81.5, 56.4, 79.4),
    "Sa2VA-Qwen3-VL-4B": (81.7, 77.4, 80.0, 57.1, 75.9),
}
REREAD = {  # J&F of the released weights on MeViS val, Ref-YouTube-VOS and Ref-DAVIS17, and with Sa2VA-i's inference
    "1B": ((47.0, 68.0, 69.5), (52.6, 70.3, 73.6)),
    "4B": ((46.4, 71.3, 73.7), (56.6, 73.2, 78.6)),
    "8B": ((51.5, 72.3, 75.9), (59.5, 73.9, 79.1)),
    "26B": ((52.1, 75.1, 78.6), (63.2, 76.5, 81.2)),
}
# Which column of the cards a benchmark stands in. The cards do not say the splits of the pictures' ones: the released
# script merges testA and testB into one "test".
CARD_COLUMN = {
    "refcoco": 0,
    "refcoco+": 1,
    "refcocog": 2,
    "mevis_val_u": 3,
    "ref_davis17": 4,
}
SPLIT_UNKNOWN = " (split not said)"
REREAD_COLUMN = {"mevis_val": 0, "ref_youtube_vos": 1, "ref_davis17": 2}


def page(files: Sequence[Path]) -> str:
    """The page of some metrics.json. ValueError when one is not what evaluate.py writes."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        run = read_run(file)
        runs[run["benchmark"]].append(run)
    parts = ["# Results\n\nIn percent. Runs of scripts/evaluate.py; what others published stands below a run."]
    parts += [_section(name, of_name) for name, of_name in sorted(runs.items())]
    return "\n\n".join(parts) + "\n"


def read_run(file: Path) -> dict[str, Any]:
    """metrics.json with "run" (date, commit, ...; from run.json beside it, where there is one)."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        if not {"benchmark", "recipe", "metrics"} <= found.keys():
            raise ValueError("it has no benchmark, recipe and metrics")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: expected a metrics.json of scripts/evaluate.py ({error})") from error
    beside = Path(file).with_name(f"{Path(file).stem}.run.json")
    found["run"] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return found


def _section(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    columns = figures_of(name)
    lines = ["| model | " + " | ".join(columns) + " | settings | date | commit |", "|---" * (len(columns) + 4) + "|"]
    for run in runs:
        figures = dict(flat(run["metrics"]))
        cells = [f"{figures[column]:.1f}" if column in figures else "" for column in columns]
        made = run["run"]
        cells = [
            str(run["recipe"].get("model")),
            *cells,
            _settings(run),
            made.get("date", "")[:10],
            made.get("commit") or "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for model, figure, value, source in published(name):
        cells = [f"{value:.1f}" if column == figure else "" for column in columns]
        lines.append("| " + " | ".join([model, *cells, source, "", ""]) + " |")
    return f"## {name}\n\n" + "\n".join(lines)


def figures_of(name: str) -> tuple[str, ...]:
    """The figures of a benchmark that go into its table."""
    family = name.rsplit("_", 1)[0]
    return next(figures for names, figures in FIGURES if name in names or family in names or names == ("",))


def published(name: str) -> list[tuple[str, str, float, str]]:
    """(model, figure, value, where it was published) for a benchmark."""
    family = name.rsplit("_", 1)[0]
    found = []
    column = CARD_COLUMN.get(name, CARD_COLUMN.get(family))
    if column is not None:
        figure, source = ("J&F", CARD) if column > 2 else ("cIoU", CARD + SPLIT_UNKNOWN)
        found += [(model, figure, values[column], source) for model, values in CARDS.items()]
    if (column := REREAD_COLUMN.get(name)) is not None:
        for size, rows in REREAD.items():
            for values, inference in zip(rows, ("as released", "Sa2VA-i's inference"), strict=True):
                found.append((f"Sa2VA-{size}, {inference}", "J&F", values[column], SA2VA_I))
    return found


def _settings(run: Mapping[str, Any]) -> str:
    """What differs from a plain run."""
    settings = run["recipe"].get("settings", {})
    shown = [settings.get("mode", "generate"), f"{settings['num_frames']} frames" if "num_frames" in settings else ""]
    shown += [f"{key} {settings[key]}" for key in ("baseline", "video_mode") if settings.get(key)]
    shown += [f"dtype {run['recipe']['dtype']}"] if run["recipe"].get("dtype") else []
    shown += [f"{key} {value}" for key, value in run["recipe"].get("options", {}).items()]
    shown += [f"{len(run['rejects'])} records left out"] if run.get("rejects") else []
    return ", ".join(filter(None, shown))
