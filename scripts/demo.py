"""Open a web page to chat with a model about images and videos, with region boxes and masks.

    python scripts/demo.py --model DIR [--port 7860]

The same as `sa2va demo`; the code is sa2va_hf/commands/demo.py.
"""

from sa2va_hf.commands.demo import main

if __name__ == "__main__":
    main()
