"""Measure what the documentation claims about speed and memory, as ratios within one run.

    python scripts/benchmark.py inference [--size tiny|large] [--model DIR] [--device cpu|cuda] [--output FILE.md]

inference: clips with 1, 3 and 8 [SEG]; clips of 8, 64 and 256 frames; a batch of 8 pictures against 8 single ones.
Random weights by default: time and memory do not depend on their values. --size large has the real SAM 2 large at
1024 px and a small language model. Prints markdown tables; docs/benchmarks.md holds those of known machines.
"""

import argparse
import ctypes
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import InternVLConfig, PreTrainedTokenizerFast

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SPECIAL_TOKENS

QUESTION = "Please segment everything."
TINY_SAM2 = {"size": "tiny", "image_size": 256, "hidden_dim": 64, "embed_dim": 48, "memory_dim": 32}
TINY_SAM2 |= {"stages": [1, 2, 3, 1], "global_att_blocks": [5], "memory_layers": 2, "memory_feedforward": 256}


def answer(objects: int) -> str:
    return "Sure, " + ", ".join(["[SEG]"] * objects) + "."


def make_predictor(size: str, device: str) -> Sa2VAPredictor:
    """Random weights: a language model of width 256, and SAM 2 small (256 px) or as released (large, 1024 px)."""
    marks = ["<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_CONTEXT, IMAGE_END, *SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_tokens(marks, special_tokens=True)
    width = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    mllm = InternVLConfig(
        vision_config=width | {"image_size": [224, 224], "patch_size": [14, 14]},
        text_config=width | {"model_type": "qwen2", "num_key_value_heads": 4, "vocab_size": len(fast)},
        image_token_id=fast.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=64,
    )
    grounding = TINY_SAM2 if size == "tiny" else {"size": "large"}
    config = Sa2VAConfig(
        mllm_config=mllm, grounding_config=grounding, seg_token_id=fast.convert_tokens_to_ids("[SEG]")
    )
    torch.manual_seed(0)
    model = Sa2VAForConditionalGeneration(config)
    if device == "cuda":
        model = model.to(torch.bfloat16)
        model.grounding_encoder.float()
        model.text_hidden_fcs.float()
    side = config.grounding_config.image_size
    processor = Sa2VAProcessor(fast, tile_size=224, patch_size=14, max_tiles=1, grounding_image_size=side)
    return Sa2VAPredictor(model.to(device), processor)


class Clip(Sequence[Image.Image]):
    """Noise that is made when it is asked for, so that only what the package keeps takes memory."""

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < self.length:
            raise IndexError(number)
        noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(self.size)


class Memory:
    """Peak memory of a block in MiB above its start: the GPU's, or the process's resident size, sampled."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> "Memory":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or a second run would seem to need nothing
            Path("/proc/self/clear_refs").write_text("5")  # restarts the kernel's peak counter
            self.start = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._status("VmHWM")
        self.peak = (peak - self.start) / 2**20

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def measure(run: Callable[[], object], device: str, repeats: int) -> tuple[float, float]:
    """(median seconds, peak MiB above the start) after a run to warm up."""
    run()
    seconds, peaks = [], []
    for _ in range(repeats):
        with Memory(device) as memory:
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peaks.append(memory.peak)
    return statistics.median(seconds), max(peaks)


def table(columns: list[str], rows: list[list[object]]) -> str:
    def line(cells: list[object]) -> str:
        return "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)])


def inference(arguments: argparse.Namespace) -> str:
    device, repeats = arguments.device, arguments.repeats
    if arguments.model:
        predictor = Sa2VAPredictor.from_pretrained(arguments.model, device)
    else:
        predictor = make_predictor(arguments.size, device)
    size = (320, 240)

    def clip(frames: int, objects: int, mode: str) -> Callable[[], object]:
        return lambda: predictor.segment(
            video=Clip(frames, size), text=QUESTION, answer=answer(objects), video_mode=mode
        )

    parts = []
    for mode in ("consistent", "memory"):
        rows, base = [], None
        for objects in (1, 3, 8):
            seconds, peak = measure(clip(arguments.frames, objects, mode), device, repeats)
            base = base or seconds
            rows.append([objects, seconds, seconds / base, peak])
        title = f"### A clip of {arguments.frames} frames, video mode {mode!r}\n\n"
        parts.append(title + table(["[SEG]", "seconds", "times one [SEG]", "peak MiB"], rows))
    rows = []
    for frames in arguments.lengths:
        seconds, peak = measure(clip(frames, 1, "consistent"), device, 1)
        side = predictor.model.grounding_encoder.mask_size
        result = frames * (size[0] * size[1] + 4 * side * side) / 2**20
        rows.append([frames, seconds, seconds / frames, peak, result, peak - result])
    columns = ["frames", "seconds", "per frame", "peak MiB", "of which masks and logits", "the rest"]
    parts.append("### Longer clips, one [SEG]\n\n" + table(columns, rows))
    pictures = [Clip(8, size)[number] for number in range(8)]

    def one_by_one() -> None:
        for picture in pictures:
            predictor.segment(image=picture, text=QUESTION, answer=answer(1))

    def at_once() -> None:
        predictor.segment(image=pictures, text=[QUESTION] * 8, answer=[answer(1)] * 8)

    single, batch = (measure(run, device, repeats) for run in (one_by_one, at_once))
    rows = [["one by one", *single, 1.0], ["as a batch", *batch, batch[0] / single[0]]]
    parts.append("### Eight pictures\n\n" + table(["", "seconds", "peak MiB", "times one by one"], rows))
    return "\n\n".join(parts)


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{name}; {versions}; {date.today()}; commit {commit.stdout.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inference")
    command.add_argument("--size", choices=["tiny", "large"], default="tiny")
    command.add_argument("--model", help="a model folder, instead of random weights")
    command.add_argument("--frames", type=int, default=16, help="of the clips with several [SEG]")
    command.add_argument("--lengths", type=int, nargs="+", default=[8, 64, 256])
    command.set_defaults(run=inference)
    for command in commands.choices.values():
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--output", type=Path, help="append the tables to this file")
    arguments = parser.parse_args()
    report = f"## {arguments.command}: {machine(arguments.device)}\n\n{arguments.run(arguments)}\n"
    print(report)
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write("\n" + report)


if __name__ == "__main__":
    main()
