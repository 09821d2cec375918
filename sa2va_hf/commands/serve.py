"""Serve a model to OpenAI's clients: chat with an image or a video, masks beside the answer.

    python scripts/serve.py --model DIR [--host 127.0.0.1] [--port 8000]
    python scripts/serve.py --model shapes-tiny

With SA2VA_API_KEY in the environment, requests need it as their key. Needs `pip install "sa2va_hf[serve]"`.
The same as `sa2va serve`. docs/serving.md shows requests, answers, limits and errors.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from sa2va_hf.command_line import mistakes
from sa2va_hf.serving.limits import Limits

LIMITS = {field.name: field.default for field in fields(Limits)}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    parser.add_argument("--name", help="the model's name for clients; default: that of --model, without its folder")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    parser.add_argument("--max_batch", type=int, default=8, help="questions that are answered together")
    parser.add_argument("--max_waiting", type=int, default=64, help="questions in the queue; more get status 429")
    parser.add_argument(
        "--max_seconds", type=float, default=60.0, help="in the queue; then a question gets status 503"
    )
    parser.add_argument("--stop_seconds", type=int, default=30, help="for what is in the queue when the server stops")
    parser.add_argument("--allow_folder", type=Path, action="append", default=[], help="clients may name files in it")
    parser.add_argument("--allow_host", action="append", default=[], help="clients may name http(s) URLs of it")
    limits = parser.add_argument_group("limits of one request")
    for name, default in LIMITS.items():
        limits.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = make_parser().parse_args(argv)
    missing = [str(folder) for folder in arguments.allow_folder if not folder.is_dir()]
    if missing:
        raise ValueError(f"--allow_folder: no such folder: {', '.join(missing)}")
    limits = Limits(**{name: getattr(arguments, name) for name in LIMITS})

    from sa2va_hf import Sa2VAPredictor
    from sa2va_hf.serving.batching import Batcher
    from sa2va_hf.serving.http import Server, Service
    from sa2va_hf.serving.sources import Sources

    key = os.environ.get("SA2VA_API_KEY") or None
    if arguments.host not in LOOPBACK and key is None:
        print(f"WARNING: {arguments.host} lets other machines in, and SA2VA_API_KEY is not set: anybody may ask")
    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    batcher = Batcher(predictor, limits, arguments.max_batch, arguments.max_waiting, arguments.max_seconds)
    sources = Sources(tuple(arguments.allow_folder), tuple(arguments.allow_host))
    service = Service(batcher, arguments.name or Path(arguments.model).name, sources, key)
    server = Server(service, arguments.host, arguments.port, arguments.stop_seconds)
    print(f"serving {service.name} at http://{arguments.host}:{arguments.port}/v1", flush=True)
    with suppress(KeyboardInterrupt):  # the server has ended in order before it says so
        server.run()


if __name__ == "__main__":
    main()
