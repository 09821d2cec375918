"""Opening the entries of a mixture: prepared folders, and prepared datasets on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from ..arguments import BaseTrainingArguments
from ..data.prepare.verification import open_folder
from ..data.sources.prepared import open_hub
from ..mixtures import HUB, MixtureEntry

logger = logging.getLogger(__name__)


def entries_to_evaluate(entries: Sequence[MixtureEntry], arguments: BaseTrainingArguments) -> list[MixtureEntry]:
    """The entries of `eval_data`; none where the run never evaluates, which is logged."""
    if entries and not arguments.evaluates:
        logger.warning("`eval_data` is not used: `eval_strategy` is no (--do_eval true evaluates once, at the end)")
        return []
    return list(entries)


def open_entry(entry: MixtureEntry, verify: bool = False) -> Dataset:
    """The rows of a mixture entry. verify: compare a folder's files with its manifest (sha256).

    Raises:
        ValueError: there is no prepared dataset at its path, or a file of it is missing, cut or changed.
    """
    if entry.path.startswith(HUB):
        return open_hub(entry.path.removeprefix(HUB), entry.split)
    if not (Path(entry.path) / "dataset_info.json").is_file():
        raise ValueError(
            f"{entry.path}: no prepared dataset; run scripts/prepare_data.py with --output {entry.path}, or name one "
            f"on the Hub as {HUB}OWNER/NAME"
        )
    return open_folder(entry.path, verify)
