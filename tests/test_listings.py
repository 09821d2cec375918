"""Law of lists in messages: all of a short list, the beginning and the count of a long one."""

import pytest

from sa2va_hf.listings import listed


@pytest.mark.parametrize(
    ("items", "options", "text"),
    [
        ([], {}, ""),
        (["a", 2], {}, "a, 2"),
        (range(20), {}, ", ".join(map(str, range(20)))),
        (range(21), {}, ", ".join(map(str, range(20))) + ", ... (21 in total)"),
        (iter("abc"), {"separator": "; ", "limit": 2}, "a; b; ... (3 in total)"),
    ],
)
def test_long_lists_are_cut_and_counted(items, options, text):
    assert listed(items, **options) == text
