"""Processes that need not import torch, transformers and DeepSpeed, which takes 20 s: forks of one that has.

Each is a process of its own, with the arguments, environment, signals, output and exit status of `python SCRIPT ...`.
Only what a library reads while it is imported (the Hub's address, say) is as it was when the first one began: where
that matters, and where a launcher is what is tested, tests start a process the usual way.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

TESTS = Path(__file__).parent
# Room for a machine that does something else at the same time; alone, a run of two processes takes a few seconds.
PATIENCE = int(os.environ.get("SA2VA_TEST_PATIENCE", 300))

_CONTEXT = multiprocessing.get_context("forkserver")
# The third is what ZeRO imports when a run begins: torch's compiler, 5 s.
_CONTEXT.set_forkserver_preload(["pytest", "toy_run", "deepspeed.runtime.zero.muon.original_muon"])


def start(command, stdout, stderr, environment=None):
    """`python *command`, in a session of its own, so that its loading processes can be killed with it.

    stdout, stderr: files. environment: variables beside those of this process.
    """
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])  # where toy_run is
    with mock.patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
        variables = os.environ | (environment or {})
    process = _CONTEXT.Process(target=_become, args=([str(word) for word in command], variables, stdout, stderr))
    process.start()
    return process


def _become(command, variables, stdout, stderr):
    os.setsid()
    gc.freeze()  # what was imported stays: collecting garbage need not go through it
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)  # its own children are what any process's are
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def run(command, processes=1, environment=None, patience=PATIENCE):
    """The CompletedProcess of `processes` that find each other as under torchrun, when all have ended.

    patience: seconds; a rank that takes longer is a TimeoutError. The exit status is of the first rank that failed.
    """
    places = _ranks(processes) if processes > 1 else [{}]
    with tempfile.TemporaryDirectory() as logs:
        stdout, stderr = Path(logs, "out"), Path(logs, "err")
        stdout.touch(), stderr.touch()
        ranks = [start(command, stdout, stderr, (environment or {}) | place) for place in places]
        until = time.monotonic() + patience
        try:
            for rank in ranks:
                rank.join(max(0.0, until - time.monotonic()))
            waiting = [number for number, rank in enumerate(ranks) if rank.exitcode is None]
        finally:
            for rank in ranks:
                kill(rank)
        if waiting:
            raise TimeoutError(f"after {patience} s ranks {waiting} had not ended\n" + stderr.read_text()[-4000:])
        status = next((rank.exitcode for rank in ranks if rank.exitcode), 0)
        return CompletedProcess(command, status, stdout.read_text(), stderr.read_text())


def _ranks(count):
    """What torchrun puts into the environment of each."""
    with socket.socket() as free:  # DeepSpeed alone would take 29500, which a test beside this one may have
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def kill(process):
    """With SIGKILL, and the processes that it started with it; one that has ended is left alone."""
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
