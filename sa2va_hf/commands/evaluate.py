"""Evaluate a model on a benchmark.

    sa2va evaluate --model DIR --benchmark NAME --root DIR --output metrics.json
    accelerate launch --num_processes 8 -m sa2va_hf.commands.evaluate ...             one process per GPU
    torchrun --nproc_per_node 8 -m sa2va_hf.commands.evaluate --device cpu ...        on a CPU, one thread each
    sa2va evaluate --benchmark NAME --root DIR --predictions OTHER.predictions.arrow --output metrics.json

Beside metrics.json it writes NAME.md, NAME.predictions.arrow, NAME.samples.png and NAME.run.json (and NAME.zip for
benchmarks whose masks are not public). A run that was stopped is resumed by the same command. --benchmark list prints
the names.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa2va_hf.command_line import mistakes
from sa2va_hf.listings import listed

if TYPE_CHECKING:
    from sa2va_hf import Sa2VAConfig, Sa2VAPredictor
    from sa2va_hf.data.schema import Reject
    from sa2va_hf.evaluation.benchmarks import Benchmark
    from sa2va_hf.evaluation.items import Item, Settings

logger = logging.getLogger("evaluate")
MODES = ("generate", "teacher")
POSITIONS = ("position", "position_of_phrase")
BASELINES = ("box", *POSITIONS)
ANSWERS_WITH = ("boxes", "boxes_of_masks")
VIDEO_MODES = ("consistent", "memory", "per_frame")
DTYPES = ("float32", "bfloat16", "float16")
ASKING = (
    "mode",
    "baseline",
    "max_new_tokens",
    "num_frames",
    "video_mode",
    "search",
    "answer_with",
)  # arguments that decide what is answered


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="a folder, a Hub repository, or the name of a bundled model")
    parser.add_argument("--benchmark", required=True, help="a name, or list")
    parser.add_argument("--root", help="the folder of the data")
    parser.add_argument("--output", type=Path, default=Path("metrics.json"))
    parser.add_argument("--predictions", type=Path, help="score these predictions instead of running a model")
    parser.add_argument("--mode", choices=MODES, help="default: generate; teacher: the answer is given to the model")
    parser.add_argument(
        "--baseline",
        choices=BASELINES,
        help="box: the box that the model writes, segmented by SAM 2; position, position_of_phrase: no model, but the "
        "most frequent box of --positions_of, or that of the same phrase",
    )
    parser.add_argument("--positions_of", metavar="DIR", help="a prepared dataset, for --baseline position")
    parser.add_argument("--split", help="default: the benchmark's")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the data; YAML value"
    )
    parser.add_argument("--limit", type=positive, help="only the first items")
    parser.add_argument("--skip_bad", action="store_true", help="skip records that cannot be used")
    parser.add_argument("--batch_size", type=positive, default=1, help="questions; those of one clip share its frames")
    parser.add_argument("--max_new_tokens", type=positive, help="default: 2048, as released")
    parser.add_argument("--num_frames", type=positive, help="frames of a clip that the LLM reads; default: 5")
    parser.add_argument("--video_mode", choices=VIDEO_MODES, help="how masks get onto all frames; default: its own")
    parser.add_argument(
        "--search", action="store_true", default=None, help="search the targets of a question first (vstar_bench)"
    )
    parser.add_argument(
        "--answer_with",
        choices=ANSWERS_WITH,
        help="score the boxes that the model writes, or those around its masks, instead of masks",
    )
    parser.add_argument(
        "--coco", action="store_true", help="also NAME.coco_results.json and NAME.coco_truth.json, of pictures"
    )
    parser.add_argument("--text_encoder", help="a folder of bert-base-uncased, for the recall of grounded captions")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the checkpoint's, float32 on a CPU")
    return parser


def configuration(model: str) -> Sa2VAConfig:
    """ValueError when there is no such model, or it is none of ours."""
    from sa2va_hf import Sa2VAConfig
    from sa2va_hf.model.configuration_sa2va import bundled

    try:
        return Sa2VAConfig.from_pretrained(bundled(model))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        what = "" if Path(model).is_dir() else "it is no folder, no bundled model, and no Hub repository that opens: "
        raise ValueError(f"--model {model}: {what}{reason}") from error


def settings_now(arguments: argparse.Namespace) -> Settings:
    """How the model is asked, or how it was when its predictions say so.

    ValueError for arguments that ask otherwise: what was answered stays.
    """
    from sa2va_hf.evaluation.items import Settings
    from sa2va_hf.evaluation.predictions import read_note, settings_of

    given = {name: getattr(arguments, name) for name in ASKING if getattr(arguments, name) is not None}
    if arguments.model is not None:
        config = configuration(arguments.model)
        style = config.mllm_config.model_type if arguments.baseline == "box" else None  # each family has its manner
        return Settings(
            **{"video_mode": config.video_mode} | given, box_style=style, text_encoder=arguments.text_encoder
        )
    if arguments.positions_of is not None:
        return Settings(**given, positions_of=arguments.positions_of)
    if arguments.baseline is not None:
        raise ValueError("--baseline asks a model: give --model instead of --predictions")
    note = read_note(arguments.predictions)
    if note is None:
        return Settings(**given, text_encoder=arguments.text_encoder)
    asked = settings_of(note, str(arguments.predictions))
    for name, value in given.items():
        if value != (made := getattr(asked, name)):
            raise ValueError(
                f"--{name} {value}: {arguments.predictions} was made with {made}; give --model to ask anew"
            )
    return replace(asked, text_encoder=arguments.text_encoder or asked.text_encoder)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The results of a benchmark, which are in the output folder as well; None in all processes but the first.

    Raises:
        ValueError: arguments that do not go together, or data without an item that can be used; before any model is
            loaded.
    """
    from sa2va_hf.data.sources.options import parse_options
    from sa2va_hf.evaluation.benchmarks import answered_with, get_benchmark, load_items
    from sa2va_hf.evaluation.runner import Files, rescore
    from sa2va_hf.prediction import writable

    sources = (arguments.model, arguments.predictions, arguments.positions_of)
    if sum(source is not None for source in sources) != 1:
        raise ValueError(
            "give --model, or --predictions to score what was predicted before, or --positions_of for a baseline"
        )
    Files(arguments.output)  # its name is checked before anything is read
    writable(arguments.output.parent).mkdir(parents=True, exist_ok=True)
    benchmark = get_benchmark(arguments.benchmark)
    settings = settings_now(arguments)
    benchmark = answered_with(benchmark, settings.answer_with, arguments.benchmark)
    options = parse_options(arguments.option, benchmark.samples)
    check_task(arguments.benchmark, benchmark, settings)
    items, rejects = load_items(benchmark, arguments.root, settings, arguments.split, options, arguments.limit)
    check_items(arguments, items, rejects)
    recipe = {"model": arguments.model, "root": arguments.root, "dtype": arguments.dtype, "limit": arguments.limit}
    recipe |= {"split": arguments.split or benchmark.split, "options": dict(benchmark.options) | options}
    common = (arguments.benchmark, benchmark, items, rejects)
    if arguments.predictions is None:
        result = answered(arguments, common, settings, recipe)
    elif int(os.environ.get("RANK", 0)):  # of several processes one is enough
        return None
    else:
        result = rescore(*common, arguments.predictions, settings, recipe, arguments.output)
    return write_results(arguments, benchmark, items, result)


def check_task(name: str, benchmark: Benchmark, settings: Settings) -> None:
    """ValueError where the settings do not apply to the task; a warning where packages for it are missing."""
    from sa2va_hf.evaluation.captions import missing_for_captions
    from sa2va_hf.evaluation.describing import Choice, GroundedCaption, RegionCaption

    benchmark.task.record(settings)  # do mode and baseline apply to it
    if settings.search and not isinstance(benchmark.task, Choice):
        raise ValueError(f"--search: {name} has no targets to search; expected vstar_bench")
    if isinstance(benchmark.task, GroundedCaption | RegionCaption) and (missing := missing_for_captions()):
        logger.warning("%s: the result will be without them", missing)


def check_items(arguments: argparse.Namespace, items: Sequence[Item], rejects: Sequence[Reject]) -> None:
    """ValueError for records that cannot be used and may not be skipped, clips with --coco, or nothing to evaluate."""
    if rejects and not arguments.skip_bad:
        reasons = listed((f"{reject.id}: {reject.reason} ({reject.file})" for reject in rejects), "\n  ")
        raise ValueError(f"{len(rejects)} records cannot be used (--skip_bad skips them):\n  {reasons}")
    if arguments.coco and (clips := [item.key for item in items if item.sample.num_frames > 1]):
        raise ValueError(
            f"--coco: COCO results are for pictures, {len(clips)} items are clips, {clips[0]} is the first"
        )
    if not items:
        reason = f"none of {len(rejects)} records can be used, {rejects[0].reason}"
        raise ValueError(f"nothing is left to evaluate: {reason}")


def answered(
    arguments: argparse.Namespace, common: tuple, settings: Settings, recipe: dict[str, Any]
) -> dict[str, Any] | None:
    """The results after the model has answered the items; `common`: the name, the benchmark, items and rejects."""
    import torch
    from tqdm import tqdm

    from sa2va_hf import Sa2VAPredictor
    from sa2va_hf.evaluation.position_baseline import FrequentBoxes
    from sa2va_hf.evaluation.runner import run, weights_of
    from sa2va_hf.model.configuration_sa2va import bundled

    def load(device: torch.device) -> Sa2VAPredictor | FrequentBoxes:
        if arguments.positions_of is not None:
            return FrequentBoxes.of(settings)
        dtype = arguments.dtype and getattr(torch, arguments.dtype)
        place = device if arguments.device in (None, "cuda") else arguments.device  # each process has its own GPU
        try:
            return Sa2VAPredictor.from_pretrained(arguments.model, place, dtype)
        except OSError as error:
            raise ValueError(f"--model {arguments.model}: {error}") from error

    rank = int(os.environ.get("LOCAL_RANK", 0))
    with tqdm(desc=f"{arguments.benchmark}, process {rank}", position=rank, mininterval=2) as bar:

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)

        read = arguments.positions_of or bundled(arguments.model)
        how = (arguments.batch_size, progress, arguments.device == "cpu", weights_of(read))
        return run(*common, load, settings, recipe, arguments.output, *how)


def write_results(
    arguments: argparse.Namespace, benchmark: Benchmark, items: Sequence[Item], result: dict[str, Any] | None
) -> dict[str, Any] | None:
    """With --coco, the predictions of all processes as COCO results and the truth; returns `result`."""
    if arguments.coco and result is not None:
        from sa2va_hf.evaluation.coco_results import write_coco
        from sa2va_hf.evaluation.predictions import read_predictions
        from sa2va_hf.evaluation.referring import Referring
        from sa2va_hf.evaluation.runner import Files

        files = Files(arguments.output)
        answers = read_predictions(files.predictions).answers
        merged = isinstance(benchmark.task, Referring)
        write_coco(files.beside(".coco_results.json"), files.beside(".coco_truth.json"), items, answers, merged)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = make_parser().parse_args(argv)
    if arguments.benchmark == "list":
        from sa2va_hf.evaluation.benchmarks import BENCHMARKS

        print("\n".join(BENCHMARKS))
        return
    import torch

    with mistakes():
        result = evaluate(arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if result is not None:
        print(json.dumps(result["metrics"], indent=2))


if __name__ == "__main__":
    main()
