"""Random samples of a prepared folder, with masks, boxes and text: look before you train.

    python scripts/inspect_data.py arrow/refcoco --output sheet.html [--count 24] [--seed 0]

The same as `sa2va inspect`; the code is sa2va_hf/commands/inspect_data.py.
"""

from sa2va_hf.commands.inspect_data import main

if __name__ == "__main__":
    main()
