"""Train Sa2VA: LoRA or full, one process or many, with or without DeepSpeed.

    accelerate launch scripts/train.py CONFIG.yaml [--any_argument value]

The arguments: --help, or sa2va_hf/arguments/ (and every field of transformers.TrainingArguments). Relative paths start
at the current directory. Several processes:

    accelerate launch --multi_gpu --num_processes 8 scripts/train.py CONFIG.yaml [--deepspeed ds_configs/zero2.json]
    torchrun --nproc_per_node 2 scripts/train.py CONFIG.yaml [--deepspeed ds_configs/zero2.json]      # the same
    # on a CPU likewise; DeepSpeed then needs g++ and ninja on the PATH

Resume after an interruption: --resume_from_checkpoint auto. SIGTERM and SIGUSR1 end the run after the step with a
checkpoint and status 0. Which engine when, faults, SLURM: docs/training.md
Afterwards: scripts/merge_lora.py --checkpoint OUTPUT_DIR --output MODEL_DIR
"""

from collections.abc import Sequence

from sa2va_hf.argument_help import SA2VA
from sa2va_hf.commands.training import train


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    train(argv, __doc__, SA2VA, "sa2va_hf.training.sa2va.build")


if __name__ == "__main__":
    main()
