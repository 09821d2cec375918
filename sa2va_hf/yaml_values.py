"""YAML files read strictly: no duplicate keys, and every value checked against the type its field declares."""

from __future__ import annotations

import enum
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{node.start_mark.name}: key `{twice[0]}` is given twice")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | Path, kind: type | tuple[type, ...]) -> Any:
    """The file's content, which must be a `kind` (dict, list, or either).

    Raises:
        ValueError: naming the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (relative paths start at {Path.cwd()})")
    with open(path, encoding="utf-8") as file:
        try:
            value = yaml.load(file, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, kind):
        names = {list: "a list", dict: "a mapping (key: value)"}
        expected = " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{path}: expected {expected}, got {type(value).__name__}")
    return value


def coerce(value: Any, hint: Any, key: str, source: str) -> Any:
    """`value` as the type `hint`, or ValueError naming key and file.

    Only one conversion is made: YAML 1.1 reads `4e-5` as text, and a number is meant.
    """
    fits, result = _fit(value, hint)
    if not fits:
        raise ValueError(f"{source}: `{key}` expected {_describe(hint)}, got {value!r} ({type(value).__name__})")
    return result


def suggest(key: Any, known: Any) -> str:
    """What may have been meant by a key that is not known: " (did you mean `x`?)", or "" when nothing is near."""
    matches = get_close_matches(str(key), known, n=3)
    return f" (did you mean {' or '.join(f'`{match}`' for match in matches)}?)" if matches else ""


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True, value
    if origin in (typing.Union, types.UnionType):
        if any(_is_enum(option) for option in arguments):  # `IntervalStrategy | str` means the names of the former
            arguments = [option for option in arguments if option is not str]
        found = [result for fits, result in (_fit(value, option) for option in arguments) if fits]
        return bool(found), found[0] if found else None
    if origin is Literal:
        return value in arguments, value
    if _is_enum(hint):
        return value in [member.value for member in hint], value
    if hint is float:
        return _fit_float(value)
    if origin is list:
        items = [_fit(item, arguments[0]) for item in value] if isinstance(value, list) else [(False, None)]
        return all(fits for fits, _ in items), [item for _, item in items]
    if isinstance(value, bool):  # bool is an int to Python, not to a reader
        return hint is bool, value
    kind = origin or hint
    return isinstance(value, types.NoneType if kind is None else kind), value


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _fit_float(value: Any) -> tuple[bool, Any]:
    if isinstance(value, str):
        try:
            return True, float(value)
        except ValueError:
            return False, None
    return isinstance(value, int | float) and not isinstance(value, bool), value


def _describe(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hidden = (types.NoneType, str) if any(_is_enum(option) for option in arguments) else (types.NoneType,)
        return " or ".join(_describe(option) for option in arguments if option not in hidden)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_enum(hint):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is list:
        return f"a list of {_describe(arguments[0])}"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", dict: "a mapping"}
    return names.get(typing.get_origin(hint) or hint, str(hint))
