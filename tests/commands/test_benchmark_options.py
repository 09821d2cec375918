import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from sa2va_hf.commands.benchmark import MEASUREMENTS, make_parser

OF_THE_COMMAND = {"command", "output"}  # which the command itself reads


def read_by(name: str) -> set[str]:
    """The fields of `arguments` that the code of a measurement reads."""
    tree = ast.parse(Path(find_spec(f"sa2va_hf.profiling.{name}").origin).read_text(encoding="utf-8"))
    accesses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in accesses if ast.unparse(node.value) in ("arguments", "self.arguments")}


@pytest.mark.parametrize("name", [measurement.__name__ for measurement in MEASUREMENTS])
def test_the_options_offered_are_those_that_are_read(name):
    offered = vars(make_parser().parse_args([name])).keys() - OF_THE_COMMAND
    assert offered == read_by(name)
