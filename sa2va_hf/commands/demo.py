"""Open a web page to chat with a model about images and videos, with region boxes and masks.

    python scripts/demo.py --model DIR [--port 7860]
    python scripts/demo.py --model shapes-tiny

The same as `sa2va demo`. Needs `pip install "sa2va_hf[demo]"`. Only this machine can open the page unless --host says
otherwise; nothing is sent to or loaded from other hosts. docs/serving.md shows the page.
"""

import argparse
import logging
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes
from sa2va_hf.serving.limits import Limits

BUNDLED = "shapes-tiny"
LIMITS = Limits()


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    parser.add_argument("--examples", type=Path, help="folder with examples.json, a list of [file, question]")
    parser.add_argument("--max_pixels", type=int, default=LIMITS.max_pixels, help="of an image or a frame")
    parser.add_argument("--max_frames", type=int, default=LIMITS.max_frames, help="of a video")
    parser.add_argument("--max_objects", type=int, default=LIMITS.max_objects, help="[SEG] of an answer")
    parser.add_argument("--max_new_tokens", type=int, default=LIMITS.max_new_tokens, help="of an answer")
    return parser


def write_examples(folder: Path) -> list[list[str]]:
    """[file, question] pairs of what the bundled model knows: three drawn images and a clip."""
    from PIL import Image

    from sa2va_hf.data.shapes import Options, draw, expressions

    pairs = []
    for seed, frames in ((15, 1), (37, 1), (21, 1), (14, 8)):
        rng = random.Random(seed)
        scene, pixels, _ = draw(rng, Options(num_frames=frames, min_objects=3))
        images = [Image.fromarray(frame) for frame in pixels]
        file = folder / f"example{seed}.{'png' if frames == 1 else 'gif'}"
        images[0].save(file, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
        pairs.append([str(file), f"Please segment {expressions(scene, rng, kinds=('attribute',))[0].text}."])
    return pairs


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = make_parser().parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

    from sa2va_hf import Sa2VAPredictor
    from sa2va_hf.serving.batching import Batcher
    from sa2va_hf.serving.demo import create_demo, launch
    from sa2va_hf.serving.talk import examples_of

    names = ("max_pixels", "max_frames", "max_objects", "max_new_tokens")
    limits = Limits(**{name: getattr(arguments, name) for name in names})
    with tempfile.TemporaryDirectory(prefix="sa2va-examples-") as folder:
        examples = examples_of(arguments.examples) if arguments.examples else []
        if not examples and arguments.model == BUNDLED:
            examples = write_examples(Path(folder))
        predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
        batcher = Batcher(predictor, limits)
        demo = create_demo(batcher, Path(arguments.model).name, examples)
        print(f"open http://{arguments.host}:{arguments.port} in a browser; Ctrl+C ends it", flush=True)
        folders = sorted({str(Path(file).parent) for file, _ in examples})
        launch(demo, arguments.host, arguments.port, limits.max_bytes, allowed_paths=folders)
        batcher.stop()


if __name__ == "__main__":
    main()
