"""Checkpoints of other layouts <-> model folders of this package, without running code from them.

    python scripts/convert_checkpoint.py --source models/Sa2VA-4B --output models/sa2va_4b

The same as `sa2va convert`; the code is sa2va_hf/commands/convert_checkpoint.py.
"""

from sa2va_hf.commands.convert_checkpoint import main

if __name__ == "__main__":
    main()
