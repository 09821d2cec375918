"""The house rules that a machine can hold: who may import whom, and how long a file or a function may get.

Run: pytest tests/test_layers.py
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sa2va_hf"

# The rooms of the package; what stands on the right is all of ours that a room may import, beside itself.
# The longest key that fits a module decides.
MAY_IMPORT = {
    "": {
        "auto_classes",
        "arguments",
        "model",
        "data",
        "masks",
        "training",
        "inference",
        "evaluation",
        "checkpoints",
        "drawing",
    },
    "arguments": {"mixtures", "yaml_values"},
    "mixtures": {"yaml_values"},
    "yaml_values": set(),
    "auto_classes": set(),
    "command_line": set(),
    "commands": {"*"},
    "listings": set(),
    "masks": {"boxes"},
    "mask_pictures": set(),
    "components": {"boxes"},
    "boxes": set(),
    "drawing": set(),
    "model": set(),
    "data": {
        "boxes",
        "components",
        "listings",
        "mask_pictures",
        "masks",
        "model.configuration_sa2va",
        "model.frames",
        "model.visuals",
    },
    "argument_help": set(),
    "training": {
        "masks",
        "data",
        "model",
        "arguments",
        "mixtures",
        "yaml_values",
        "checkpoints.trackers",
        "evaluation.metrics",
        "evaluation.video_metrics",
        "checkpoints.card",
        "checkpoints.files",
        "checkpoints.hub",
        "checkpoints.names",
        "checkpoints.vocabulary",
        "boxes",
        "listings",
    },
    "checkpoints": {"model", "listings"},
    "inference": {"boxes", "locating", "model", "prediction", "streaming"},
    "streaming": {"drawing", "masks", "model.visuals", "prediction"},
    "prediction": {"drawing", "masks", "model"},
    "pipeline": {"inference", "prediction"},
    "evaluation": {
        "boxes",
        "inference",
        "pseudo_labels",
        "masks",
        "data",
        "drawing",
        "model.configuration_sa2va",
        "model.frames",
        "model.postprocessing",
        "model.tracking",
        "search",
        "locating",
    },
    "inspection": {"boxes", "data", "masks", "drawing", "model.frames"},
    "profiling": {
        "boxes",
        "components",
        "mask_pictures",
        "search",
        "",
        "data",
        "masks",
        "inference",
        "evaluation",
        "training",
        "arguments",
        "checkpoints",
        "model",
        "serving",
    },  # fmt: skip
    "quickstart": {"data", "masks", "inference", "drawing", "evaluation.metrics", "model", "training"},
    "generated_images": set(),
    "pseudo_labels": {"components", "inference", "data", "masks", "model"},
    "vos_inference": {"components", "model", "data", "masks"},
    "locating": {"boxes", "data.prompts", "model", "prediction"},
    "search": {"boxes", "components", "data.prompts", "inference", "drawing", "model.visuals"},
    "serving": {"inference", "prediction", "streaming", "masks", "drawing", "model.configuration_sa2va"},
    "integrations": {"inference", "model.configuration_sa2va"},
}


def module_name(path: Path) -> str:
    """`sa2va_hf/data/schema.py` -> "data.schema"; `sa2va_hf/data/__init__.py` -> "data"; the topmost one -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import, those inside functions too. `from a import b` gives "a.b"."""
    package = ("sa2va_hf", *path.relative_to(PACKAGE).parts[:-1]) if path.is_relative_to(PACKAGE) else ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{start}.{alias.name}") for alias in node.names]
    return found


def allowed(importer: str, imported: str) -> bool:
    """Whether module `importer` may import `imported`, both named from the package's root."""

    def inside(name: str, room: str) -> bool:
        return name == room or name.startswith(room + ".")

    room = max((key for key in MAY_IMPORT if not key or inside(importer, key)), key=len)
    if room == "" and importer:  # a module nobody planned: give it a line in MAY_IMPORT
        return False
    others = MAY_IMPORT[room] | ({room} if room else set())
    return "*" in others or any(inside(imported, other) for other in others)


def broken_layers(tree: ast.AST, path: Path) -> list[str]:
    """What a module of the package imports against the plan."""
    name, problems = module_name(path), []
    for line, target in imports(tree, path):
        top, _, rest = target.partition(".")
        if top in ("scripts", "tests"):
            problems.append(f"{path}:{line} imports {target}: nothing imports a script or a test")
        elif top == "sa2va_hf" and not allowed(name, rest):
            problems.append(f"{path}:{line} imports {target}: not in MAY_IMPORT of {name!r}")
        elif top == "pycocotools" and name != "masks":
            problems.append(f"{path}:{line} imports {target}: only sa2va_hf/masks.py does")
    return problems


def module_graph(sources: dict[Path, ast.AST]) -> dict[str, set[str]]:
    """Module -> modules of the package it imports, anywhere in its file: in functions, for type checking as well."""
    names, graph = {module_name(path) for path in sources}, {}
    for path, tree in sources.items():
        found = set()
        for _, target in imports(tree, path):
            top, *parts = target.split(".")
            if top == "sa2va_hf":  # "a.b.c": the module a.b.c, or the name c of the module a.b
                found.add(next((m for m in (".".join(parts), ".".join(parts[:-1])) if m in names), ""))
        graph[module_name(path)] = found - {module_name(path)}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each imports every other, directly or by way of others."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for name in graph.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach.get(other, ()))) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def far_imports(tree: ast.AST) -> list[int]:
    """Lines of model/ that would not survive the journey with the weights: anything of ours but `from .x import y`."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "sa2va_hf" for alias in node.names):
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and (
            node.level > 1 or (not node.level and node.module.split(".")[0] == "sa2va_hf")
        ):
            lines.append(node.lineno)
    return lines


def prints(tree: ast.AST) -> list[int]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def long_functions(tree: ast.AST, limit: int) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {f"{node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1 for node in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > limit]


PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=[str(file.relative_to(ROOT)) for file in files])


@each(PACKAGE_FILES)
def test_imports_point_one_way(path):
    assert not broken_layers(ast.parse(path.read_text()), path)


def test_no_modules_import_each_other():
    sources = {path: ast.parse(path.read_text()) for path in PACKAGE_FILES}
    assert circles(module_graph(sources)) == []


def test_the_rule_against_circles_itself():
    sources = {
        "a.py": "from .b import f",
        "b.py": "if TYPE_CHECKING:\n    from .c.d import g",
        "c/d.py": "def late():\n    from ..a import h",
        "e.py": "from .a import f",
        "__init__.py": "from .e import f",
    }
    graph = module_graph({PACKAGE / file: ast.parse(text) for file, text in sources.items()})
    assert graph["c.d"] == {"a"} and graph[""] == {"e"} and circles(graph) == [["a", "b", "c.d"]]


@each(sorted((PACKAGE / "model").rglob("*.py")))
def test_model_travels_alone(path):
    lines = far_imports(ast.parse(path.read_text()))
    assert not lines, f"{path} lines {lines}: model/ travels with its weights, so it only says `from .x import y`"


@each(PACKAGE_FILES)
def test_package_does_not_print(path):
    lines = [] if path.parent.name == "commands" else prints(ast.parse(path.read_text()))
    assert not lines, f"{path} prints on lines {lines}; the package logs, commands print"


@each(PACKAGE_FILES + SCRIPTS)
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 600, f"{path}: two thoughts, two files"
    assert not long_functions(ast.parse(text), limit=80)


@each(SCRIPTS)
def test_a_script_says_its_command_and_imports_no_other(path):
    tree = ast.parse(path.read_text())
    assert f"scripts/{path.name}" in (ast.get_docstring(tree) or ""), f"{path}: the docstring is the command"
    siblings = {script.stem for script in SCRIPTS} | {"scripts"}
    assert not [name for _, name in imports(tree, path) if name.split(".")[0] in siblings - {"evaluate"}]


@pytest.mark.parametrize(
    ("file", "source", "fine"),
    [
        ("data/schema.py", "from sa2va_hf.masks import encode", True),
        ("data/schema.py", "from ..masks import encode", True),
        ("data/sources/coco.py", "from ..schema import Sample", True),
        ("data/sources/coco.py", "from sa2va_hf.model.configuration_sa2va import SEG_TOKEN", True),
        ("data/schema.py", "from sa2va_hf.model import modeling_sa2va", False),
        ("data/schema.py", "from sa2va_hf.inference import Sa2VAPredictor", False),
        ("data/schema.py", "def late():\n    from ..training.trainer import Sa2VATrainer", False),
        ("data/media.py", "import pycocotools.mask", False),
        ("masks.py", "from pycocotools import mask", True),
        ("masks.py", "from .data.schema import Sample", False),
        ("training/sa2va/trainer.py", "from sa2va_hf.evaluation.metrics import ciou", True),
        ("training/sa2va/trainer.py", "from sa2va_hf.evaluation.benchmarks import run", False),
        ("model/losses.py", "from sa2va_hf.masks import decode", False),
        ("inference.py", "from scripts.predict import main", False),
        ("helpers.py", "from .masks import decode", False),
        ("__init__.py", "from .inference import Sa2VAPredictor", True),
    ],
)
def test_the_import_rule_itself(file, source, fine):
    assert (not broken_layers(ast.parse(source), PACKAGE / file)) is fine


def test_the_other_rules_themselves():
    assert far_imports(ast.parse("from .losses import dice\nimport torch")) == []
    assert far_imports(ast.parse("from ..masks import encode\nimport sa2va_hf.masks\nfrom sa2va_hf import masks")) == [
        1,
        2,
        3,
    ]
    assert prints(ast.parse("logger.info('x')\nprint('x')")) == [2]
    assert long_functions(ast.parse("def f():\n    a = 1\n    b = 2"), limit=2) == ["f (line 1): 3 lines"]
