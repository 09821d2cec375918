"""Predict masks for folders of parts (ROOT/handle/mug/0001.png) that have none, and write them beside the images.

    python scripts/pseudo_label.py --model DIR --root ROOT

The same as `sa2va pseudo-label`; the code is sa2va_hf/commands/pseudo_label.py.
"""

from sa2va_hf.commands.pseudo_label import main

if __name__ == "__main__":
    main()
