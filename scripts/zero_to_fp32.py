"""DeepSpeed shards -> safetensors that from_pretrained loads; of a LoRA run, the adapter for merge_lora.py.

    python scripts/zero_to_fp32.py runs/mine/checkpoint-1000 outputs/mine_fp32

The same as `sa2va zero-to-fp32`; the code is sa2va_hf/commands/zero_to_fp32.py.
"""

from sa2va_hf.commands.zero_to_fp32 import main

if __name__ == "__main__":
    main()
