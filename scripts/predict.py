"""Ask a model about an image or a video, and write its answer and its masks.

    python scripts/predict.py --model DIR --image FILE --text "Please segment the dog." --output DIR

The same as `sa2va predict`; the code is sa2va_hf/commands/predict.py.
"""

from sa2va_hf.commands.predict import main

if __name__ == "__main__":
    main()
