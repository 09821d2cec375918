"""What goes wrong while a run is under way: signals, data-loading processes that ignore them or die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SAME_SIGNAL = 10.0  # seconds; a job's signal may come twice, since launchers pass it on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_noted(note: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, `SIGNALS` are passed to `note` instead of ending the process. Only the main thread can ask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _: note(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """At the start of a data-loading process: the signal that all processes of a job get is the main process's to act
    on. If the workers ended at once, the step that is to be finished would fail.

    A later signal is meant for the worker alone and ends it.
    """
    first: list[float] = []

    def note(number: int, _: object) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > SAME_SIGNAL:
            os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, note)
    if then is not None:
        then(worker)


@contextmanager
def workers_ended() -> Iterator[None]:
    """When this ends, whether or not with an error, no data-loading process that was started inside is left.

    Python ends daemonic processes with SIGTERM at its exit and waits for them without a limit; ours ignore SIGTERM.
    torch waits 5 s for each one that it keeps (`persistent_workers`). Both would hold up a run that is over.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        with _children_may_die():
            for process in multiprocessing.active_children():
                if process.daemon and process not in before:
                    process.kill()
                    process.join()


@contextmanager
def _children_may_die() -> Iterator[None]:
    """While this lasts, torch does not raise for a data-loading process that is killed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def explained(output_dir: str) -> Iterator[None]:
    """Errors of a run in one line that says what to do.

    Raises:
        The error of a data-loading process without the traceback that torch writes into its message;
        ChildProcessError: such a process died; MemoryError: the GPU memory is used up.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{str(error).splitlines()[0]} Lower `per_device_train_batch_size` or `max_length`, or set "
            "`gradient_checkpointing: true`"
        ) from error
    except (ValueError, OSError) as error:
        message = own_words(error)
        if message is None:
            raise
        raise type(error)(message) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or str(error).startswith("Caught "):  # an error of our code in one
            raise
        raise ChildProcessError(
            f"{str(error).strip()} A process that loads samples was ended from outside, usually for want of memory: "
            "lower `dataloader_num_workers` or `dataloader_prefetch_factor`, or find the sample with "
            f"`--dataloader_num_workers 0`. The checkpoints in {output_dir} are untouched: resume with "
            "--resume_from_checkpoint auto"
        ) from error


def own_words(error: Exception) -> str | None:
    """The message of an error of a data-loading process, which torch hands on as "Caught ... Original Traceback ...";
    None for another error."""
    text = str(error)
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return None
    _, found, message = text.rpartition(f"\n{type(error).__name__}: ")
    return message.strip() if found else None
