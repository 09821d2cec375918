"""A raw dataset as Arrow that training reads, checked record by record, with a manifest.json.

    python scripts/prepare_data.py --source refcoco --root ref_seg --split train --output arrow/refcoco --num_proc 4

The same as `sa2va prepare`; the code is sa2va_hf/commands/prepare_data.py.
"""

import sys

from sa2va_hf.commands.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
