"""Options of a source as they stand on a command line: "size=96", "tasks=[referring]", "part={part} of {object}"."""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml


def parse_options(pairs: Sequence[str], source: Callable) -> dict[str, Any]:
    """["size=96", "tasks=[referring]"] -> {"size": 96, "tasks": ["referring"]}.

    Values are YAML. Those of an option that the source declares as text stay as they are written where YAML would
    make something else of them, as of {part} or 2017. Raises ValueError naming the option that cannot be read.
    """
    parameters = inspect.signature(source).parameters
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--option expects KEY=VALUE, got {pair!r}")
        if key in options:
            raise ValueError(f"--option {key} is given twice")
        declared = parameters[key].annotation if key in parameters else Any
        try:
            options[key] = _value(text, get_args(declared) if isinstance(declared, UnionType) else (declared,))
        except yaml.YAMLError as error:
            raise ValueError(f"--option {pair}: {error}") from error
    return options


def _value(text: str, kinds: tuple) -> Any:
    """The text as YAML, or as it is where text is one of the kinds and what YAML makes of it is none of them."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if str in kinds:
            return text
        raise
    if str not in kinds or isinstance(value, str) or (value is None and NoneType in kinds):
        return value
    is_list = isinstance(value, list) and any(get_origin(kind) is Sequence for kind in kinds)
    return value if is_list else text
