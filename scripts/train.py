"""Train Sa2VA: LoRA or full, one process or many, with or without DeepSpeed.

    accelerate launch scripts/train.py CONFIG.yaml [--any_argument value]

The same as `sa2va train`; the code is sa2va_hf/commands/train.py.
"""

from sa2va_hf.commands.train import main

if __name__ == "__main__":
    main()
