"""Sources whose slow part, reading masks, is left to workers."""

from collections.abc import Callable, Iterator
from functools import partial, wraps

from sa2va_hf.data.schema import Reject, Sample

Portion = Callable[[], Iterator[Sample | Reject]]


def in_portions(
    source: Callable[..., Iterator[Sample | Reject | Portion]],
) -> Callable[..., Iterator[Sample | Reject]]:
    """For a source that yields, in place of some records, calls (partials that can be pickled) that yield them.

    Called as it is, the source yields records only. `portions_of` gives what it yields by itself, so that `prepare`
    can make the calls in its worker processes.
    """

    @wraps(source)
    def records(*arguments, **options) -> Iterator[Sample | Reject]:
        for item in source(*arguments, **options):
            yield from item() if callable(item) else (item,)

    records.portions = source
    return records


def portions_of(source: Callable) -> Callable[..., Iterator[Sample | Reject | Portion]]:
    """The source (a value of SOURCES) without its calls being made; any other source as it is."""
    if isinstance(source, partial):
        return partial(portions_of(source.func), *source.args, **source.keywords)
    return getattr(source, "portions", source)
