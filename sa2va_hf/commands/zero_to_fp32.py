"""Convert DeepSpeed shards to safetensors that from_pretrained loads; of a LoRA run, to the adapter for merge.

    sa2va zero-to-fp32 runs/mine/checkpoint-1000 outputs/mine_fp32

Writes float32 weights, config and processor. The shards are pickle files: they are checked with torch's restricted
unpickler first, and a file with objects that neither torch nor DeepSpeed stores is refused before anything of it runs.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with `latest` and global_step*")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--max_shard_size", default="5GB", help="larger models are written in several files")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.checkpoints.zero import consolidate

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    consolidate(arguments.checkpoint, arguments.output, dtype=arguments.dtype, max_shard_size=arguments.max_shard_size)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
