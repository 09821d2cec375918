"""A released Sa2VA folder (InternVL family) -> a model folder of this package, without running code from it.

    hf download ByteDance/Sa2VA-4B --local-dir models/Sa2VA-4B
    python scripts/convert_checkpoint.py --source models/Sa2VA-4B --output models/sa2va_4b

Every tensor is accounted for: one that is missing, left over or of the wrong shape is listed, and nothing is written.
Language models: Qwen2, Qwen3, Llama.
"""

import argparse
import logging
import sys
from pathlib import Path

from sa2va_hf.checkpoints.convert import convert


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with config.json, tokenizer, safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--max_shard_size", default="5GB", help="larger models are written in several files")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(arguments.source, arguments.output, max_shard_size=arguments.max_shard_size)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
