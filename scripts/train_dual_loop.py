"""Train Sa2VA on objects without text, by describing them and finding them again.

    accelerate launch scripts/train_dual_loop.py configs/dual_loop_4b.yaml [--any_argument value]

The same as `sa2va dual-loop`; the code is sa2va_hf/commands/train_dual_loop.py.
"""

from sa2va_hf.commands.train_dual_loop import main

if __name__ == "__main__":
    main()
