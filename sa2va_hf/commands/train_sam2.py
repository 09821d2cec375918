"""Fine-tune SAM 2 or SAM 3 on images and videos: promptable, with memory, one process or many.

    python scripts/prepare_data.py --source vos_folders --root MOSE --split train --output data/prepared/mose_train
    accelerate launch scripts/train_sam2.py configs/sam2/mose_finetune.yaml [--any_argument value]

The arguments: --help, or sa2va_hf/training/sam2/arguments.py (and every field of transformers.TrainingArguments).
Several processes, on one machine or more:

    torchrun --nproc_per_node 8 scripts/train_sam2.py CONFIG.yaml
    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        scripts/train_sam2.py CONFIG.yaml

Resume after an interruption: --resume_from_checkpoint auto
Afterwards, for the `sam2` package: scripts/convert_checkpoint.py --source OUTPUT_DIR --output DIR --to sam2
"""

from collections.abc import Sequence

from sa2va_hf.argument_help import SAM2
from sa2va_hf.commands.training import train


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    train(argv, __doc__, SAM2, "sa2va_hf.training.sam2.build")


if __name__ == "__main__":
    main()
