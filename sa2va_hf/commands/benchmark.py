"""Measure what the documentation claims about speed and memory, as ratios within one run.

    python scripts/benchmark.py inference [--size tiny|large] [--model DIR] [--device cpu|cuda]
    python scripts/benchmark.py data
    python scripts/benchmark.py train [--size tiny|2b|8b]
    python scripts/benchmark.py metrics
    python scripts/benchmark.py sam2 [--size tiny|small|base_plus|large] [--image_size 1024]
    python scripts/benchmark.py search [--scenes 20] [--max_crops 40] [--sheets DIR]
    ... --output docs/benchmarks.md        append the tables to this file

Each command is a module of sa2va_hf/profiling/. Prints markdown tables as they are ready; docs/benchmarks.md holds
those of known machines.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from sa2va_hf.profiling import data, inference, metrics, sam2, search, train
from sa2va_hf.profiling.report import machine

COMMANDS = {"inference": inference, "data": data, "metrics": metrics, "train": train, "sam2": sam2, "search": search}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0], allow_abbrev=False)
        module.add_arguments(command)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")
        command.add_argument("--output", type=Path, help="append the tables to this file")
    arguments = parser.parse_args(argv)
    parts = [f"## {arguments.command}: {machine(arguments.device)}"]
    print(parts[0], flush=True)
    for part in COMMANDS[arguments.command].run(arguments):
        print(f"\n{part}", flush=True)
        parts.append(part)
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
