"""Time and peak memory of a call, markdown tables, and the description of the machine."""

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
    """Context manager. `peak` is the peak memory of its block in MiB above the start: of the GPU, or resident."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> "Memory":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(
                0
            )  # return freed memory to the system: otherwise a second run appears to need none
            Path("/proc/self/clear_refs").write_text("5")  # reset the kernel's peak counter
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
    """The floating-point operations of a call, as torch counts them: matrix products, convolutions, attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(run: Callable[[], object], device: str, repeats: int, warm_up: bool = True) -> tuple[float, float]:
    """The median time in seconds and the peak memory in MiB above the start, after one warm-up run."""
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
    """A markdown table; floats get two decimals."""

    def line(cells: list[object]) -> str:
        return "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)])


def machine(device: str) -> str:
    """The device, the versions of torch and Python, the date and the commit, as one line."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{name}; {versions}; {date.today()}; commit {commit.stdout.strip()}"
