"""Train shapes-tiny, the model that ships with the package, from random weights by the stages of a recipe.

    python scripts/make_shapes_tiny.py configs/shapes_tiny.yaml --output outputs/shapes_tiny [--install]

Run the same command again after an interruption: finished stages are skipped, the open one resumes from its last
state. --install copies the result (bfloat16) to sa2va_hf/pretrained/shapes-tiny.
"""

import argparse
import logging
from pathlib import Path

import yaml

from sa2va_hf.command_line import mistakes
from sa2va_hf.training.shapes_tiny.recipe import install, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--install", action="store_true", help="copy the result into the package")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    model = run(yaml.safe_load(arguments.recipe.read_text()), arguments.output)
    print(f"installed as {install(model)}" if arguments.install else f"the model is in {model}")


if __name__ == "__main__":
    with mistakes():
        main()
