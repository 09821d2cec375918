"""The rows that a run cannot use are listed whole in a file, by one process."""

import json
from types import SimpleNamespace

from sa2va_hf.data.schema import Reject
from sa2va_hf.training.rejects import REJECTED, list_rejects


def dataset(*ids):
    return SimpleNamespace(rejected=[Reject(name, "it has no text", f"{name}.png") for name in ids])


def listed(folder):
    return [json.loads(line) for line in (folder / REJECTED).read_text().splitlines()]


def test_every_reject_is_in_the_file_however_many(tmp_path):
    run = SimpleNamespace(output_dir=str(tmp_path / "run"), process_index=0)
    selection = SimpleNamespace(dataset=dataset("x"))  # of an evaluation dataset
    list_rejects(run, {"train_data": dataset(*map(str, range(50))), "eval_data": selection, "none": None})
    lines = listed(tmp_path / "run")
    assert len(lines) == 51
    assert lines[0] == {"dataset": "train_data", "id": "0", "reason": "it has no text", "file": "0.png"}
    assert lines[-1]["dataset"] == "eval_data"
    list_rejects(run, {"train_data": dataset()})
    assert not (tmp_path / "run" / REJECTED).exists(), "the file of an earlier run"


def test_only_the_first_process_writes(tmp_path):
    list_rejects(SimpleNamespace(output_dir=str(tmp_path), process_index=1), {"train_data": dataset("a")})
    assert not list(tmp_path.iterdir())
