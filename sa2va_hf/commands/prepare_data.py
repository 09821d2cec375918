"""Convert a raw dataset to Arrow files for training, checked record by record, with a manifest.json.

    sa2va prepare --source refcoco --root ref_seg --split train --output arrow/refcoco --num_proc 4
    sa2va prepare --source png_masks --root my_photos --split train --output arrow/mine \\
        --option phrase="the lesion" --option val_fraction=0.1 --skip_bad

    sa2va prepare --source folder_parts --root generated --split train --output arrow/parts \\
        --option part="{part} of a {object}"

    sa2va prepare --source auto --root export_of_a_tool --split train --output arrow/mine

--source auto tells the form of own data by the contents of the files, prints which form it took, and lists the known
forms where none fits. Where the data have no validation split, --option val_fraction=0.1 makes one.

If records cannot be used, each is listed, nothing is written (unless --skip_bad) and the exit status is 1. A run that
was killed is resumed by the same command.

    ... --check                            write nothing: check files and annotations. Needs no --output
    ... --shard 2/4                        one of four machines; the last one to finish joins the shards
    ... --exclude arrow/refcoco_val        skip images of that prepared dataset, or of a list of names or ids

Look at the result with: sa2va inspect arrow/refcoco --output sheet.png
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa2va_hf.data.prepare.manifest import Manifest
    from sa2va_hf.data.schema import Reject


class _Source(argparse.Action):
    """The name of a source; `list` prints the names and ends the process."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        from sa2va_hf.data.sources import SOURCES

        if values == "list":
            print("\n".join(SOURCES))
            parser.exit()
        if values not in (*SOURCES, "auto"):
            known = ", ".join((*SOURCES, "auto"))
            parser.error(f"argument {option}: invalid choice: {values!r} (choose from {known})")
        namespace.source = values


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--source",
        required=True,
        action=_Source,
        help="family of the dataset; auto: as its files tell; list: print the names",
    )
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--split", required=True, help="train, val, testA, ...")
    parser.add_argument("--output", help="folder to write")
    parser.add_argument("--check", action="store_true", help="write nothing, list all that is missing or wrong")
    parser.add_argument("--num_proc", type=int, default=1, help="worker processes")
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help="do the I-th of N parts")
    parser.add_argument("--embed_media", action="store_true", help="store the files themselves, not their paths")
    parser.add_argument("--limit", type=int, help="read at most this many records")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="FILE", help="images to skip; may be repeated"
    )
    parser.add_argument(
        "--skip_bad", action="store_true", help="skip records that cannot be used (manifest.json lists them)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder prepared before")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the source, may be repeated: size=96, images=/data/coco, kinds=[left], part='{part} of {object}'",
    )
    return parser


def parse_shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit()):
        raise argparse.ArgumentTypeError(f"expected I/N, as in 2/4, got {text!r}")
    return int(number), int(count)


def run(arguments: dict[str, Any]) -> Manifest:
    from tqdm import tqdm

    from sa2va_hf.data.prepare.releases import RELEASES
    from sa2va_hf.data.prepare.run import check, prepare
    from sa2va_hf.data.sources import SOURCES
    from sa2va_hf.data.sources.options import parse_options

    _recognise(arguments)
    arguments["options"] |= parse_options(arguments.pop("option"), SOURCES[arguments["source"]])
    known = RELEASES.get(arguments["source"], {}).get(arguments["split"], {}).get("samples")
    with tqdm(unit=" records", desc=arguments["source"], mininterval=1, total=arguments["limit"] or known) as bar:
        if arguments.pop("check"):
            kept = ("source", "root", "split", "num_proc", "limit", "exclude", "options")
            return check(**{name: arguments[name] for name in kept}, progress=bar.update)
        return prepare(**arguments, progress=bar.update)


def _recognise(arguments: dict[str, Any]) -> None:
    """Enters the source that "auto" stands for, and its options, into the arguments."""
    arguments["options"] = {}
    if arguments["source"] != "auto":
        return
    if not arguments["root"]:
        raise ValueError("--source auto needs the folder of the data: --root DIR")
    from sa2va_hf.data.sources.recognise import recognise

    found = recognise(arguments["root"])
    print(f"{arguments['root']} is read as `{found.source}`, told by {found.file}")
    arguments["source"] = found.source
    arguments["options"] = found.options(arguments["split"])


def tell(rejects: list[Reject], how: str = "") -> None:
    for reject in rejects:
        print(f"{how}{reject.id}: {reject.reason}" + (f" [{reject.file}]" if reject.file else ""), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv`; default: the arguments of the process."""
    parser = make_parser()
    arguments = vars(parser.parse_args(argv))
    if not arguments["check"] and not arguments["output"]:
        parser.error("--output is needed: the folder to write (or --check, to look only)")
    from sa2va_hf.data.prepare.run import PrepareError

    looking, output = arguments["check"], arguments["output"]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifest = run(arguments)
    except PrepareError as error:
        tell(error.rejects)
        print(f"{len(error.rejects)} records cannot be used: nothing was written", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    tell(manifest.rejects, "" if looking else "skipped: ")
    counts = ", ".join(f"{getattr(manifest, name)} {name}" for name in ("samples", "objects", "masks", "expressions"))
    excluded = f", {manifest.excluded} excluded" if manifest.excluded else ""
    print(f"{output or manifest.source}: {counts}, {len(manifest.rejects)} rejects{excluded}")
    if looking and (differing := manifest.departs_from_release()):
        print(differing, file=sys.stderr)
    return 1 if looking and manifest.rejects else 0


if __name__ == "__main__":
    sys.exit(main())
