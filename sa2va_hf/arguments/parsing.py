"""One YAML file and the command line -> argument dataclasses, and back."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..yaml_values import coerce, read_yaml, suggest
from .base import BaseTrainingArguments
from .sa2va import ARGUMENTS

__all__ = ["CONFIG_NAME", "parse", "save_config"]

CONFIG_NAME = "train_config.yaml"
SECRETS = ("hub_token",)  # never written down


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"command line: {message}")


def parse(argv: list[str], kinds: tuple[type, ...] = ARGUMENTS) -> tuple[Any, ...]:
    """Read `[CONFIG.yaml] [--name value ...]` into dataclasses, the last of which are training arguments: dataclass
    default < YAML < command line.

    Raises:
        ValueError: naming the key, its file (or the command line), what was expected and what was found.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    names = [item.name for kind in kinds for item in fields(kind) if item.init]
    parser = _Parser(kinds, allow_abbrev=False)
    if argv and argv[0].endswith((".yaml", ".yml")):
        path, argv = argv[0], argv[1:]
        config = read_yaml(path, dict)
        for key in config:
            if key not in names:
                raise ValueError(f"{path}: unknown key `{key}`{suggest(key, names)}")
        parser.set_defaults(**{key: coerce(value, hints[key], key, path) for key, value in config.items()})
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"command line: unknown argument {unknown[0]!r}{suggest(unknown[0].lstrip('-'), names)}")
    built = tuple(
        kind(**{item.name: getattr(namespace, item.name) for item in fields(kind) if item.init}) for kind in kinds
    )
    built[-1].resolved = _resolved(namespace, kinds)
    return built


def _resolved(namespace: Namespace, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The settings of a run, such that `parse` reads the same run from them.

    All that our own classes declare, whatever its value, and what differs from the default among the fields of
    `transformers.TrainingArguments`: another version of transformers may lack some of those.
    """
    ours, values = {name for kind in kinds for name in _declared(kind)}, {}
    for kind in kinds:
        for item in fields(kind):
            value = getattr(namespace, item.name, None)
            changed = value is not None and value != _default(item)
            if item.init and item.name not in SECRETS and (item.name in ours or changed):
                values[item.name] = getattr(value, "value", value)
    return values


def _declared(kind: type) -> set[str]:
    """The names of the fields that a class or a base of it in this package declares."""
    classes = [one for one in kind.__mro__ if one.__module__.startswith(__package__.split(".")[0] + ".")]
    return {name for one in classes for name in one.__dict__.get("__annotations__", {})}


def _default(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def save_config(training: BaseTrainingArguments) -> Path:
    """Write what `parse` resolved into the run's folder, as a YAML file that `parse` reads back: its path."""
    folder = Path(training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_NAME
    path.write_text(yaml.safe_dump(training.resolved, sort_keys=False, allow_unicode=True))
    return path
