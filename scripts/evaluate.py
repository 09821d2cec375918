"""Evaluate a model on a benchmark.

    python scripts/evaluate.py --model DIR --benchmark NAME --root DIR --output metrics.json

The same as `sa2va evaluate`; the code is sa2va_hf/commands/evaluate.py.
"""

from sa2va_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
