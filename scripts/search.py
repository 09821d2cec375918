"""Search a large picture for a small target, crop by crop, as V* does.

    python scripts/search.py --model DIR --image FILE --target "red mug" --output DIR

The same as `sa2va search`; the code is sa2va_hf/commands/search.py.
"""

from sa2va_hf.commands.search import main

if __name__ == "__main__":
    main()
