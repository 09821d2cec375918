"""Measure time and memory, as ratios within one run.

    sa2va benchmark inference [--size tiny|large] [--model DIR] [--device cpu|cuda]
    sa2va benchmark parity
    sa2va benchmark gpu_report [--smoke] [--images DIR]
    sa2va benchmark data
    sa2va benchmark train [--size tiny|2b|8b]
    sa2va benchmark sampler
    sa2va benchmark metrics [--masks DAVIS/Annotations/480p/libby]
    sa2va benchmark serve [--model DIR] [--clients 1 4 16]
    sa2va benchmark trackers [--size tiny|large] [--frames 4] [--objects 1 3]
    sa2va benchmark sam2 [--size tiny|small|base_plus|large] [--image_size 1024] [--parts]
    sa2va benchmark dual_loop [--steps 60] [--labelled 64] [--clips 128]
    sa2va benchmark search [--scenes 20] [--max_crops 40] [--sheets DIR]
    ... --output docs/benchmarks.md        append the tables to this file

Prints each markdown table as soon as it is measured. docs/benchmarks.md has those of known machines.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="default: cuda if there is one")


def _repeats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")


def inference(parser: argparse.ArgumentParser) -> None:
    """Time and memory of the predictor, on images and clips."""
    _device(parser)
    _repeats(parser)
    parser.add_argument("--size", choices=["tiny", "large"], default="tiny", help="large: SAM as published")
    _grounding(parser)
    parser.add_argument("--model", help="a model folder, instead of random weights")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3, 8], help="numbers of [SEG] tokens")
    parser.add_argument("--frames", type=int, default=16, help="frames of the clips with several [SEG] tokens")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 64, 256], help="frames of the longer clips")
    parser.add_argument(
        "--batch", type=int, default=8, help="questions that are asked together; of clips half as many"
    )
    parser.add_argument("--compiled", action="store_true", help="with compiled image encoders")


def parity(parser: argparse.ArgumentParser) -> None:
    """Logits and masks of every precision, against float32 on the CPU."""
    _device(parser)
    parser.add_argument("--model", default="shapes-tiny")


def gpu_report(parser: argparse.ArgumentParser) -> None:
    """Precision, inference and training on a GPU, in one call of minutes."""
    _device(parser)
    parser.add_argument("--smoke", action="store_true", help="every step as small as it can be, also on a CPU")
    parser.add_argument("--images", type=Path, help="a folder of pictures for the training steps; default: noise")


def data(parser: argparse.ArgumentParser) -> None:
    """Preparing datasets, reading them, and starting a run on a large one."""
    _repeats(parser)
    parts = ["preparing", "reading", "starting", "counting", "ordering"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="tables to measure; default: all")
    parser.add_argument("--source", nargs=3, action="append", default=[], metavar=("NAME", "ROOT", "SPLIT"))
    parser.add_argument("--photos", type=int, default=400, help="images that are made for the measurement")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large synthetic dataset")
    kinds = ["dialogue", "question"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="items whose tokens are counted")


def sampler(parser: argparse.ArgumentParser) -> None:
    """Padding, shares and resuming of the order of an epoch, against the orders of transformers."""
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="samples per rank and step")


def metrics(parser: argparse.ArgumentParser) -> None:
    """J and F of clips, against the straightforward implementation."""
    _repeats(parser)
    parser.add_argument("--frames", type=int, default=40, help="frames of the timed clips")
    parser.add_argument(
        "--masks", type=Path, nargs="+", default=[], metavar="DIR", help="mask pictures of a clip each, not drawn ones"
    )
    parser.add_argument("--long", type=int, default=1000, help="frames of the clip whose memory is measured")


def train(parser: argparse.ArgumentParser) -> None:
    """Time and memory of a training step, by part and by option."""
    _device(parser)
    parser.add_argument("--size", choices=["tiny", "2b", "8b"], default="tiny", help="2b, 8b: with SAM as published")
    _grounding(parser)
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one to warm up")
    parser.add_argument("--images", type=Path, help="a folder of pictures to train on; default: noise")
    kinds = ["pictures", "clips"]
    parser.add_argument("--visuals", nargs="+", choices=kinds, default=kinds, help="what the steps train on")


def _grounding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grounding", choices=["sam2", "sam3"], default="sam2", help="the grounding encoder")


def trackers(parser: argparse.ArgumentParser) -> None:
    """SAM 2.1 large against SAM 3's tracker, per frame and per object."""
    _device(parser)
    _repeats(parser)
    parser.add_argument("--size", choices=["tiny", "large"], default="tiny", help="large: as published")
    parser.add_argument("--frames", type=int, default=4, help="frames of the clip, 2 or more")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3], help="objects that are followed")


def sam2(parser: argparse.ArgumentParser) -> None:
    """A training step of SAM 2, against the original code."""
    _device(parser)
    _repeats(parser)
    parser.add_argument("--size", choices=["tiny", "small", "base_plus", "large"], default="tiny")
    parser.add_argument("--image_size", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="the time of each part, forward and backward")


def search(parser: argparse.ArgumentParser) -> None:
    """Visual search on drawn 4K scenes."""
    _device(parser)
    _repeats(parser)
    parser.add_argument("--model", default="pixels", help="pixels (no weights), or a model as of sa2va search")
    parser.add_argument("--generate", action="store_true", help="see sa2va search --help")
    parser.add_argument("--scenes", type=int, default=20, help="with the target; as many again without it")
    parser.add_argument("--calibration", type=int, default=10, help="further scenes without the target")
    parser.add_argument("--false_alarms", type=float, default=0.1, help="share of them that may have a hit")
    parser.add_argument("--max_crops", type=int, default=40, help="the budget")
    parser.add_argument("--minimum_size", type=int, default=270, help="see sa2va search --help")
    parser.add_argument("--crop_size", type=int, default=128, help="see sa2va search --help")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, help="a folder for the overlays of a few searches")


def serve(parser: argparse.ArgumentParser) -> None:
    """Requests per second and latency of the server under load."""
    _device(parser)
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="that ask at the same time")
    parser.add_argument("--requests", type=int, default=48, help="of all clients together")
    parser.add_argument("--max_batch", type=int, default=8, help="questions that are answered together")


def dual_loop(parser: argparse.ArgumentParser) -> None:
    """What the dual loop learns from clips without text, beside supervised training with the same steps and labels."""
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--labelled", type=int, default=64, help="images with captions, and as many with phrases")
    parser.add_argument("--clips", type=int, default=128, help="clips without text")
    parser.add_argument("--held_out", type=int, default=64, help="clips to measure on")
    parser.add_argument("--first_steps", type=int, default=60, help="supervised steps that all arms share")
    parser.add_argument("--steps", type=int, default=60, help="further steps of each arm")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--first_rate", type=float, help="learning rate of the shared steps; default: the same")
    parser.add_argument("--arms", nargs="*", default=["supervised", "loop", "cosine"], help="some of the three")
    parser.add_argument(
        "--begun", type=Path, help="the model after the shared steps: read, or written if it is not there"
    )


MEASUREMENTS = (
    inference,
    parity,
    gpu_report,
    data,
    sampler,
    metrics,
    train,
    trackers,
    sam2,
    search,
    serve,
    dual_loop,
)  # each is a module of sa2va_hf/profiling/ with `run`


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for measurement in MEASUREMENTS:
        command = commands.add_parser(measurement.__name__, help=measurement.__doc__, allow_abbrev=False)
        measurement(command)
        command.add_argument("--output", type=Path, help="append the tables to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("sa2va_hf.profiling").setLevel(logging.INFO)
    import torch

    from sa2va_hf.profiling.report import machine

    if "device" in arguments:  # what has no such option runs on the CPU
        arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tables = [f"## {arguments.command}: {machine(vars(arguments).get('device', 'cpu'))}"]
    print(tables[0], flush=True)
    for table in import_module(f"sa2va_hf.profiling.{arguments.command}").run(arguments):
        print(f"\n{table}", flush=True)
        tables.append(table)
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
