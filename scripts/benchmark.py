"""Measure what the documentation claims about speed and memory, as ratios within one run.

    python scripts/benchmark.py inference [--size tiny|large] [--model DIR] [--device cpu|cuda]

The same as `sa2va benchmark`; the code is sa2va_hf/commands/benchmark.py.
"""

from sa2va_hf.commands.benchmark import main

if __name__ == "__main__":
    main()
