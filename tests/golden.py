"""The folder of numbers that the original code gave, for tests that compare with it: formulas and stored arrays."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest


def references(shared_data: Path) -> Path:
    """golden/refs beside the samples; the test is skipped without it."""
    folder = shared_data.parent / "golden/refs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def system(shared_data: Path, name: str) -> dict:
    """A JSON file of golden/systems beside the samples; the test is skipped without it."""
    file = shared_data.parent / "golden/systems" / name
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    return json.loads(file.read_text())


@cache
def formulas(folder: Path) -> ModuleType:
    """The deterministic inputs: `sam2_tensor`, `probe`, `draw`, `unpack`, ..."""
    specification = importlib.util.spec_from_file_location("golden_formulas", folder / "formulas.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def systems(shared_data: Path) -> Path:
    """golden/systems beside the samples: search, dual loop, boxes; the test is skipped without it."""
    folder = shared_data.parent / "golden/systems"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
