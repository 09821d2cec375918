"""All that is worth knowing of a GPU, within minutes: each step in a process of its own, with a limit of time.

A table is yielded as soon as it is measured; a step that fails or takes too long says so and the next one runs.
"""

import argparse
import multiprocessing
import queue
import time
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.queues import Queue
from typing import Any

TOTAL = 520  # seconds for all steps: with what comes before, under 9 minutes
MODULES = ("inference", "parity", "sam2", "train")
LAST_LINES = 600  # characters of an error that are shown

Step = tuple[str, str, int, dict[str, Any]]  # title, module of profiling/, seconds, its arguments


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields titles and markdown tables one by one."""
    modules = [f"sa2va_hf.profiling.{name}" for name in MODULES]
    # A forked CUDA does not work, and spawning imports all anew. On a CPU this process imports, once for all steps.
    if arguments.device == "cpu":
        context = multiprocessing.get_context("fork")
        for name in modules:
            import_module(name)
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(modules)
    patience = 20 if arguments.smoke else 1  # the CPU of a test may be busy
    end = time.monotonic() + TOTAL * patience
    for title, module, seconds, options in steps(arguments):
        yield f"## {title}"
        left = min(seconds * patience, end - time.monotonic())
        given = Namespace(**options, device=arguments.device, repeats=1)
        yield from _bounded(context, module, given, left) if left > 5 else ["not run: no time is left"]


def steps(arguments: argparse.Namespace) -> list[Step]:
    """The steps in order of what is asked for first. smoke: one size of each kind, as small as it can be."""
    smoke, images = arguments.smoke, arguments.images
    clip = {"model": None, "grounding": "sam2", "objects": [1, 3]}
    clip |= {"frames": 2 if smoke else 7, "lengths": [2] if smoke else [8, 64], "batch": 2 if smoke else 8}
    large = "tiny" if smoke else "large"
    side, objects = (128, 1) if smoke else (1024, 3)
    found: list[Step] = [("precision", "parity", 60, {"model": "shapes-tiny"})]
    sizes = [("tiny", "tiny", 40), ("SAM 2 large", large, 60)]
    for size, model, seconds in sizes[:1] if smoke else sizes:
        for compiled in (False,) if smoke else (False, True):
            title = f"inference, {size}{', compiled' if compiled else ''}"
            found.append((title, "inference", seconds * (1 + compiled), clip | {"size": model, "compiled": compiled}))
    batches = [("2b", 8), ("8b", 4)]
    for size, batch in batches[:1] if smoke else batches:
        training = {"size": "tiny" if smoke else size, "batch": 1 if smoke else batch, "steps": 1 if smoke else 3}
        training["visuals"] = ["clips"] if smoke else ["pictures", "clips"]
        found.append((f"training, {size}", "train", 150, training | {"images": images, "grounding": "sam2"}))
    sam2 = {"size": large, "image_size": side, "frames": 2 if smoke else 8, "objects": objects, "parts": False}
    found.insert(-1, ("training of SAM 2", "sam2", 60, sam2))
    return found


def _bounded(context: Any, module: str, options: Namespace, seconds: float) -> Iterator[str]:
    """What `profiling.module.run` yields within so many seconds, and why there is no more."""
    results = context.Queue()
    process = context.Process(target=_work, args=(module, options, results), daemon=True)
    start = time.monotonic()
    process.start()
    try:
        while True:
            left = start + seconds - time.monotonic()
            try:
                kind, text = results.get(timeout=max(min(left, 1), 0.01))
            except queue.Empty:
                if left <= 0:
                    yield f"stopped after {seconds:.0f} s"
                    return
                if not process.is_alive() and results.empty():
                    yield f"failed: the process ended with {process.exitcode}"
                    return
                continue
            if kind == "end":
                return
            yield text if kind == "table" else f"failed: {text}"
    finally:
        process.kill()
        process.join()


def _work(module: str, options: Namespace, results: Queue) -> None:
    try:
        for table in import_module(f"sa2va_hf.profiling.{module}").run(options):
            results.put(("table", table))
    except Exception as error:  # whatever it is belongs into the report
        results.put(("failed", f"{type(error).__name__}: {str(error)[:LAST_LINES]}"))
    results.put(("end", ""))
