"""scripts/benchmark.py: every command still runs, and says what it measured. Speed itself is no law.

Run: pytest tests/test_profiling.py -m slow
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sa2va_hf.profiling import train

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark.py"
SMALLEST = {
    "inference": "--frames 2 --objects 1 2 --lengths 2",
    "data": "--photos 24 --rows 3000",
    "sampler": "--samples 300 --ranks 2 --batch 4",
    "sam2": "--image_size 128 --frames 3 --objects 1",
    "serve": "--clients 1 2 --requests 4 --max_batch 2",
    "metrics": "--frames 1 --long 12",
    "train": "--batch 1 --steps 1",
}


@pytest.fixture
def benchmark(monkeypatch):
    def benchmark(name, *more):
        command = [SCRIPT, name, *SMALLEST[name].split(), "--repeats", "1", "--device", "cpu", *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return benchmark


def opencv():
    """What the benchmark takes of OpenCV."""
    module = ModuleType("cv2")
    module.setNumThreads = lambda count: None
    module.dilate = dilate
    return module


def dilate(mask, disk):
    """A disk is its own mirror image, so this is a convolution: (H, W) uint8 -> (H, W) uint8."""
    size, radius = np.add(mask.shape, disk.shape), len(disk) // 2
    sums = np.fft.irfft2(np.fft.rfft2(mask, size) * np.fft.rfft2(disk, size), size)
    return (sums[radius:, radius:][: mask.shape[0], : mask.shape[1]] > 0.5).astype(np.uint8)


def cells(table):
    """The rows of a markdown table below its heading, as lists of texts."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_writes_its_tables(benchmark, monkeypatch, tmp_path, capsys, name):
    """Training with each option once; compiling takes minutes and is left to tests/training/sa2va/test_speed.py."""
    monkeypatch.setitem(sys.modules, "cv2", opencv())
    asked, variants = [], dict(list(train.VARIANTS.items())[2:])
    monkeypatch.setattr(train, "compile_layers", asked.append)
    monkeypatch.setattr(train, "VARIANTS", variants)
    file = tmp_path / "tables.md"
    benchmark(name, "--output", file)
    written = file.read_text()
    assert written.strip() == capsys.readouterr().out.strip()
    tables = [part for part in written.split("\n\n") if part.startswith("| ")]
    assert tables and all(len(table.splitlines()) > 2 for table in tables), "a heading, and at least a row"
    assert len(asked) == (len(tables) if name == "train" else 0)
    if name == "metrics":
        assert {row[-1] for row in cells(tables[0])} == {"0e+00"}, "two ways to the same J and F"


def test_the_comparison_names_what_it_needs(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit, match="needs OpenCV: pip install opencv-python-headless"):
        benchmark("metrics")
