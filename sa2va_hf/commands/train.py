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

import sys
from collections.abc import Sequence

from sa2va_hf.argument_help import SA2VA, asks_for_help, help_text
from sa2va_hf.command_line import mistakes


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if asks_for_help(argv):
        print(help_text(__doc__, SA2VA))
        return
    with mistakes():
        from sa2va_hf.training.sa2va.build import build

        trainer, checkpoint = build(argv)
        trainer.run(checkpoint)


if __name__ == "__main__":
    main()
