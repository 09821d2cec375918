"""Runs of evaluate.py as one markdown page, with the published figures of the released models beside them.

    python scripts/results_page.py RUN/metrics.json [OTHER/metrics.json ...] --output results.md

The same as `sa2va results`; the code is sa2va_hf/commands/results_page.py.
"""

from sa2va_hf.commands.results_page import main

if __name__ == "__main__":
    main()
