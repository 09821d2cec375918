"""scripts/benchmark.py: every command still runs, and says what it measured. Speed itself is no law.

Run: pytest tests/test_benchmarks.py -m slow
"""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark.py"
SMALLEST = {  # without train, which compiles for minutes
    "inference": "--frames 2 --objects 1 2 --lengths 2",
    "data": "--photos 24 --rows 3000",
    "sam2": "--image_size 128 --frames 3 --objects 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_writes_its_tables(monkeypatch, tmp_path, capsys, name):
    file = tmp_path / "tables.md"
    command = [str(SCRIPT), name, *SMALLEST[name].split(), "--repeats", "1", "--device", "cpu", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    written = file.read_text()
    assert written.strip() == capsys.readouterr().out.strip()
    tables = [part for part in written.split("\n\n") if part.startswith("| ")]
    assert tables and all(len(table.splitlines()) > 2 for table in tables), "a heading, and at least a row"
