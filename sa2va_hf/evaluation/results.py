"""Runs of evaluate.py as one page: a table per benchmark, with what is published of the released models.

Published figures stand beside whole runs of the published protocol only; a part of a benchmark, a given answer (mode
"teacher"), a baseline, other data or predictions of which it is not known how they were asked have a table of their
own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf.evaluation.benchmarks import get_benchmark
from sa2va_hf.evaluation.predictions import UNKNOWN
from sa2va_hf.evaluation.report import flat

CLIPS = ("J&F", "J", "F")
FIGURES = {  # of a run that go into the table, by benchmark or by its name without the split; CLIPS for the others
    "shapes": ("cIoU", "gIoU", "J&F", "emission", "silence"),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), ("cIoU", "gIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9", "emission")),
    "grefcoco": ("gIoU", "cIoU", "N_acc", "T_acc"),
    "reason_seg": ("gIoU", "cIoU", "emission"),
    "gcg": ("METEOR", "CIDEr", "AP50", "mIoU", "recall"),
    "region_caption": ("METEOR", "CIDEr"),
    "vstar_bench": ("direct_attributes", "relative_position", "overall"),
    "mevis_val_u": CLIPS,
    "mevis_v2_val_u": (*CLIPS, "any with a target / J&F", "N_acc", "T_acc", "total"),
    **dict.fromkeys(("mevis_val", "mevis_v2_val", "ref_youtube_vos"), ("J&F", "emission")),
    "revos": ("referring / J&F", "reasoning / J&F", "overall / J&F", "overall / A", "overall / R"),
    "ref_sav": ("long / J&F", "short / J&F", "overall / J&F", "overall / A"),
    "davis17_vos": ("J&F", "J_mean", "F_mean"),
}
CARD, SA2VA_I, SAM2 = "model card", "Sa2VA-i's README", "SAM 2's README"
# A model card does not say the split of the pictures (the released script merges testA and testB into one "test").
SPLIT_UNKNOWN = ", split not said"
CARD_COLUMNS = {  # benchmark -> (place in CARDS, figure)
    "refcoco": (0, "cIoU"),
    "refcoco+": (1, "cIoU"),
    "refcocog": (2, "cIoU"),
    "mevis_val_u": (3, "J&F"),
    "ref_davis17": (4, "J&F"),
    "revos": (5, "overall / J&F"),
}
CARDS = {  # RefCOCO, RefCOCO+, RefCOCOg, MeViS, Ref-DAVIS17, ReVOS
    "Sa2VA-1B": (77.4, 69.9, 72.3, 50.8, 72.3, 47.6),
    "Sa2VA-4B": (78.9, 71.7, 74.1, 52.1, 73.8, 53.2),
    "Sa2VA-8B": (81.6, 76.2, 78.7, 57.0, 75.2, 57.6),
    "Sa2VA-InternVL3-2B": (81.4, 75.7, 80.3, 53.9, 74.5),
    "Sa2VA-InternVL3-8B": (83.3, 78.9, 81.8, 56.4, 76.3),
    "Sa2VA-InternVL3-14B": (83.6, 79.9, 83.6, 59.2, 76.6),
    "Sa2VA-Qwen2_5-VL-3B": (79.6, 74.0, 77.1, 51.6, 73.4),
    "Sa2VA-Qwen2_5-VL-7B": (82.4, 77.5, 81.5, 56.4, 79.4),
    "Sa2VA-Qwen3-VL-4B": (81.7, 77.4, 80.0, 57.1, 75.9),
}
MEVIS_UNKNOWN = ("Sa2VA-1B", "Sa2VA-4B", "Sa2VA-8B")  # whose cards say MeViS without its split; the others say val_u
REREAD_COLUMN = {"mevis_val": 0, "ref_youtube_vos": 1, "ref_davis17": 2}
REREAD = {  # J&F of the released weights on MeViS, Ref-YouTube-VOS and Ref-DAVIS17, and with Sa2VA-i's inference
    "Sa2VA-1B": (47.0, 68.0, 69.5),
    "Sa2VA-i-1B": (52.6, 70.3, 73.6),
    "Sa2VA-4B": (46.4, 71.3, 73.7),
    "Sa2VA-i-4B": (56.6, 73.2, 78.6),
    "Sa2VA-8B": (51.5, 72.3, 75.9),
    "Sa2VA-i-8B": (59.5, 73.9, 79.1),
    "Sa2VA-26B": (52.1, 75.1, 78.6),
    "Sa2VA-i-26B": (63.2, 76.5, 81.2),
}
SAV_TEST = {  # J&F of SAM 2 alone
    "SAM 2.1 tiny": 76.5,
    "SAM 2.1 small": 76.6,
    "SAM 2.1 base+": 78.2,
    "SAM 2.1 large": 79.5,
    "SAM 2 tiny": 75.0,
    "SAM 2 small": 74.9,
    "SAM 2 base+": 74.7,
    "SAM 2 large": 76.0,
}
# Expressions of MeViS's first version (its README), of which the published figures are. The second one (907 and 2523)
# has others beside them, and some that mean nothing.
EXPRESSIONS = {"mevis_val_u": 793, "mevis_val": 2236, "mevis_v2_val_u": 907, "mevis_v2_val": 2523}
PLACES = ("images", "frames")  # options that only say where pictures lie
HEAD = """# Results

In percent. Runs of scripts/evaluate.py; below them what is published. Sa2VA's own figures of clips were made with
the first 5 frames and its memory (`--num_frames 5 --video_mode memory`)."""
OTHERS = "Not the whole benchmark by its own protocol, hence not comparable with published figures:"


def page(files: Sequence[Path | str]) -> str:
    """The page of some metrics.json. ValueError when one is not what evaluate.py writes."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        run = read_run(file)
        runs[run["benchmark"]].append(run)
    return "\n\n".join([HEAD, *(_section(name, of_name) for name, of_name in sorted(runs.items()))]) + "\n"


def read_run(file: Path | str) -> dict[str, Any]:
    """metrics.json with "run" (date, commit, ...; from run.json beside it, where there is one) and "differs", what
    makes its protocol another one than the published. ValueError naming the file that cannot be read."""
    file = Path(file)
    found = _read(Path(file), {"benchmark": str, "recipe": dict, "metrics": dict})
    beside = Path(file).with_name(f"{Path(file).stem}.run.json")
    found["run"] = _read(beside, {}) if beside.is_file() else {}
    try:
        found["differs"] = list(differences(found))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file}: its recipe is not as scripts/evaluate.py writes it ({error})") from error
    return found


def _read(file: Path, keys: Mapping[str, type]) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}, not a dict")
        for key, kind in keys.items():
            if not isinstance(found.get(key), kind):
                raise ValueError(f"{key!r} must be a {kind.__name__}, got {found.get(key)!r:.60}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a {file.name} of scripts/evaluate.py ({error})") from error
    return found


def differences(run: Mapping[str, Any]) -> Iterator[str]:
    """What a run did in another way than the published protocol of its benchmark. ValueError for an unknown one."""
    benchmark, recipe = get_benchmark(run["benchmark"]), run["recipe"]
    settings = recipe.get("settings", {})
    if run.get("asked") == UNKNOWN:
        yield "not known how it was asked"
    if (mode := settings.get("mode", "generate")) != "generate":
        yield f"mode {mode}"
    if settings.get("baseline"):
        yield f"baseline {settings['baseline']}"
    if run.get("rejects"):
        yield f"{len(run['rejects'])} records skipped"
    if recipe.get("limit"):
        yield f"the first {recipe['limit']} items only"
    elif (usual := EXPRESSIONS.get(run["benchmark"])) and (count := recipe.get("items", usual)) != usual:
        yield f"{count} expressions (of the published data: {usual})"
    data = recipe | recipe.get("scored", {})
    if (split := data.get("split") or benchmark.split) != benchmark.split:
        yield f"split {split}"
    options = data.get("options", {})
    for name in sorted((options.keys() | benchmark.options.keys()) - set(PLACES)):
        if options.get(name) != benchmark.options.get(name):
            yield f"{name} {options[name]}" if name in options else f"without {name}"


def _section(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    whole, others = ([run for run in runs if bool(run["differs"]) == differs] for differs in (False, True))
    beside = [
        [model, *_cells(name, {figure: value}), source, "", ""] for model, figure, value, source in published(name)
    ]
    parts = [f"## {name}"]
    if whole or beside:
        parts.append(_table(name, [_row(name, run) for run in whole] + beside))
    if others:
        parts += [OTHERS, _table(name, [_row(name, run) for run in others])]
    return "\n\n".join(parts)


def _table(name: str, rows: Sequence[Sequence[str]]) -> str:
    head = ["model", *figures_of(name), "settings", "date", "commit"]
    safe = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in safe]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _row(name: str, run: Mapping[str, Any]) -> list[str]:
    model = run["recipe"].get("model") or "not said"
    made = run["run"]
    cells = _cells(name, dict(flat(run["metrics"])))
    return [str(model), *cells, _settings(run), str(made.get("date") or "")[:10], str(made.get("commit") or "")]


def _cells(name: str, figures: Mapping[str, Any]) -> list[str]:
    values = [figures.get(figure) for figure in figures_of(name)]
    return [f"{value:.1f}" if isinstance(value, int | float) else "" for value in values]


def figures_of(name: str) -> tuple[str, ...]:
    """The figures of a benchmark that go into its table."""
    return FIGURES.get(name) or FIGURES.get(name.rsplit("_", 1)[0]) or CLIPS


def published(name: str) -> list[tuple[str, str, float, str]]:
    """(model, figure, value, where it was published) for a benchmark."""
    found = []
    family = name.rsplit("_", 1)[0]
    if place := CARD_COLUMNS.get(name) or CARD_COLUMNS.get(family):
        column, figure = place
        for model, values in CARDS.items():
            vague = figure == "cIoU" or (name == "mevis_val_u" and model in MEVIS_UNKNOWN)
            if column < len(values):
                found.append((model, figure, values[column], CARD + SPLIT_UNKNOWN * vague))
    if name in REREAD_COLUMN:
        source = SA2VA_I + SPLIT_UNKNOWN * (name == "mevis_val")
        found += [(model, "J&F", values[REREAD_COLUMN[name]], source) for model, values in REREAD.items()]
    if name == "sav_test":
        found += [(model, "J&F", value, SAM2) for model, value in SAV_TEST.items()]
    return found


def _settings(run: Mapping[str, Any]) -> str:
    """What a run was made with: how it differs from the published protocol, then what may differ within it."""
    settings = run["recipe"].get("settings", {})
    shown = [*run["differs"]]
    if any("J&F" in figure for figure in figures_of(run["benchmark"])):
        shown += [f"{settings['num_frames']} frames"] if "num_frames" in settings else []
        shown += [settings["video_mode"]] if settings.get("video_mode") else []
    shown += [f"dtype {run['recipe']['dtype']}"] if run["recipe"].get("dtype") else []
    return ", ".join(map(str, shown))
