"""Work shared among the cores of a machine, by processes that are forked from this one."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

_work: list[Callable[[Any], np.ndarray]] = []  # of a forked process


def in_processes(compute: Callable[[Any], np.ndarray], pieces: Sequence[Any]) -> list[np.ndarray]:
    """`[compute(piece) for piece in pieces]`, on all cores where this process may fork; `compute` is not pickled."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # elsewhere forks are not safe
    if min(cores, len(pieces)) < 2 or multiprocessing.current_process().daemon:
        return [compute(piece) for piece in pieces]
    context = multiprocessing.get_context("fork")
    workers = min(cores, len(pieces))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_work.append, initargs=(compute,)) as pool:
        return list(pool.map(_run, pieces))


def _run(piece: Any) -> np.ndarray:
    return _work[-1](piece)
