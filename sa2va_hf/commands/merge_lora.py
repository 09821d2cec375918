"""Merge the adapter of a LoRA run into its base model.

    sa2va merge --checkpoint runs/mine --output outputs/mine_merged [--push_to_hub USER/NAME]

The checkpoint is a run's output folder, one of its checkpoint-N, or the output of zero-to-fp32. The result is a model
folder for from_pretrained: weights, config, processor, model card, and the code, so that AutoModel loads it with
trust_remote_code=True where this package is not installed.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", help="the model that was fine-tuned; default: the one that the run was started with")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--max_shard_size", default="5GB", help="larger models are written in several files")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="upload the merged model there as well")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.checkpoints.hub import push
    from sa2va_hf.checkpoints.merge import merge

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    merge(
        arguments.checkpoint,
        arguments.output,
        base=arguments.base,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
    )
    print(f"merged model written to {arguments.output}")
    if arguments.push_to_hub:
        print(f"uploaded: {push(arguments.output, arguments.push_to_hub, private=arguments.private)}")


if __name__ == "__main__":
    main()
