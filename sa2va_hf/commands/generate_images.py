"""Generate pictures of object parts with a diffusion model, in the folders that `folder_parts` reads.

    python scripts/generate_images.py parts.yaml --model FOLDER_OR_HUB_ID --output DIR [--images 20] [--seed 0]

parts.yaml:

    parts: {handle: [mug, drawer], lid: [pot]}
    prompts: ["a photo of a {object}, its {part} clearly visible"]    # they take turns
    options: {num_inference_steps: 30}                                # arguments of the pipeline's call

The same command continues a run that was stopped. Then: scripts/pseudo_label.py --root DIR, and
scripts/prepare_data.py --source folder_parts --root DIR.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="the YAML file of parts and prompts")
    parser.add_argument("--model", required=True, help="a text-to-image model of diffusers: folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="the folder PART/OBJECT/0000.png is written below")
    parser.add_argument("--images", type=int, default=4, help="of each object (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=1, help="pictures that are made together")
    parser.add_argument("--controlnet", help="a ControlNet: folder or Hub id")
    parser.add_argument("--control_image", type=Path, help="the picture that conditions it: depth, edges, normals")
    parser.add_argument("--device", help="default: cuda if there is one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if (arguments.controlnet is None) != (arguments.control_image is None):
        parser.error("--controlnet and --control_image belong together")
    with mistakes():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sa2va_hf.generated_images import PROMPTS, generate, load_pipeline, requests
    from sa2va_hf.model.visuals import open_image
    from sa2va_hf.yaml_values import read_yaml, suggest

    config, known = read_yaml(arguments.config, dict), ("parts", "prompts", "options")
    for key in config:
        if key not in known:
            raise ValueError(
                f"{arguments.config}: unknown key `{key}`{suggest(key, known)}; known: {', '.join(known)}"
            )
    wanted = requests(config.get("parts"), config.get("prompts") or PROMPTS, arguments.images, arguments.seed)
    control = None if arguments.control_image is None else open_image(arguments.control_image)
    pipeline = load_pipeline(arguments.model, arguments.controlnet, arguments.device)
    with tqdm(total=len(wanted), unit=" pictures") as bar:
        generate(
            pipeline,
            wanted,
            arguments.output,
            model_name=arguments.model,
            batch_size=arguments.batch_size,
            options=config.get("options"),
            control=control,
            control_name=arguments.controlnet,
            progress=bar.update,
        )
    print(f"{len(wanted)} pictures in {arguments.output}")


if __name__ == "__main__":
    main()
