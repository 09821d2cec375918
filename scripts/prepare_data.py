"""A raw dataset as Arrow that training reads, checked record by record, with a manifest.json.

    python scripts/prepare_data.py --source refcoco --root ref_seg --split train --output arrow/refcoco --num_proc 4
    python scripts/prepare_data.py --source png_masks --root my_photos --split train --output arrow/mine \\
        --option phrase="the lesion" --option val_fraction=0.1 --skip_bad

Sources: shapes (needs no --root), refcoco, refcoco+, refcocog, finetune_json, coco_json, png_masks.
Exit status 1 with every problem listed when records cannot be used; nothing is written then, unless --skip_bad.
"""

import argparse
import logging
import sys
from typing import Any

import yaml
from tqdm import tqdm

from sa2va_hf.data.prepare import PrepareError, prepare
from sa2va_hf.data.sources import SOURCES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", required=True, choices=SOURCES, help="the family the dataset is of")
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--split", required=True, help="train, val, testA, ...")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--num_proc", type=int, default=1, help="worker processes")
    parser.add_argument("--embed_media", action="store_true", help="store the files themselves, not their paths")
    parser.add_argument("--limit", type=int, help="read at most this many records")
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave out what cannot be used (manifest.json lists it)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder prepared before")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the source; YAML value")
    return parser.parse_args()


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """["size=96", "tasks=[referring]"] -> {"size": 96, "tasks": ["referring"]}."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--option expects KEY=VALUE, got {pair!r}")
        if key in options:
            raise ValueError(f"--option {key} is given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--option {pair}: {error}") from error
    return options


def main() -> int:
    arguments = vars(parse_arguments())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arguments["options"] = parse_options(arguments.pop("option"))
        with tqdm(unit=" records", desc=arguments["source"], mininterval=1) as bar:
            manifest = prepare(**arguments, progress=bar.update)
    except PrepareError as error:
        for reject in error.rejects:
            print(f"{reject.id}: {reject.reason}" + (f" [{reject.file}]" if reject.file else ""), file=sys.stderr)
        print(f"{len(error.rejects)} records cannot be used: nothing was written", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for reject in manifest.rejects:
        print(
            f"left out: {reject.id}: {reject.reason}" + (f" [{reject.file}]" if reject.file else ""), file=sys.stderr
        )
    counts = ", ".join(f"{getattr(manifest, name)} {name}" for name in ("samples", "objects", "masks", "expressions"))
    print(f"{arguments['output']}: {counts}, {len(manifest.rejects)} rejects")
    return 0


if __name__ == "__main__":
    sys.exit(main())
