"""DeepSpeed shards -> safetensors that from_pretrained loads; of a LoRA run, the adapter for merge_lora.py.

    python scripts/zero_to_fp32.py runs/mine/checkpoint-1000 outputs/mine_fp32

Writes float32 weights, config and processor.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.checkpoints.zero import consolidate
from sa2va_hf.command_line import mistakes


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with `latest` and global_step*")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--max_shard_size", default="5GB", help="larger models are written in several files")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    consolidate(arguments.checkpoint, arguments.output, dtype=arguments.dtype, max_shard_size=arguments.max_shard_size)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
