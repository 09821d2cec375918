"""Search a large picture for a small target, crop by crop, as V* does.

    python scripts/search.py --model DIR --image FILE --target "red mug" --output DIR

Writes into the output folder: result.json, what was found; trace.json, every crop that was looked at and why;
overlay.png, the same drawn. Further settings of the search are arguments, see --help.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa2va_hf.command_line import mistakes
from sa2va_hf.search.settings import SETTINGS, SearchSettings

if TYPE_CHECKING:
    from sa2va_hf.search import SearchResult
    from sa2va_hf.search.picture import LargePicture

TYPES = {"minimum_size": int, "crops_at_once": int, "max_crops": int, "instances": str, "empty_heat": str}


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    parser.add_argument("--image", required=True)
    parser.add_argument("--target", required=True, help="what is searched, a name or a phrase")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--crop_size", type=int, default=1024, help="pixels of a crop's longer side for the model")
    parser.add_argument("--generate", action="store_true", help="let the model answer in its own words")
    parser.add_argument(
        "--confidence",
        choices=("mask", "iou", "object_score"),
        default="iou",
        help="what a score is: the probability of the mask's pixels, alone or times the IoU that SAM 2 expects, or "
        "SAM 2's object score (of a model that was trained with object_score_loss_weight)",
    )
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    for name, setting in SETTINGS.items():
        explained = f"{setting.metadata['help']}; default: {setting.default}"
        if setting.default is True:
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=f"without: {explained}")
        else:
            parser.add_argument(f"--{name}", type=TYPES.get(name, float), default=setting.default, help=explained)
    return parser


def run(arguments: argparse.Namespace) -> tuple[LargePicture, SearchResult]:
    from sa2va_hf.inference import Sa2VAPredictor
    from sa2va_hf.search import search
    from sa2va_hf.search.locator import Sa2VALocator
    from sa2va_hf.search.picture import LargePicture

    settings = SearchSettings(**{name: getattr(arguments, name) for name in SETTINGS})
    if arguments.crop_size < 1:
        raise ValueError(f"--crop_size: expected at least 1 pixel, got {arguments.crop_size}")
    if not arguments.target.strip():
        raise ValueError("--target: expected the name of what is searched, got an empty text")
    picture = LargePicture(arguments.image)
    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    locator = Sa2VALocator(predictor, arguments.crop_size, arguments.generate, arguments.confidence)
    return picture, search(picture, arguments.target, locator, settings)


def summary(result: SearchResult) -> dict[str, Any]:
    """What result.json holds: the trace without visits and queue."""
    content = result.to_json()
    return {key: value for key, value in content.items() if key not in ("visits", "queue")}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.search.overlay import draw_search

    with mistakes():
        picture, result = run(arguments)
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, content in (("result", summary(result)), ("trace", result.to_json())):
            (arguments.output / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draw_search(picture, result).save(arguments.output / "overlay.png")
    print(f"{result.target}: {result.describe()} -> {arguments.output}")


if __name__ == "__main__":
    main()
