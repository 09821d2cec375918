"""`python -m sa2va_hf.commands NAME ...`: the same as `sa2va NAME ...`."""

import sys

from sa2va_hf.commands import main

if __name__ == "__main__":
    sys.exit(main())
