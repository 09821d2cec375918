"""Train Sa2VA on objects without text: describe one in a picture, find it again in another, from those words alone.

    accelerate launch scripts/train_dual_loop.py CONFIG.yaml [--any_argument value]

The arguments: --help, or sa2va_hf/training/dual_loop/arguments.py (and every field of transformers.TrainingArguments).
Several processes, as with scripts/train.py:

    torchrun --nproc_per_node 8 scripts/train_dual_loop.py CONFIG.yaml [--deepspeed ds_configs/zero2.json]

Resume after an interruption: --resume_from_checkpoint auto. The data and what is logged: docs/dual_loop.md
Afterwards: scripts/merge_lora.py --checkpoint OUTPUT_DIR --output MODEL_DIR
"""

from collections.abc import Sequence

from sa2va_hf.argument_help import DUAL_LOOP
from sa2va_hf.commands.training import train


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    train(argv, __doc__, DUAL_LOOP, "sa2va_hf.training.dual_loop.build")


if __name__ == "__main__":
    main()
