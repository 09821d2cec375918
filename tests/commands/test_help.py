"""--help answers at once, and what it says is what the package does.

Run: pytest tests/commands/test_help.py
"""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sa2va_hf import commands
from sa2va_hf.checkpoints.convert import FORMATS
from sa2va_hf.commands import COMMANDS
from sa2va_hf.evaluation.following import CONVENTIONS
from sa2va_hf.evaluation.items import BASELINES, MODES
from sa2va_hf.model.configuration_sa2va import SAM2_TRUNKS, SAM2_VERSIONS
from sa2va_hf.model.video_modes import VIDEO_MODES
from sa2va_hf.profiling.trackers import GROUNDINGS
from sa2va_hf.profiling.train import _LLMS
from sa2va_hf.pseudo_labels import Filter
from sa2va_hf.search.locator import CONFIDENCES, SIDE

ROOT = Path(__file__).resolve().parents[2]
OWN = {"quickstart", "make_shapes_tiny"}  # they run other commands, and are no commands of the package
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
HEAVY = ("torch", "transformers", "datasets", "sam2")  # numpy takes a tenth of a second
CHECK = f"""
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
loaded = {set(HEAVY)} & sys.modules.keys()
assert not loaded, f"--help imports {{loaded}}"
"""


def module(name):
    return import_module(f"sa2va_hf.commands.{COMMANDS[name][0]}")


def options(name):
    return {action.dest: action for action in module(name).make_parser()._actions}


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in OWN])
def test_help_imports_nothing_heavy(script):
    path = ROOT / f"scripts/{script}.py"
    done = subprocess.run([sys.executable, "-c", CHECK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and "--help" in done.stdout or "-h" in done.stdout


def test_every_script_is_a_command():
    assert sorted(file for file, _ in COMMANDS.values()) == [name for name in SCRIPTS if name not in OWN]
    for name in COMMANDS:
        assert callable(module(name).main)


def test_choices_are_those_of_the_package():
    """They stand in the parsers as well, so that --help need not import the package's modules."""
    evaluate = options("evaluate")
    assert set(evaluate["mode"].choices) == set(MODES) and set(evaluate["baseline"].choices) == set(BASELINES)
    assert set(evaluate["video_mode"].choices) == set(VIDEO_MODES)
    assert set(options("vos")["convention"].choices) == set(CONVENTIONS)
    convert = options("convert")
    assert set(convert["to"].choices) == set(FORMATS)
    assert set(convert["sam2"].choices) == {f"{version}-{size}" for version in SAM2_VERSIONS for size in SAM2_TRUNKS}
    benchmarks = options("benchmark")["command"].choices
    sizes = {name: {a.dest: a for a in parser._actions}["size"].choices for name, parser in benchmarks.items() if
             name in ("train", "sam2")}  # fmt: skip
    assert set(sizes["train"]) == {"tiny", *_LLMS} and set(sizes["sam2"]) == set(SAM2_TRUNKS)
    flags = {action.dest: action for action in benchmarks["inference"]._actions}
    assert {(name, size) for name in flags["grounding"].choices for size in flags["size"].choices} == set(GROUNDINGS)
    assert options("search")["crop_size"].default == SIDE
    assert options("search")["confidence"].choices == CONFIDENCES
    label = options("pseudo-label")
    usual = Filter()
    for field in ("min_area_ratio", "max_area_ratio", "min_score"):
        assert label[field].default == getattr(usual, field)


def test_the_names_of_sources_are_printed_and_checked(capsys):
    from sa2va_hf.data.sources import SOURCES

    with pytest.raises(SystemExit) as end:
        commands.main(["prepare", "--source", "list"])
    assert not end.value.code and capsys.readouterr().out.split() == list(SOURCES)
    with pytest.raises(SystemExit) as end:
        commands.main(["prepare", "--source", "nowhere", "--split", "train", "--check"])
    assert end.value.code == 2 and "invalid choice: 'nowhere' (choose from shapes, refcoco," in capsys.readouterr().err


def test_the_command_line_of_the_package(capsys):
    assert commands.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert commands.main(["nothing"]) == 2
    assert "unknown command 'nothing'; expected one of prepare, inspect" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        commands.main(["evaluate", "--benchmark", "shapes", "--limit", "0"])
    assert end.value.code == 2
