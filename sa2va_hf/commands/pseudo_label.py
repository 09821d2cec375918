"""Predict masks for images of object parts (ROOT/handle/mug/0001.png) without masks, and write them beside the images.

    sa2va pseudo-label --model DIR --root ROOT
    sa2va pseudo-label --model DIR --root ROOT --min_score 0.7 --largest --overwrite

The model is asked for the "handle of the mug". Where a 0001.json of labelme holds rectangles or points, SAM 2 is asked
for these instead. Writes ROOT/handle/mug/0001_mask.png and ROOT/pseudo_labels.json with score, area and box of every
image, or why it was rejected. Masks that exist are kept, those made by people even with --overwrite. Then:

    sa2va prepare --source folder_parts --root ROOT --split train --output DIR --skip_bad
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    parser.add_argument("--root", required=True, help="the folder of PART/OBJECT/images")
    parser.add_argument("--phrase", default="{part} of the {object}", help="what is asked for; default: %(default)s")
    parser.add_argument("--min_area_ratio", type=float, default=0.0005, help="smaller pieces of a mask are removed")
    parser.add_argument("--max_area_ratio", type=float, default=0.95, help="larger masks are rejected")
    parser.add_argument("--min_score", type=float, default=0.5, help="least IoU that SAM 2 must expect")
    parser.add_argument("--largest", action="store_true", help="keep only the largest piece of every mask")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that a model predicted before")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.inference import Sa2VAPredictor
    from sa2va_hf.pseudo_labels import NAME, Filter, pseudo_label

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ratios = {"min_area_ratio": arguments.min_area_ratio, "max_area_ratio": arguments.max_area_ratio}
    filters = Filter(**ratios, min_score=arguments.min_score, largest=arguments.largest)
    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    with tqdm(unit=" pictures", mininterval=1) as bar:
        manifest = pseudo_label(
            predictor,
            arguments.root,
            model_name=arguments.model,
            part=arguments.phrase,
            filters=filters,
            overwrite=arguments.overwrite,
            progress=bar.update,
        )
    for name, entry in manifest["pictures"].items():
        if entry["status"] == "rejected":
            print(f"rejected: {name}: {entry['reason']}", file=sys.stderr)
    for problem in manifest["problems"]:
        print(f"{problem['id']}: {problem['reason']}", file=sys.stderr)
    counts = Counter(entry["status"] for entry in manifest["pictures"].values())
    told = ", ".join(f"{counts[status]} {status}" for status in ("drawn", "given", "rejected"))
    print(f"{arguments.root}/{NAME}: {told}, {len(manifest['problems'])} files that cannot be placed")


if __name__ == "__main__":
    main()
