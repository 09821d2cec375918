"""The help of the training commands lists every argument, and costs no import of torch."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sa2va_hf import argument_help
from sa2va_hf.argument_help import DUAL_LOOP, SA2VA, SAM2, asks_for_help, help_text
from sa2va_hf.arguments import ARGUMENTS
from sa2va_hf.training.dual_loop.arguments import DUAL_LOOP_ARGUMENTS
from sa2va_hf.training.sam2.arguments import SAM2_ARGUMENTS


@pytest.mark.parametrize(
    ("groups", "kinds"),
    [(SA2VA, ARGUMENTS), (SAM2, SAM2_ARGUMENTS), (DUAL_LOOP, DUAL_LOOP_ARGUMENTS)],
    ids=["sa2va", "sam2", "dual_loop"],
)
def test_the_help_lists_every_argument_once(groups, kinds):
    listed = [line.split()[0][2:] for line in help_text("words", groups).splitlines() if line.startswith("  --")]
    assert len(listed) == len(set(listed))
    assert set(listed) == {item.name for kind in kinds for item in fields(kind) if item.init}


def test_the_help_says_type_default_and_meaning():
    text = help_text("What the command does.", SA2VA)
    assert text.startswith("What the command does.\n\nmodel:\n")
    assert "  --learning_rate float (default: 4e-05)\n      Peak learning rate.\n" in text  # ours, not the stock one
    assert "  --train_llm lora, full, none (default: 'lora')\n" in text
    assert all(len(line) <= 119 for line in text.splitlines() if line.startswith("      "))


@pytest.mark.parametrize(
    ("argv", "asked"), [(["-h"], True), (["x.yaml", "--help"], True), (["--help_me"], False), ([], False)]
)
def test_when_help_is_asked_for(argv, asked):
    assert asks_for_help(argv) is asked


def test_the_help_imports_neither_torch_nor_transformers():
    """The module by itself, by its path: what the package imports is held elsewhere."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('found', {str(Path(argument_help.__file__))!r})\n"
        "module = sys.modules['found'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.help_text('', module.SA2VA), module.help_text('', module.SAM2)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
