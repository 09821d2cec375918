"""README speaks of files and sources that exist, and its Python is Python.

Run: pytest tests/test_readme.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_file_it_names_exists():
    named = re.findall(r"(?:scripts|configs|ds_configs|tests|sa2va_hf)/[\w/.+-]*\w", README)
    examples = {"sa2va_hf/data/sources/yours.py", "tests/data/sources/test_yours.py"}
    missing = sorted({name for name in named if not (ROOT / name).exists()} - examples)
    assert named and not missing


def test_the_map_names_every_module():
    tree = (ROOT / "docs/map.md").read_text()
    modules = sorted(path.relative_to(ROOT / "sa2va_hf") for path in (ROOT / "sa2va_hf").rglob("*.py"))
    spoken_for = ("data/sources/", "data/shapes/")  # by one line each
    unnamed = [
        str(module)
        for module in modules
        if module.name != "__init__.py" and not str(module).startswith(spoken_for) and module.name not in tree
    ]
    assert modules and not unnamed


def test_every_source_it_names_exists():
    from sa2va_hf.data.sources import SOURCES

    own = README.split("## Fine-tune on your own masks")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", own, flags=re.MULTILINE)
    names = {*re.findall(r"prepare_data\.py --source (\w+)", README), *rows} - {"yours", "NAME"}
    assert names and names <= set(SOURCES)


def test_its_python_parses():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
