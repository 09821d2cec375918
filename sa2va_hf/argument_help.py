"""The help of the training commands, read from the source of the argument classes.

Importing them costs seconds: `transformers.TrainingArguments` needs torch. Their fields, defaults and help texts are
literals in the source, so they are parsed instead; the installed version of transformers is the one that is read.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_OURS = Path(__file__).parent

# (title, [(file, class)]): a class, then its bases. A field is listed under the first class that declares it.
Group = tuple[str, Sequence[tuple[str, str]]]
_STOCK = ("transformers.TrainingArguments", [("transformers/training_args.py", "TrainingArguments")])
SA2VA: tuple[Group, ...] = (
    ("model", [("arguments/sa2va.py", "ModelArguments")]),
    ("data", [("arguments/sa2va.py", "DataArguments")]),
    (
        "training",
        [("arguments/sa2va.py", "Sa2VATrainingArguments"), ("arguments/base.py", "BaseTrainingArguments")],
    ),
    _STOCK,
)
SAM2: tuple[Group, ...] = (
    ("model", [("training/sam2/arguments.py", "Sam2ModelArguments")]),
    ("data", [("training/sam2/arguments.py", "Sam2DataArguments")]),
    ("prompts", [("training/sam2/prompting.py", "PromptSettings")]),
    ("losses", [("training/sam2/losses.py", "LossSettings")]),
    ("augmentation", [("data/clips/transforms.py", "Augmentation")]),
    (
        "training",
        [("training/sam2/arguments.py", "Sam2TrainingArguments"), ("arguments/base.py", "BaseTrainingArguments")],
    ),
    _STOCK,
)
DUAL_LOOP: tuple[Group, ...] = (
    SA2VA[0],
    ("data", [("training/dual_loop/arguments.py", "DualLoopDataArguments")]),
    ("loops", [("training/dual_loop/arguments.py", "LoopSettings")]),
    (
        "training",
        [
            ("training/dual_loop/arguments.py", "DualLoopTrainingArguments"),
            ("arguments/sa2va.py", "Sa2VATrainingArguments"),
            ("arguments/base.py", "BaseTrainingArguments"),
        ],
    ),
    _STOCK,
)


@dataclass
class Argument:
    """One field of an argument class, as its source gives it."""

    name: str
    type: str
    default: str
    help: str


def asks_for_help(argv: Iterable[str]) -> bool:
    return bool({"-h", "--help"} & set(argv))


def help_text(description: str, groups: Sequence[Group], width: int = 119) -> str:
    """The help of a command: its description, and every argument with type, default and help, group by group."""
    lines, listed = [description.strip()], set()
    for title, classes in groups:
        lines += ["", f"{title}:"]
        for file, name in classes:
            for argument in arguments_of(file, name):
                if argument.name not in listed:
                    listed.add(argument.name)
                    lines += _described(argument, width)
    return "\n".join(lines)


def arguments_of(file: str, name: str) -> list[Argument]:
    """The fields that the dataclass `name` in `file` declares itself. file: below the package, or in transformers."""
    top, _, rest = file.partition("/")
    path = _OURS / file
    if top == "transformers":
        path = Path(find_spec(top).origin).parent / rest
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    read = [_argument(node) for node in fields if not ast.unparse(node.annotation).startswith("ClassVar")]
    return [argument for argument in read if argument is not None]


def _argument(node: ast.AnnAssign) -> Argument | None:
    """The argument of one `name: type = value` of a dataclass; None for a field that is not given."""
    name, kind = node.target.id, ast.unparse(node.annotation)
    call = node.value
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "field"):
        return Argument(name, kind, "" if call is None else ast.unparse(call), "")
    options = {one.arg: one.value for one in call.keywords}
    if "init" in options and not ast.literal_eval(options["init"]):
        return None
    default = options.get("default", options.get("default_factory"))
    return Argument(name, kind, "" if default is None else ast.unparse(default), _help(options.get("metadata")))


def _help(metadata: ast.expr | None) -> str:
    if not isinstance(metadata, ast.Dict):
        return ""
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            try:
                return " ".join(str(ast.literal_eval(value)).split())
            except ValueError:  # put together when it runs
                return ast.unparse(value)
    return ""


def _described(argument: Argument, width: int) -> list[str]:
    kind = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), argument.type)
    head = f"  --{argument.name} {kind}"
    default = argument.default.removeprefix("lambda: ")
    if default not in ("", "None"):
        head += f" (default: {default})"
    indent = " " * 6
    return [head, *textwrap.wrap(argument.help, width, initial_indent=indent, subsequent_indent=indent)]
