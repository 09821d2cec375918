"""How a script ends when its user has made a mistake: with one line, not a traceback.

if __name__ == "__main__":
    with mistakes():
        sys.exit(main())
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Wrong arguments and data; files and processes; a loss that is not finite; memory that is used up.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)


@contextmanager
def mistakes() -> Iterator[None]:
    """The errors that a user can cause (`USER_ERRORS`) end the process with their message on stderr and status 1.

    With SA2VA_TRACEBACK=1 in the environment they are raised as they are.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("SA2VA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
