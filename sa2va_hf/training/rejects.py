"""The list of the rows that a run cannot use."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

logger = logging.getLogger(__name__)

REJECTED = "rejected_rows.jsonl"


def list_rejects(training: TrainingArguments, datasets: Mapping[str, Any]) -> None:
    """Write every row that a dataset rejected to output_dir/rejected_rows.jsonl: {dataset, id, reason, file}.

    datasets: by the name of their argument; each has its rejects as `rejected`, or is a selection of one that has.
    Only the first process writes. A file of an earlier run is removed where nothing is rejected now.
    """
    if training.process_index:
        return
    lines = []
    for name, dataset in datasets.items():
        for reject in getattr(getattr(dataset, "dataset", dataset), "rejected", []):
            lines.append({"dataset": name, "id": reject.id, "reason": reject.reason, "file": reject.file})
    path = Path(training.output_dir) / REJECTED
    if not lines:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    logger.warning("%d rows cannot be used and are skipped; all of them with their reasons: %s", len(lines), path)
