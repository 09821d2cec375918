"""How benchmarks measure and write: time and peak memory of a call, markdown tables, the machine they ran on."""

import ctypes
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


class Memory:
    """Peak memory of a block in MiB above its start: the GPU's, or the process's resident size, sampled."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> "Memory":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or a second run would seem to need nothing
            Path("/proc/self/clear_refs").write_text("5")  # restarts the kernel's peak counter
            self.start = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._status("VmHWM")
        self.peak = (peak - self.start) / 2**20

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of a call, as torch counts them: matrix products, convolutions, attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(run: Callable[[], object], device: str, repeats: int, warm_up: bool = True) -> tuple[float, float]:
    """(median seconds, peak MiB above the start), after a run to warm up."""
    if warm_up:
        run()
    seconds, peaks = [], []
    for _ in range(repeats):
        with Memory(device) as memory:
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peaks.append(memory.peak)
    return statistics.median(seconds), max(peaks)


def table(columns: list[str], rows: list[list[object]]) -> str:
    def line(cells: list[object]) -> str:
        return "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)])


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{name}; {versions}; {date.today()}; commit {commit.stdout.strip()}"
