"""Fold a LoRA run's adapter into its base model.

    python scripts/merge_lora.py --checkpoint runs/mine --output outputs/mine_merged [--push_to_hub USER/NAME]

The same as `sa2va merge`; the code is sa2va_hf/commands/merge_lora.py.
"""

from sa2va_hf.commands.merge_lora import main

if __name__ == "__main__":
    main()
