"""The commands of the package: `sa2va NAME ...`, `python scripts/FILE.py ...`, `python -m sa2va_hf.commands.FILE ...`.

All three call the `main(argv)` of one module of this package. Adding a command: a module with `main`, a row of
`COMMANDS`, and a script of a few lines.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {  # name: module, what it does
    "prepare": ("prepare_data", "convert a raw dataset to checked Arrow files with a manifest"),
    "inspect": ("inspect_data", "draw random samples of a prepared dataset"),
    "pseudo-label": ("pseudo_label", "predict masks for images that have none"),
    "generate-images": ("generate_images", "generate pictures of object parts with a diffusion model"),
    "train": ("train", "train Sa2VA with LoRA or in full"),
    "train-sam2": ("train_sam2", "fine-tune SAM 2 on images and videos"),
    "dual-loop": ("train_dual_loop", "train Sa2VA on objects without text"),
    "zero-to-fp32": ("zero_to_fp32", "convert DeepSpeed shards to safetensors"),
    "merge": ("merge_lora", "merge the adapter of a LoRA run into its base model"),
    "convert": ("convert_checkpoint", "convert checkpoints from and to other layouts"),
    "push": ("push_to_hub", "publish a model or a prepared dataset on the Hub"),
    "predict": ("predict", "answer a question about an image or a video, with masks"),
    "search": ("search", "search a large image for a small target"),
    "serve": ("serve", "serve a model over HTTP to OpenAI's clients"),
    "demo": ("demo", "open a web page to chat with a model about images and videos"),
    "evaluate": ("evaluate", "evaluate a model on a benchmark"),
    "results": ("results_page", "compare evaluation runs with published figures"),
    "vos": ("vos_inference", "track objects through videos with SAM 2"),
    "benchmark": ("benchmark", "measure time and memory"),
}


def usage() -> str:
    """The text of `sa2va --help`."""
    rows = "\n".join(f"  {name:<16}{what}" for name, (_, what) in COMMANDS.items())
    return f"usage: sa2va COMMAND [ARGUMENTS]\n\n{rows}\n\nsa2va COMMAND --help lists the arguments of a command.\n"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command that the first argument names. Returns its exit status."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if name not in COMMANDS:
        print(f"sa2va: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(f"sa2va_hf.commands.{COMMANDS[name][0]}")
    if argv is None:
        sys.argv = [f"sa2va {name}", *rest]  # the name that argparse prints in its usage line
    return module.main(rest)
