"""The worker processes of a preparation end with it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from sa2va_hf.data.prepare.checking import map_in_order


def alive(pid):
    """Whether it runs; one that has ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_when_their_main_process_was_ended(tmp_path, number):
    def work():
        for _ in map_in_order(_Note(tmp_path), iter(range(10**9)), 2):
            pass

    main = multiprocessing.get_context("fork").Process(target=work)
    main.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(main.pid, number)
    main.join(60)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2 and main.exitcode == -number
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


class _Note:
    """A unit's work: says which process does it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, index):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.01)
        return index
