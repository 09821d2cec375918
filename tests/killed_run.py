"""Toy runs that are killed at random points, one process per life, and go on until they are through.

killed_run.py SETTINGS.json    # {"output_dir", "kills", "seed", "run": settings of toy_run.run}

Lives are forks of this process, which has imported everything: a life of a second is worth killing. Writes
output_dir/lives.json: of each life its run, the seconds after which it was killed (null: it was through), and the step
it went on from.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from toy_run import run

from sa2va_hf.arguments import Sa2VATrainingArguments
from sa2va_hf.training.saving import find_checkpoint


def live(settings, seconds=None):
    """One life, killed with SIGKILL after so many seconds. Whether it got through, and how long it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(**settings)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return True, time.monotonic() - start
        if done:
            raise SystemExit(f"a life ended by itself, status {status}")
        if seconds is not None and time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, seconds
        time.sleep(0.005)


def main(output_dir, kills, seed, run):
    base, rng = Path(output_dir), random.Random(seed)
    _, longest = live(run | {"output_dir": str(base / "whole")})
    lives, number = [], 0
    while sum(one["killed"] is not None for one in lives) < kills or lives[-1]["killed"] is not None:
        folder = base / f"killed-{number}"
        settings = run | {"output_dir": str(folder), "resume_from_checkpoint": "auto"}
        begun = find_checkpoint("auto", Sa2VATrainingArguments(output_dir=str(folder)))
        enough = sum(one["killed"] is not None for one in lives) >= kills
        through, seconds = live(settings, None if enough else rng.uniform(0, longest))
        step = int(begun.rpartition("-")[2]) if begun else 0
        lives.append({"run": number, "killed": None if through else seconds, "from": step})
        if through:
            number += 1
            for kept in (base / "whole", folder):
                for checkpoint in kept.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
    (base / "lives.json").write_text(json.dumps(lives))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(**json.loads(Path(sys.argv[1]).read_text()))
