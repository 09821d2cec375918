"""scripts/benchmark.py: every command still runs, and says what it measured. Speed itself is no law.

Run: pytest tests/test_profiling.py -m slow
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sa2va_hf.commands.benchmark import make_parser
from sa2va_hf.profiling import gpu_report, train
from sa2va_hf.profiling.sam2_parts import REST, Parts

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark.py"
SMALLEST = {  # inference, parity and sam2 are run by the test of the report, which has them as steps
    "data": "--photos 24 --rows 3000",
    "sampler": "--samples 300 --ranks 2 --batch 4",
    "serve": "--clients 1 2 --requests 4 --max_batch 2",
    "metrics": "--frames 1 --long 12",
    "train": "--batch 1 --steps 1 --grounding sam3 --visuals pictures",
    "trackers": "--frames 2 --objects 1 2",
}


@pytest.fixture
def benchmark(monkeypatch):
    def benchmark(name, *more):
        offered = make_parser().parse_args([name])
        common = [f"--{option}={value}" for option, value in (("repeats", 1), ("device", "cpu")) if option in offered]
        command = [SCRIPT, name, *SMALLEST[name].split(), *common, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return benchmark


class Slow(torch.autograd.Function):
    """Itself, with a backward pass of a tenth of a second."""

    @staticmethod
    def forward(ctx, value):
        return value * 1

    @staticmethod
    def backward(ctx, gradient):
        busy(0.1)
        return gradient


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_backward_time_is_that_of_the_part_which_made_the_node():
    class Part(nn.Module):
        def forward(self, value, slow=False):
            return {"found": [Slow.apply(value) if slow else value * 2]}

    parts, first, second = Parts("cpu"), Part(), Part()
    parts.watch("first", first)
    parts.watch("second", second)
    begun = torch.ones(3, requires_grad=True)

    def forward():
        between = Slow.apply(first(begun, slow=True)["found"][0])  # of no part
        busy(0.05)
        return second(between)["found"][0].sum()

    parts.step(forward)
    assert 0.1 <= parts.backward["first"] < 0.15 and 0.1 <= parts.backward[REST] < 0.15
    assert parts.backward["second"] < 0.02 and 0.05 <= parts.forward[REST] < 0.1
    assert begun.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize("smoke", [True, False])
def test_the_steps_of_the_report_give_all_options_of_their_commands(smoke):
    for title, module, _, options in gpu_report.steps(SimpleNamespace(smoke=smoke, images=None)):
        asked = vars(make_parser().parse_args([module])).keys() - {"command", "device", "repeats", "output"}
        assert asked <= options.keys(), title


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


def fake_run(options):
    yield "| a table |"
    if options.ends == "raises":
        raise ValueError("no such thing")
    if options.ends == "dies":
        os._exit(7)
    time.sleep(0 if options.ends == "well" else 60)


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        ("well", "| a table |"),
        ("raises", "failed: ValueError: no such thing"),
        ("dies", "failed: the process ended with 7"),
        ("hangs", "stopped after 2 s"),
    ],
)
def test_a_step_of_the_report_is_bounded_and_says_how_it_ended(monkeypatch, ends, last):
    monkeypatch.setattr(gpu_report, "import_module", lambda name: SimpleNamespace(run=fake_run))
    context = multiprocessing.get_context("fork")
    found = list(gpu_report._bounded(context, "any", SimpleNamespace(ends=ends), 2 if ends == "hangs" else 60))
    assert found[-1] == last
    if ends != "dies":  # what was queued as it died may be lost
        assert found[0] == "| a table |"


@pytest.mark.slow
def test_the_report_of_a_gpu_runs_every_step(tmp_path):
    script, file = SCRIPT.with_name("gpu_report.sh"), tmp_path / "report.md"
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(["bash", script, "--smoke", "--output", file], env=environment, check=True, capture_output=True)
    report = file.read_text()
    titles = [title for title, *_ in gpu_report.steps(SimpleNamespace(smoke=True, images=None))]
    assert [line for line in report.splitlines() if line.startswith("## ")][1:] == [f"## {title}" for title in titles]
    for part in report.split("\n## ")[1:]:
        assert "\n| " in part and not any(word in part for word in ("failed:", "stopped after", "not run")), part
