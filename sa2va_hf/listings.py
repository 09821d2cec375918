"""Lists in messages: at most 20 entries and the total count, so that an error stays readable."""

from collections.abc import Iterable

LIMIT = 20


def listed(items: Iterable[object], separator: str = ", ", limit: int = LIMIT) -> str:
    """The items as text; of more than `limit` the first ones and how many there are.

    >>> listed(range(30), limit=3)
    '0, 1, 2, ... (30 in total)'
    """
    texts = [str(item) for item in items]
    if len(texts) <= limit:
        return separator.join(texts)
    return separator.join([*texts[:limit], f"... ({len(texts)} in total)"])
