"""Write evaluation runs as one markdown page, beside the published metrics of the released models.

sa2va results RUN/metrics.json [OTHER/metrics.json ...] --output results.md
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="metrics.json files")
    parser.add_argument("--output", type=Path, help="default: print it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.evaluation.results import page

    with mistakes():
        text = page(arguments.runs)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
