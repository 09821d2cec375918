"""How a script ends when its user has made a mistake: with one line, not a traceback.

if __name__ == "__main__":
    with mistakes():
        sys.exit(main())
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mistakes() -> Iterator[None]:
    """ValueError and OSError, which is what every mistake of a user's raises here, end the process with their message
    on stderr and status 1. With SA2VA_TRACEBACK=1 in the environment they stay as they are."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SA2VA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
