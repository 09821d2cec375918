"""Fine-tune SAM 2 on pictures and videos: promptable, with memory, one process or many.

    accelerate launch scripts/train_sam2.py configs/sam2/mose_finetune.yaml [--any_argument value]

The same as `sa2va train-sam2`; the code is sa2va_hf/commands/train_sam2.py.
"""

from sa2va_hf.commands.train_sam2 import main

if __name__ == "__main__":
    main()
