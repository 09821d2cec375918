"""Convert checkpoints of other layouts to model folders of this package and back, without running their code.

    # a released Sa2VA, or Sa2VA-i
    hf download ByteDance/Sa2VA-4B --local-dir models/Sa2VA-4B
    sa2va convert --source models/Sa2VA-4B --output models/sa2va_4b
    # back, for programs that expect the released layout; they need the release's *.py files beside it
    sa2va convert --source outputs/mine --output outputs/mine_released --to sa2va
    # SAM 2's own files, and the SAM 2 of a Sa2VA
    sa2va convert --source sam2.1_hiera_large.pt --output models/sam2.1_large
    sa2va convert --source outputs/mine --output outputs/mine_sam2 --to sam2
    # SAM 3's own file, or facebook/sam3's folder, and back
    sa2va convert --source sam3.pt --output models/sam3
    sa2va convert --source models/sam3 --output models/sam3_tracker --to transformers
    # replace the SAM 2 of a Sa2VA by another one (fine-tuned with train-sam2, or a .pt)
    sa2va convert --source outputs/mine --with_sam2 runs/sam2_mose --output outputs/joined

Every tensor is accounted for: if one is missing, unexpected or of another shape, it is listed, nothing is written, and
the exit status is 1.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes

FORMATS = ("ours", "sa2va", "sam2", "sam3", "transformers")
SAM2 = [f"{version}-{size}" for version in ("2.0", "2.1") for size in ("tiny", "small", "base_plus", "large")]


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a folder with config.json, or a .pt of SAM 2 or 3")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--to", choices=FORMATS, default="ours", help="layout to write (default: %(default)s)")
    parser.add_argument("--sam2", choices=SAM2, help="stop if the SAM 2 inside is another one")
    replaces = "SAM 2 or 3 that replaces the model's: a .pt, or a folder with one"
    parser.add_argument("--with_sam2", "--with_tracker", type=Path, help=replaces)
    parser.add_argument("--max_shard_size", default="5GB", help="larger models are written in several files")
    parser.add_argument("--base_model", metavar="HUB_ID", help="the release, for the card: ByteDance/Sa2VA-4B")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.checkpoints.convert import convert
    from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    grounding_config = None
    if arguments.sam2:
        version, size = arguments.sam2.split("-")
        grounding_config = Sa2VAGroundingConfig(version=version, size=size)
    convert(
        arguments.source,
        arguments.output,
        arguments.to,
        grounding_config=grounding_config,
        with_sam2=arguments.with_sam2,
        max_shard_size=arguments.max_shard_size,
        base_model=arguments.base_model,
    )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
