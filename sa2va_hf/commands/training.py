"""What the training commands share: help that needs no torch, and a run whose mistakes are one line."""

import sys
from collections.abc import Sequence
from importlib import import_module

from sa2va_hf.argument_help import Group, asks_for_help, help_text
from sa2va_hf.command_line import mistakes


def train(argv: Sequence[str] | None, description: str, groups: Sequence[Group], builder: str) -> None:
    """Print the help, or build the trainer of a command line and run it.

    Args:
        argv: default: the arguments of the process.
        description, groups: of the help, see `help_text`.
        builder: the module whose `build` makes the trainer; imported for a run only.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if asks_for_help(argv):
        print(help_text(description, groups))
        return
    with mistakes():
        trainer, checkpoint = import_module(builder).build(argv)
        trainer.run(checkpoint)
