"""Serve a model to OpenAI's clients: chat with an image or a video, masks beside the answer.

    python scripts/serve.py --model DIR [--host 127.0.0.1] [--port 8000]

The same as `sa2va serve`; the code is sa2va_hf/commands/serve.py.
"""

from sa2va_hf.commands.serve import main

if __name__ == "__main__":
    main()
