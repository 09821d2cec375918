"""Draw random samples of a prepared dataset with their masks, boxes and text.

    sa2va inspect arrow/refcoco --output sheet.html [--count 24] [--seed 0]

A .png is one contact sheet, an .html one self-contained page. The numbers are object indices: "the red cup -> 0, 2"
refers to objects 0 and 2.
"""

import argparse
from collections.abc import Sequence

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", help="a prepared dataset")
    parser.add_argument("--output", required=True, help="the .png or .html to write")
    parser.add_argument("--count", type=int, default=24, help="samples to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of their selection")
    parser.add_argument("--by_expression", action="store_true", help="a drawing for each expression of the samples")
    parser.add_argument("--columns", type=int, default=3, help="columns of the .png")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.inspection import draw_samples, save_sheet

    drawn = draw_samples(arguments.folder, arguments.count, arguments.seed, arguments.by_expression)
    save_sheet(drawn, arguments.output, arguments.folder, arguments.columns)
    print(f"{arguments.output}: {len(drawn)} samples of {arguments.folder}")


if __name__ == "__main__":
    main()
