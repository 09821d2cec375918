"""Runs a benchmark: shares its items among processes, keeps what is answered, and writes the results.

    metrics.json               figures and settings; with metrics.predictions.arrow (questions, answers, RLE masks,
    metrics.md                 figures per item), a table, and metrics.samples.png, the worst and best samples: the
    metrics.samples.png        same bytes for any number of processes, interrupted or not
    metrics.run.json           when, where and by which versions
    metrics.parts/             what is answered so far; removed at the end, read by a run that resumes

A batch is decided by the items alone, not by who answers it or what was answered before, and on a CPU every process
computes with the same number of threads: otherwise last digits, and with them pixels, would depend on the launch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import PartialState

from sa2va_hf.data.schema import Reject
from sa2va_hf.evaluation.benchmarks import Benchmark
from sa2va_hf.evaluation.describing import GroundedCaption
from sa2va_hf.evaluation.items import Answer, Item, Settings, cost, to_row
from sa2va_hf.evaluation.predictions import UNKNOWN, Note, by_key, read_predictions, write_predictions
from sa2va_hf.evaluation.report import contact_sheet_of, run_record, table
from sa2va_hf.evaluation.submission import Submission
from sa2va_hf.inference import Sa2VAPredictor

CPU_THREADS = 1
LONGEST_WAIT = timedelta(days=7)  # of a process for the others
DATA = ("root", "split", "options")  # of a recipe: where the questions and the truth come from


@dataclass(frozen=True)
class Files:
    """Everything a run writes, named after its metrics.json."""

    metrics: Path

    def __post_init__(self) -> None:
        if self.metrics.suffix != ".json":
            raise ValueError(f"--output: expected a file NAME.json, got {self.metrics}")

    def beside(self, ending: str) -> Path:
        return self.metrics.with_name(f"{self.metrics.stem}{ending}")

    @property
    def parts(self) -> Path:
        return self.beside(".parts")

    @property
    def predictions(self) -> Path:
        return self.beside(".predictions.arrow")


def run(
    name: str,
    benchmark: Benchmark,
    items: Sequence[Item],
    rejects: Sequence[Reject],
    load: Callable[[torch.device], Sa2VAPredictor],
    settings: Settings,
    recipe: dict[str, Any],
    output: Path,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    cpu: bool = False,
    weights: Sequence[Sequence[Any]] = (),
) -> dict[str, Any] | None:
    """Answers all items, writes the files and returns what is in metrics.json; None in all processes but the first.

    Args:
        load: makes the predictor on the device of this process; not called when everything is answered already.
        recipe: what the answers depend on besides settings (model, data): a run resumes only where it is the same.
        progress: called with (answered, all) batches of this process, after each.
        cpu: use no GPU where there is one.
        weights: what tells the model's files from later ones in their place (`weights_of`); not in the results.

    Raises:
        ValueError: `output` holds the beginning of another run, or an answer cannot be scored.
    """
    files, state = Files(output), PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    recipe = recipe | {"benchmark": name, "settings": asdict(settings), "batch_size": batch_size}
    recipe = json.loads(json.dumps(recipe | {"items": len(items)}))
    begun = recipe | {"weights": json.loads(json.dumps(weights))}
    known = _begin(files, begun, state.is_main_process)
    batches = make_batches(items, batch_size)
    left = [batch for batch in batches if any(items[number].key not in known for number in batch)]
    own = share(left, [cost([items[number] for number in batch]) for batch in left], state.num_processes)
    own = own[state.process_index]
    state.wait_for_everyone()  # everyone has read what is known: from here on files grow
    if own:
        predictor = load(state.device)
        if state.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        with _append(files.parts / f"{state.process_index:05d}.jsonl") as file:
            for count, batch in enumerate(own, start=1):
                asked = [items[number] for number in batch]
                for item, answer in zip(asked, _ask(benchmark, predictor, asked, settings), strict=True):
                    answer.figures = _score(benchmark, item, answer)
                    file.write(json.dumps(to_row(item, answer)) + "\n")
                file.flush()
                if progress is not None:
                    progress(count, len(own))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    answers = collect(items, _read_parts(files.parts), str(files.parts))
    note = Note(name, recipe, benchmark.task.record(settings))
    result = finish(benchmark, items, answers, rejects, note, files)
    _write_json(files.beside(".run.json"), run_record(state.num_processes))
    shutil.rmtree(files.parts)
    return result


def rescore(
    name: str,
    benchmark: Benchmark,
    items: Sequence[Item],
    rejects: Sequence[Reject],
    predictions: Path,
    settings: Settings,
    recipe: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Scores predictions that were written before (or elsewhere, in the same form), without a model.

    How they were asked is what their note says. Of `recipe` the data count, which the result holds as "scored" where
    they are not the note's. Predictions without a note keep their own questions, and the result says that it is not
    known how they were asked.

    Args:
        settings: those of the note (`settings_of`), maybe with a text encoder.

    ValueError when one is missing, unknown, or of another size than its picture; when they are of another benchmark or
    answer other questions.
    """
    files, found = Files(output), read_predictions(predictions)
    here = json.loads(json.dumps(recipe | {"benchmark": name, "items": len(items)}))
    note = found.note or Note(name, here, UNKNOWN)
    if note.benchmark != name:
        raise ValueError(f"{predictions}: expected predictions of the benchmark {name}, got those of {note.benchmark}")
    limit = note.recipe.get("limit")
    answers = collect(items, found.answers, f"{predictions}{f' (made with --limit {limit})' if limit else ''}")
    if found.note is None:
        items = [replace(item, question=found.questions[item.key] or "") for item in items]
    else:
        _check_questions(items, found.questions, str(predictions))
        note = replace(note, recipe=_scored(note.recipe, here))
    asked = note.recipe.get("settings", {})
    if isinstance(benchmark.task, GroundedCaption) and settings.text_encoder != asked.get("text_encoder"):
        answers = benchmark.task.with_likeness(items, answers, settings)
        with_encoder = {"settings": asked | {"text_encoder": settings.text_encoder}}
        note = replace(note, recipe=note.recipe | with_encoder)
    for item, answer in zip(items, answers, strict=True):
        answer.figures = _score(benchmark, item, answer)
    result = finish(benchmark, items, answers, rejects, note, files)
    _write_json(files.beside(".run.json"), run_record(1) | {"predictions": str(predictions)})
    return result


def finish(
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: Sequence[Answer],
    rejects: Sequence[Reject],
    note: Note,
    files: Files,
) -> dict[str, Any]:
    """Sums up, and writes every file but run.json."""
    result = asdict(note) | {"metrics": benchmark.task.summarize(items, answers)}
    result["rejects"] = [asdict(reject) for reject in rejects]
    files.metrics.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(files.predictions, items, answers, note)
    if isinstance(benchmark.task, Submission):
        benchmark.task.write(files.beside(".zip"), items, answers)
    files.beside(".md").write_text(table(note.benchmark, result["metrics"]), encoding="utf-8")
    contact_sheet_of(items, answers).save(files.beside(".samples.png"))
    _write_json(files.metrics, result)
    return result


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def weights_of(folder: str | Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of the last change) of a model's files; empty for what is no folder here."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".json"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _score(benchmark: Benchmark, item: Item, answer: Answer) -> dict[str, Any]:
    try:
        return benchmark.task.score(item, answer)
    except ValueError as error:
        raise ValueError(f"{item.key}: {error}") from error


def _ask(benchmark: Benchmark, predictor: Sa2VAPredictor, items: list[Item], settings: Settings) -> list[Answer]:
    try:
        return benchmark.task.ask(predictor, items, settings)
    except ValueError as error:
        raise ValueError(f"{', '.join(item.key for item in items)}: {error}") from error


# ---------------------------------------------------------------- sharing the work


def make_batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Indices of the items that form one batch: items of the same image or clip, and clips of similar length; an
    image and a clip are never in one batch."""
    first: dict[Hashable, int] = {}
    places = [first.setdefault(item.media, number) for number, item in enumerate(items)]
    order = sorted(range(len(items)), key=lambda number: (items[number].sample.num_frames, places[number]))
    batches: list[list[int]] = []
    for number in order:
        kind = items[number].sample.num_frames > 1
        last = batches[-1] if batches else None
        if last and len(last) < size and (items[last[0]].sample.num_frames > 1) == kind:
            last.append(number)
        else:
            batches.append([number])
    return batches


def share(batches: Sequence[list[int]], costs: Sequence[int], parts: int) -> list[list[list[int]]]:
    """Batches for each process: the most expensive first, each to the process with the least work."""
    loads, shares = [0] * parts, [[] for _ in range(parts)]
    for place in sorted(range(len(batches)), key=lambda place: -costs[place]):
        least = loads.index(min(loads))
        loads[least] += costs[place]
        shares[least].append(batches[place])
    return shares


# ---------------------------------------------------------------- what is answered


def collect(items: Sequence[Item], found: dict[str, Answer], where: str) -> list[Answer]:
    """The answer of each item, in their order. ValueError that names those without one, and those of no item."""
    missing = [item.key for item in items if item.key not in found]
    extra = sorted(set(found) - {item.key for item in items})
    if missing or extra:
        said = [
            f"{len(keys)} {what}: {', '.join(keys[:5])}"
            for keys, what in ((missing, "missing"), (extra, "unknown"))
            if keys
        ]
        raise ValueError(f"{where}: predictions do not fit the benchmark; {'; '.join(said)}")
    return [found[item.key] for item in items]


def _check_questions(items: Sequence[Item], asked: Mapping[str, str | None], where: str) -> None:
    for item in items:
        if asked[item.key] != item.question:
            raise ValueError(
                f"{where}: its questions are not those of the benchmark; the first is {item.key}: expected "
                f"{item.question!r}, got {asked[item.key]!r}; use the data that the predictions were made with"
            )


def _scored(recipe: dict[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that answers were made by, with the data that they are scored on now where those are others."""
    made = {name: value for name, value in recipe.items() if name != "scored"}
    other = {part: here.get(part) for part in DATA if here.get(part) != made.get(part)}
    return made | ({"scored": other} if other else {})


def _begin(files: Files, recipe: dict[str, Any], main: bool) -> dict[str, Answer]:
    """What an earlier run of the same recipe answered. Lines that it could not finish are cut off.

    Raises: ValueError when it was a run of another recipe, and it answered anything.
    """
    note = files.parts / "recipe.json"
    known = _read_parts(files.parts)
    if known and (before := json.loads(note.read_text(encoding="utf-8"))) != recipe:
        different = sorted(key for key in before.keys() | recipe.keys() if before.get(key) != recipe.get(key))
        raise ValueError(
            f"{files.parts} is of another run ({', '.join(different)} differ): remove it, or choose another --output"
        )
    files.parts.mkdir(parents=True, exist_ok=True)
    if main:
        new = note.with_suffix(".new")
        new.write_text(json.dumps(recipe), encoding="utf-8")
        new.replace(note)  # atomically: another process may read it
    return known


def _append(path: Path) -> TextIO:
    """The file, open at the end of its last whole line."""
    file = path.open("a+b")
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return TextIOWrapper(file, encoding="utf-8")


def _read_parts(folder: Path) -> dict[str, Answer]:
    rows: dict[str, dict] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a batch of which a line is missing is answered again, to the same effect
                row = json.loads(line)
                rows[row["key"]] = row
    return by_key(rows.values(), str(folder))
