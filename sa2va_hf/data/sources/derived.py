"""Sources that make their samples from those of another source, their base."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.portions import Portion, portions_of


def base_records(
    sources: Mapping[str, Callable[..., Iterator[Sample | Reject]]],
    name: str,
    base: str,
    root: Path | str | None,
    split: str,
    options: Mapping[str, Any],
    example: str,
) -> Iterator[Sample | Reject | Portion]:
    """What the base yields.

    Args:
        name: of the source that is derived, which is no base of its own. example: of bases, for the message.

    Raises:
        ValueError: a base or an option that is not there, or no root where the base reads files.
    """
    if base not in sources or base == name:
        raise ValueError(f"base must be a source that gives masks, as {example}, got {base!r}")
    parameters = inspect.signature(sources[base]).parameters
    own = [key for key, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if (unknown := sorted(set(options) - set(own))) and not open_ended:
        raise ValueError(f"base {base!r} has no option {', '.join(unknown)}; it has {', '.join(own)}")
    if root is None and parameters["root"].default is inspect.Parameter.empty:
        raise ValueError(f"base {base!r} reads files: a root folder is needed")
    return portions_of(sources[base])(root, split, **options)
