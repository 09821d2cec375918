"""Publish a model folder, or a prepared dataset, on the Hub.

    python scripts/push_to_hub.py --model outputs/mine_merged --repo USER/NAME [--private]
    python scripts/push_to_hub.py --dataset data/prepared/mine --repo USER/NAME

The same as `sa2va push`; the code is sa2va_hf/commands/push_to_hub.py.
"""

from sa2va_hf.commands.push_to_hub import main

if __name__ == "__main__":
    main()
