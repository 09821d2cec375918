"""NAME.predictions.arrow: what was asked and answered, a row per item, and a note of what the answers depend on.

The file is a stream of Arrow, as `datasets.Dataset.from_file` reads it; the note is JSON in its schema's metadata.
Predictions of other tools have none: then it is not known how they were asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sa2va_hf.evaluation.items import Answer, Item, Settings, from_row, to_row

ROWS_PER_BATCH = 64
NOTE = b"sa2va_hf"  # key of the note
UNKNOWN = {"unknown": "the predictions do not say how they were asked"}
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "sample", "kind", "question", "answer")]
    + [("masks", pa.list_(pa.list_(pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]))))]
    + [("more", pa.string()), ("figures", pa.string())]
)


@dataclass(frozen=True)
class Note:
    """benchmark: its name. recipe: model, data and settings. asked: the prompts (`Task.record`), or UNKNOWN. All as in
    metrics.json."""

    benchmark: str
    recipe: dict[str, Any]
    asked: dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """Answers and questions by key; `note` is None where the file does not say how it was made."""

    note: Note | None
    answers: dict[str, Answer]
    questions: dict[str, str | None]


def write_predictions(path: Path | str, items: Sequence[Item], answers: Sequence[Answer], note: Note) -> None:
    """The same bytes for the same answers, whoever gave them; without a note where it is not known what was asked."""
    path = Path(path)
    schema = SCHEMA if note.asked == UNKNOWN else SCHEMA.with_metadata({NOTE: json.dumps(asdict(note))})
    rows = [to_row(item, answer) for item, answer in zip(items, answers, strict=True)]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            stream.write_batch(pa.RecordBatch.from_pylist(rows[start : start + ROWS_PER_BATCH], schema=schema))


def read_predictions(path: Path | str) -> Predictions:
    """Raises: ValueError when it is no such file, its note or a row is of another form, or a key occurs twice."""
    path = Path(path)
    note, rows = _read(path, rows=True)
    answers = by_key(rows, str(path))
    return Predictions(note, answers, {row["key"]: row.get("question") for row in rows})


def read_note(path: Path | str) -> Note | None:
    """The note alone. Errors as `read_predictions`."""
    path = Path(path)
    return _read(path, rows=False)[0]


def settings_of(note: Note, where: str) -> Settings:
    """How the model was asked. ValueError when the note does not say it as this version does."""
    try:
        return Settings(**note.recipe["settings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: its settings are not in the form of this version: {error!r}") from error


def by_key(rows: Iterable[dict[str, Any]], where: str) -> dict[str, Answer]:
    """Answers of rows; ValueError, with `where` they are from, for one of another form or a second one of a key."""
    found: dict[str, Answer] = {}
    for row in rows:
        try:
            key, answer = row["key"], from_row(row)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{where}: a prediction is not in the form that this command writes: {error!r}"
            ) from error
        if key in found:
            raise ValueError(f"{where}: expected one prediction of {key!r}, got two")
        found[key] = answer
    return found


def _read(path: Path, rows: bool) -> tuple[Note | None, list[dict[str, Any]]]:
    try:
        with pa.memory_map(str(path)) as file:
            stream = pa.ipc.open_stream(file)
            written = (stream.schema.metadata or {}).get(NOTE)
            found = stream.read_all().to_pylist() if rows else []
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: expected predictions as this command writes them ({error})") from error
    try:
        return (None if written is None else Note(**json.loads(written))), found
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its note is not in the form that this command writes: {error!r}") from error
