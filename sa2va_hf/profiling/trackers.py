"""SAM 2.1 against SAM 3's tracker on the same clip: time, operations and memory per frame, and per object and frame.

The weights are random, since time and memory do not depend on their values. On the CPU, seconds are those of all its
threads, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.configuration_sam3 import Sa2VASam3Config
from sa2va_hf.model.grounding_encoders import grounding_encoder_of
from sa2va_hf.model.grounding_protocol import GroundingEncoder, resize
from sa2va_hf.model.tracking import ClipMemory
from sa2va_hf.profiling.report import Memory, operations, table

TINY_SAM2 = {"size": "tiny", "image_size": 256, "hidden_dim": 64, "embed_dim": 48, "memory_dim": 32}
TINY_SAM2 |= {"stages": [1, 2, 3, 1], "global_att_blocks": [5], "memory_layers": 2, "memory_feedforward": 256}
TINY_SAM3 = {"model_type": Sa2VASam3Config.model_type, "image_size": 224, "window_size": 4, "pretrain_image_size": 112}
TINY_SAM3 |= {"hidden_dim": 64, "embed_dim": 64, "num_layers": 4, "num_heads": 4, "mlp_dim": 128}
TINY_SAM3 |= {"global_att_blocks": [3], "memory_layers": 2, "memory_feedforward": 256}
# The grounding encoder of a model that is measured, by its name and size.
GROUNDINGS = {
    ("sam2", "tiny"): TINY_SAM2,
    ("sam2", "large"): {"size": "large"},
    ("sam3", "tiny"): TINY_SAM3,
    ("sam3", "large"): {"model_type": Sa2VASam3Config.model_type},
}
COLUMNS = [
    "",
    "parameters (M)",
    "input",
    "seconds per frame: features",
    "GFLOP",
    "objects",
    "seconds per object and frame: memory and mask",
    "GFLOP",
    "peak MiB",
]


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields one table: each grounding encoder with each number of objects."""
    noise = torch.randint(0, 255, (arguments.frames, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    rows = []
    for title, config in configs(arguments.size):
        torch.manual_seed(0)
        encoder = grounding_encoder_of(config).to(arguments.device).eval().requires_grad_(False)
        rows += list(measure_encoder(title, encoder, noise.to(torch.uint8), arguments))
        del encoder
    yield f"### Grounding encoders, a clip of {arguments.frames} frames\n\n" + table(COLUMNS, rows)


def configs(size: str) -> Iterator[tuple[str, PretrainedConfig]]:
    """Those that are compared: SAM 2.1 and SAM 3 as published, or tiny ones."""
    for name, kind in (("sam2", Sa2VAGroundingConfig), ("sam3", Sa2VASam3Config)):
        fields = {key: value for key, value in GROUNDINGS[name, size].items() if key != "model_type"}
        if name == "sam2":
            yield f"SAM 2.1 {size}", kind(**fields, version="2.1")
        else:
            yield "SAM 3" if size == "large" else f"SAM 3 {size}", kind(**fields)


def measure_encoder(
    title: str, encoder: GroundingEncoder, clip: torch.Tensor, arguments: argparse.Namespace
) -> Iterator[list[Any]]:
    """A row per number of objects. The first frame is encoded to count and to warm up, the others are timed."""
    side, device = encoder.image_size, arguments.device
    pixels = encoder.normalize(resize(clip.float(), (side, side)).to(device))
    size = sum(one.numel() for one in encoder.parameters()) / 1e6
    with torch.inference_mode():
        features: list[Any] = []

        def encode(frames: torch.Tensor) -> None:
            features.extend(encoder.encode(frame[None]) for frame in frames)

        work, others = operations(lambda: encode(pixels[:1])), len(clip) - 1
        seconds, peak = timed(lambda: encode(pixels[1:]), device)
        start = [title, size, f"{side} px", seconds / others, work / 1e9]
        for objects in arguments.objects:
            pairs = objects * others
            call = partial(follow, encoder, features, objects)
            took, most = timed(call, device)
            yield [*start, objects, took / pairs, operations(call) / pairs / 1e9, max(peak, most)]
            start = [title, "", "", "", ""]


def follow(encoder: GroundingEncoder, features: list[Any], objects: int) -> None:
    """`objects` boxes on the first frame, followed through the others."""
    memory = ClipMemory(encoder, objects, len(features), torch.bfloat16)
    side = float(encoder.image_size)
    boxes = torch.tensor([[side * 0.1, side * 0.2, side * 0.6, side * 0.7]], device=encoder.device)
    memory.prompt_with_embeddings(0, features[0], encoder.prompt(features[0], boxes=boxes.expand(objects, 4)))
    for index in range(1, len(features)):
        memory.follow(index, features[index])


def timed(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds (of the CPU's threads together where it computes) and peak MiB above the start."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    with Memory(device) as memory:
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - start
    return seconds, memory.peak
