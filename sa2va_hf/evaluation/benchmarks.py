"""The benchmarks by name: where their samples come from, what is asked, how it is scored and summed.

    python scripts/evaluate.py --model DIR --benchmark refcoco_testA --root DIR --output metrics.json

Every split is a benchmark of its own: RefCOCO's testA and testB are never one number. To add a benchmark, enter it
in BENCHMARKS: a source (or a function like it) and a protocol, which has `items`, `ask`, `score` and `summarize`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from sa2va_hf.data.relations import KINDS
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.shapes.source import Options
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.evaluation import referring, roots, video_conventions
from sa2va_hf.evaluation.describing import Choice, GroundedCaption, RegionCaption
from sa2va_hf.evaluation.following import Following
from sa2va_hf.evaluation.items import Answer, Item, Settings
from sa2va_hf.evaluation.locating import Locating
from sa2va_hf.evaluation.presence import Presence
from sa2va_hf.evaluation.refcoco_m import refcoco_m
from sa2va_hf.evaluation.referring import Referring
from sa2va_hf.evaluation.submission import submission
from sa2va_hf.evaluation.tubes import SpatioTemporal
from sa2va_hf.inference import Sa2VAPredictor


class Task(Protocol):
    """What a benchmark does with its samples; figures of `score` are JSON and hold a "score" in 0..1."""

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]: ...
    def record(self, settings: Settings) -> dict[str, Any]: ...
    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]: ...
    def score(self, item: Item, answer: Answer) -> dict[str, Any]: ...
    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Benchmark:
    """`samples(root, split, **options)` as a source; `options` are those that make it this benchmark."""

    samples: Callable[..., Iterator[Sample | Reject]]
    split: str
    task: Task
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_root: bool = True


_PICTURES = Referring(referring.picture_prompt, (referring.PICTURE_PROMPT,))
_NO_TARGET = Referring(referring.picture_prompt, (referring.PICTURE_PROMPT,), no_target=True)
_CLIP_PROMPTS = (referring.CLIP_PROMPT, referring.QUESTION_PROMPT)
_CLIPS = Referring(referring.clip_prompt, _CLIP_PROMPTS)
_MEVIS_V2 = Referring(referring.clip_prompt, _CLIP_PROMPTS, absent_clips=True)
_VERBATIM = {"verbatim": True}  # spaces and full stops too are asked
_REVOS = Referring(referring.clip_prompt, _CLIP_PROMPTS, robustness=True, summary=video_conventions.summarize_revos)
_REF_SAV = Referring(referring.clip_prompt, _CLIP_PROMPTS, summary=video_conventions.summarize_ref_sav)
_REASON = Referring(
    referring.reasoning_prompt, (referring.PICTURE_PROMPT, referring.QUESTION_PROMPT), first_expression=True
)
_SHAPES = Referring(referring.shapes_prompt, (referring.SHAPES_PROMPT,), no_target=True)


def _shapes(root: Any, split: str, *, count: int = 200, clips: int = 20, **options: Any) -> Iterator[Sample | Reject]:
    """`count` images, then `clips` clips. options: those of the source "shapes"."""
    own = inspect.signature(SOURCES["shapes"]).parameters.values()
    known = {one.name for one in own if one.kind is one.KEYWORD_ONLY} | {one.name for one in fields(Options)}
    known -= {"clip_fraction"}  # `count` and `clips` say it
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"options of shapes: {', '.join(unknown)}: expected some of {', '.join(sorted(known))}, clips"
        )
    for kind, number, share in (("picture", count, 0.0), ("clip", clips, 1.0)):
        try:
            for sample in (
                SOURCES["shapes"](None, split, count=number, clip_fraction=share, **options) if number else ()
            ):
                sample.id = f"{kind}/{sample.id}"
                yield sample
        except TypeError as error:
            raise ValueError(f"options of shapes: {error}") from error


def _shapes_relations(
    root: Any, split: str, *, count: int = 100, clip_fraction: float = 0.5, kinds: Any = KINDS, **options: Any
) -> Iterator[Sample | Reject]:
    """Spatial relations in those of `count` scenes of shapes that have clear ones; options: of the sources
    "vos_relations" and "shapes"."""
    given = {"count": count, "clip_fraction": clip_fraction, "kinds": kinds} | options
    records = SOURCES["vos_relations"](None, split, base="shapes", **given)
    yield from (record for record in records if isinstance(record, Sample))


def _refcoco() -> dict[str, Benchmark]:
    splits = {"refcoco": ("val", "testA", "testB"), "refcoco+": ("val", "testA", "testB"), "refcocog": ("val", "test")}
    found = {
        f"{name}_{split}": Benchmark(SOURCES[name], split, _PICTURES, {"text": "sent"})
        for name, of_name in splits.items()
        for split in of_name
    }
    for split in ("val", "testA", "testB"):
        found[f"grefcoco_{split}"] = Benchmark(SOURCES["grefcoco"], split, _NO_TARGET, {"text": "sent"})
    return found


BENCHMARKS: dict[str, Benchmark] = {
    "shapes": Benchmark(_shapes, "val", _SHAPES, needs_root=False),
    **_refcoco(),
    "refcoco_m": Benchmark(refcoco_m, "validation", _PICTURES),
    "reason_seg_val": Benchmark(SOURCES["reason_seg"], "val", _REASON, {"explain": False}),
    "reason_seg_test": Benchmark(SOURCES["reason_seg"], "test", _REASON, {"explain": False}),
    "gcg_val": Benchmark(roots.grand_f_eval, "val", GroundedCaption()),
    "gcg_test": Benchmark(roots.grand_f_eval, "test", GroundedCaption()),
    "region_caption": Benchmark(SOURCES["refcocog"], "val", RegionCaption(), {"text": "sent"}),
    "vstar_bench": Benchmark(roots.vstar_bench, "", Choice()),
    "mevis_val_u": Benchmark(SOURCES["mevis"], "valid_u", _CLIPS, _VERBATIM),
    "mevis_val": Benchmark(roots.unmasked_clips, "valid", submission("")),
    "mevis_v2_val_u": Benchmark(SOURCES["mevis"], "valid_u", _MEVIS_V2, _VERBATIM | {"version": 2}),
    "mevis_v2_val": Benchmark(roots.unmasked_clips, "valid", submission(""), {"version": 2}),
    "ref_youtube_vos": Benchmark(roots.unmasked_clips, "valid", submission("Annotations")),
    "ref_davis17": Benchmark(SOURCES["ref_davis17"], "valid", _CLIPS, _VERBATIM),
    "revos": Benchmark(SOURCES["revos"], "valid", _REVOS, _VERBATIM),
    "ref_sav": Benchmark(SOURCES["ref_sav_eval"], "valid", _REF_SAV, _VERBATIM),
    "hc_stvg_test": Benchmark(SOURCES["hc_stvg"], "test", SpatioTemporal()),
    "hc_stvg_v2_val": Benchmark(SOURCES["hc_stvg"], "val", SpatioTemporal(), {"version": 2}),
    "vidstg_val": Benchmark(SOURCES["vidstg"], "val", SpatioTemporal()),
    "vidstg_test": Benchmark(SOURCES["vidstg"], "test", SpatioTemporal()),
    "davis17_vos": Benchmark(SOURCES["vos_folders"], "val", Following("davis")),
    "sav_val": Benchmark(SOURCES["vos_folders"], "val", Following("sa_v", overlap=True)),
    "sav_test": Benchmark(SOURCES["vos_folders"], "test", Following("sa_v", overlap=True)),
    **{
        f"spatial_{kind}": Benchmark(SOURCES[f"spatial_{kind}"], "val", Locating(), {"val_fraction": 0.1})
        for kind in KINDS
    },
    "vos_relations": Benchmark(SOURCES["vos_relations"], "val", Locating()),  # of any videos with masks
    "shapes_relations": Benchmark(_shapes_relations, "val", Locating(), needs_root=False),
    "target_crops": Benchmark(SOURCES["target_crops"], "val", Presence()),  # of any pictures with named objects
    "vos": Benchmark(SOURCES["vos_folders"], "valid", Following("sa_v")),  # MOSE, LVOS, your own
}


def get_benchmark(name: str) -> Benchmark:
    """ValueError for a name that is none of BENCHMARKS; those that begin like it are suggested."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = [known for known in BENCHMARKS if known.startswith(name)] or list(BENCHMARKS)
    hint = "every split is a benchmark of its own: " if len(near) < len(BENCHMARKS) else ""
    raise ValueError(f"unknown benchmark {name!r}; {hint}expected one of {', '.join(near)}")


def answered_with(benchmark: Benchmark, answer_with: str | None, name: str) -> Benchmark:
    """The benchmark with boxes scored instead of masks, where `Settings.answer_with` says so.

    Raises:
        ValueError: it asks for nothing that has a place.
    """
    if answer_with is None or isinstance(benchmark.task, Locating):
        return benchmark
    if not isinstance(benchmark.task, Referring):
        raise ValueError(
            f"--answer_with {answer_with}: {name} has no expressions; expected one as refcoco_val or revos"
        )
    return replace(benchmark, task=Locating())


def load_items(
    benchmark: Benchmark,
    root: str | None,
    settings: Settings,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> tuple[list[Item], list[Reject]]:
    """All items in the order of the data set (or the first `limit`), and the records that cannot be used.

    ValueError when the root or a file in it is missing, an option is unknown, no item is left, or two have one key.
    """
    if root is None and benchmark.needs_root:
        raise ValueError("--root: expected the folder of the benchmark's data, got none")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"--root {root}: expected an existing folder")
    given = dict(benchmark.options) | dict(options or {})
    try:
        inspect.signature(benchmark.samples).bind(root, split, **given)
    except TypeError as error:
        raise ValueError(f"options {sorted(given)}: {error}") from error
    samples = benchmark.samples(root, split or benchmark.split, **given)
    items, rejects, seen = [], [], set()
    for sample in samples:
        if isinstance(sample, Reject):
            rejects.append(sample)
            continue
        for item in benchmark.task.items(sample, settings):
            if item.key in seen:
                raise ValueError(f"{item.key!r} occurs twice: expected unique keys, by which predictions are assigned")
            seen.add(item.key)
            items.append(item)
        if limit is not None and len(items) >= limit:
            items = items[:limit]
            break
    if not items and not rejects:
        raise ValueError(f"{root}: expected at least one item in the split {split or benchmark.split!r}, got none")
    return items, rejects
