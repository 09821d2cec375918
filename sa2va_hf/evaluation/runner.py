"""Runs a benchmark: shares its items among processes, keeps what is answered, and writes the results.

    metrics.json               figures and settings; with metrics.predictions.arrow (questions, answers, RLE masks,
    metrics.md                 figures per item), a table, and metrics.samples.png, the worst and best samples: the
    metrics.samples.png        same bytes for any number of processes, interrupted or not
    metrics.run.json           when, where and by which versions
    metrics.parts/             what is answered so far; removed at the end, read by a run that goes on

A batch is decided by the items alone, not by who answers it or what was answered before, and on a CPU every process
computes with the same number of threads: otherwise last digits, and with them pixels, would depend on the launch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import torch
from accelerate import PartialState

from sa2va_hf.data.schema import Reject
from sa2va_hf.evaluation.benchmarks import Benchmark
from sa2va_hf.evaluation.items import Answer, Item, Settings, from_row, to_row
from sa2va_hf.evaluation.report import contact_sheet_of, run_record, table
from sa2va_hf.evaluation.submission import Submission
from sa2va_hf.inference import Sa2VAPredictor

CPU_THREADS = 1
LONGEST_WAIT = timedelta(days=7)  # of a process for the others
ROWS_PER_BATCH = 64
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "sample", "kind", "question", "answer")]
    + [("masks", pa.list_(pa.list_(pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]))))]
    + [("more", pa.string()), ("figures", pa.string())]
)


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
        recipe: what the answers depend on besides settings (model, data): a run goes on only where it is the same.
        progress: called with (answered, all) batches of this process, after each.
        cpu: use no GPU where there is one.
        weights: what tells the model's files from later ones in their place (`weights_of`); not in the results.

    Raises:
        ValueError: `output` holds the beginning of another run, or an answer cannot be scored.
    """
    files, state = Files(output), PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    recipe = recipe | {"benchmark": name, "settings": asdict(settings), "batch_size": batch_size}
    recipe = json.loads(json.dumps(recipe | {"items": len(items)}))
    note = recipe | {"weights": json.loads(json.dumps(weights))}
    known = _begin(files, note, state.is_main_process)
    batches = make_batches(items, batch_size)
    left = [batch for batch in batches if any(items[number].key not in known for number in batch)]
    own = share(left, [sum(items[number].cost for number in batch) for batch in left], state.num_processes)
    own = own[state.process_index]
    state.wait_for_everyone()  # everyone has read what is known: from here on files grow
    if own:
        predictor = load(state.device)
        if predictor.model.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        with _append(files.parts / f"{state.process_index:05d}.jsonl") as file:
            for count, batch in enumerate(own, start=1):
                asked = [items[number] for number in batch]
                for item, answer in zip(asked, _ask(benchmark, predictor, asked, settings), strict=True):
                    answer.figures = benchmark.task.score(item, answer)
                    file.write(json.dumps(to_row(item, answer)) + "\n")
                file.flush()
                if progress is not None:
                    progress(count, len(own))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    answers = collect(items, _read_parts(files.parts), str(files.parts))
    result = finish(name, benchmark, items, answers, rejects, settings, recipe, files)
    files.beside(".run.json").write_text(
        json.dumps(run_record(state.num_processes), indent=2) + "\n", encoding="utf-8"
    )
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

    ValueError when one is missing, unknown, or of another size than its picture.
    """
    files = Files(output)
    answers = collect(items, read_predictions(predictions), str(predictions))
    for item, answer in zip(items, answers, strict=True):
        answer.figures = benchmark.task.score(item, answer)
    return finish(name, benchmark, items, answers, rejects, settings, recipe, files)


def finish(
    name: str,
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: Sequence[Answer],
    rejects: Sequence[Reject],
    settings: Settings,
    recipe: dict[str, Any],
    files: Files,
) -> dict[str, Any]:
    """Sums up, and writes every file but run.json."""
    result = {"benchmark": name, "recipe": recipe, "asked": benchmark.task.record(settings)}
    result["metrics"] = benchmark.task.summarize(items, answers)
    result["rejects"] = [asdict(reject) for reject in rejects]
    files.metrics.parent.mkdir(parents=True, exist_ok=True)
    _write_predictions(files.predictions, items, answers)
    if isinstance(benchmark.task, Submission):
        benchmark.task.write(files.beside(".zip"), items, answers)
    files.beside(".md").write_text(table(name, result["metrics"]), encoding="utf-8")
    contact_sheet_of(items, answers).save(files.beside(".samples.png"))
    files.metrics.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def weights_of(folder: str | Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of the last change) of a model's files; empty for what is no folder here."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".json"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _ask(benchmark: Benchmark, predictor: Sa2VAPredictor, items: list[Item], settings: Settings) -> list[Answer]:
    try:
        return benchmark.task.ask(predictor, items, settings)
    except ValueError as error:
        raise ValueError(f"{', '.join(item.key for item in items)}: {error}") from error


# ---------------------------------------------------------------- sharing the work


def make_batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Numbers of items that are answered together: of like cost, and never a picture with a clip."""
    order = sorted(range(len(items)), key=lambda number: (items[number].sample.num_frames > 1, items[number].cost))
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
    """Batches for each of some processes: the dearest first, each to the one that has least to do."""
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


def read_predictions(path: Path) -> dict[str, Answer]:
    """Answers by key of a predictions.arrow. ValueError when it is none, or a key occurs twice."""
    try:
        with pa.memory_map(str(path)) as file:
            rows = pa.ipc.open_stream(file).read_all().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: expected predictions as this command writes them ({error})") from error
    return _by_key(rows, str(path))


def _by_key(rows: Iterable[dict[str, Any]], where: str) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for row in rows:
        try:
            answer = from_row(row)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{where}: a prediction is not in the form that this command writes: {error!r}"
            ) from error
        if row["key"] in found:
            raise ValueError(f"{where}: {row['key']!r} is predicted twice")
        found[row["key"]] = answer
    return found


def _write_predictions(path: Path, items: Sequence[Item], answers: Sequence[Answer]) -> None:
    rows = [to_row(item, answer) for item, answer in zip(items, answers, strict=True)]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            stream.write_batch(pa.RecordBatch.from_pylist(rows[start : start + ROWS_PER_BATCH], schema=SCHEMA))


def _begin(files: Files, recipe: dict[str, Any], main: bool) -> dict[str, Answer]:
    """What an earlier run of the same recipe answered; ValueError when it was another one, if it answered anything.
    Lines that it could not finish are cut off."""
    note = files.parts / "recipe.json"
    known = _read_parts(files.parts)
    if known and (before := json.loads(note.read_text(encoding="utf-8"))) != recipe:
        different = sorted(key for key in before.keys() | recipe.keys() if before.get(key) != recipe.get(key))
        raise ValueError(
            f"{files.parts} is of another run ({', '.join(different)} differ): remove it or write elsewhere"
        )
    files.parts.mkdir(parents=True, exist_ok=True)
    if main:
        new = note.with_suffix(".new")
        new.write_text(json.dumps(recipe), encoding="utf-8")
        new.replace(note)  # at once: another process may be reading it
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
    return _by_key(rows.values(), str(folder))
