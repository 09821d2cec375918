"""Data in our own schema: a folder that prepare_data.py wrote, parquet or Arrow files, or a dataset on the Hub.

--source prepared --root arrow/mine --split train                  to check, filter or embed it anew
--source prepared --option repo_id=me/mine --split train --output arrow/mine
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import FEATURES, Reject, Sample, from_row
from sa2va_hf.listings import listed

DERIVED = ("num_objects", "num_masks", "is_video")  # made anew from the rest
SAVED = ("dataset_dict.json", "dataset_info.json")  # marks of a folder for load_from_disk
SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}


def prepared(
    root: Path | str | None = None,
    split: str = "train",
    *,
    repo_id: str | None = None,
    revision: str | None = None,
) -> Iterator[Sample | Reject]:
    """The rows of a split as they are. Columns beside those of `schema.FEATURES` are not read.

    Give root, a folder: one of `datasets.save_to_disk` (or prepare_data.py), or one of parquet or Arrow files, whose
    names or folders may name the splits. Or repo_id, a dataset on the Hub, and its revision (branch, tag or commit).
    Raises ValueError when it cannot be opened, has no such split, or has columns of another schema.
    """
    if (root is None) == (repo_id is None):
        raise ValueError(f"prepared: give either a root folder or the option repo_id, got {root} and {repo_id}")
    if revision is not None and repo_id is None:
        raise ValueError("prepared: revision is of a dataset on the Hub: it needs the option repo_id")
    name = repo_id or str(root)
    rows = _open_folder(Path(root), split) if repo_id is None else open_hub(repo_id, split, revision)
    _check_columns(rows, name)
    rows = rows.select_columns([column for column in FEATURES if column not in DERIVED])
    for number, row in enumerate(rows):
        try:
            yield from_row(row)
        except (TypeError, KeyError, ValueError) as error:  # a null where the schema has none
            yield Reject(str(row["id"] or f"row {number}"), f"it is not a row of this schema: {error}", name)


def open_hub(repo_id: str, split: str, revision: str | None = None) -> Dataset:
    """A split of a dataset of our schema on the Hub. ValueError when it is not there or of another schema."""
    rows = _load(repo_id, split, repo_id, revision=revision)
    _check_columns(rows, repo_id)
    return rows


def _open_folder(root: Path, split: str) -> Dataset:
    if any((root / name).is_file() for name in SAVED):
        try:
            rows = load_from_disk(str(root))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # its json is not checked there
            raise ValueError(f"{root} cannot be opened: {error}") from error
        splits = list(rows) if isinstance(rows, DatasetDict) else [str(rows.split or split)]
        if split not in splits:
            raise ValueError(f"{root} has no split {split!r}; it has {listed(splits)}")
        return rows[split] if isinstance(rows, DatasetDict) else rows
    kinds = {SUFFIXES[path.suffix] for path in files_below(root) if path.suffix in SUFFIXES}
    if len(kinds) != 1:
        found = "both kinds" if kinds else "neither"
        raise ValueError(
            f"{root} must be a folder of datasets.save_to_disk, or hold either parquet or Arrow files; it has {found}"
        )
    return _load(str(root), split, str(root))


def _load(name: str, split: str, place: str, **how: Any) -> Dataset:
    try:
        return load_dataset(place, split=split, **how)
    except (OSError, ValueError) as error:  # of a Hub, a file, a split
        raise ValueError(f"{name}: split {split!r} cannot be opened: {error}") from error


def _check_columns(rows: Dataset, name: str) -> None:
    problems = []
    for column, feature in FEATURES.items():
        if column in DERIVED:
            continue
        if column not in rows.features:
            problems.append(f"{column!r} is missing")
        elif rows.features[column] != feature:
            problems.append(f"{column!r} is {rows.features[column]}, expected {feature}")
    if problems:
        there = listed(rows.column_names)
        raise ValueError(
            f"{name} is not of this schema (schema.FEATURES): {'; '.join(problems)}. It has the columns {there}"
        )
