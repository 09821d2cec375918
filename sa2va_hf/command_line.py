"""Reports a mistake of the user as one line instead of a traceback.

@mistakes()
def main() -> None: ...
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Wrong arguments and data; files and processes; a loss that is not finite; memory that is used up.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)


@contextmanager
def mistakes() -> Iterator[None]:
    """A context manager and decorator that ends the process with status 1 and the message of an error on stderr.

    It catches the errors that a user can cause (`USER_ERRORS`), unless SA2VA_TRACEBACK=1 is in the environment.
    """
    if not uses_deepspeed():
        logging.getLogger("DeepSpeed").addFilter(is_error)
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("SA2VA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")


def uses_deepspeed() -> bool:
    """Whether this process was started as part of a DeepSpeed run."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or any("deepspeed" in word for word in sys.argv[1:])


def is_error(record: logging.LogRecord) -> bool:
    """Log filter: DeepSpeed is imported wherever it is installed, and announces its accelerator to runs without it."""
    return record.levelno >= logging.ERROR
