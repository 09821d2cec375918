"""SAM 2.1 against SAM 3's tracker on the same clip: time, operations and memory per frame, and per object and frame.

The weights are random, since time and memory do not depend on their values. On the CPU, seconds are those of all its
threads, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.configuration_sam3 import Sa2VASam3Config
from sa2va_hf.model.grounding_encoders import grounding_encoder_of
from sa2va_hf.model.grounding_protocol import GroundingEncoder, resize
from sa2va_hf.model.tracking import ClipMemory
from sa2va_hf.profiling.report import Memory, operations, table

logger = logging.getLogger(__name__)

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
COLUMNS = ["", "seconds", "GFLOP", "peak MiB"]
Figures = dict[str, tuple[float, float, float]]  # of a part: seconds, GFLOP, peak MiB


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields a table per grounding encoder, and the ratios between them. Each part is logged when it is measured."""
    noise = torch.randint(0, 255, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    found: dict[str, Figures] = {}
    for title, config in configs(arguments.size):
        torch.manual_seed(0)
        start = time.perf_counter()
        encoder = grounding_encoder_of(config).to(arguments.device).eval().requires_grad_(False)
        logger.info("%s: built in %.1f s", title, time.perf_counter() - start)
        found[title] = measure_encoder(title, encoder, noise, arguments)
        millions = sum(one.numel() for one in encoder.parameters()) / 1e6
        heading = f"### {title}: {millions:.1f} M parameters, {arguments.frames} frames of {encoder.image_size} px"
        yield f"{heading}\n\n" + table(COLUMNS, [[part, *figures] for part, figures in found[title].items()])
        del encoder
    first, second = found
    rows = [[part, *_ratios(found[second][part], found[first][part])] for part in found[first]]
    yield f"### {second} / {first}\n\n" + table(COLUMNS, rows)


def _ratios(figures: tuple[float, float, float], others: tuple[float, float, float]) -> list[float]:
    return [one / other if other else math.nan for one, other in zip(figures, others, strict=True)]


def configs(size: str) -> Iterator[tuple[str, PretrainedConfig]]:
    """Those that are compared: SAM 2.1 and SAM 3 as published, or tiny ones."""
    for name, kind in (("sam2", Sa2VAGroundingConfig), ("sam3", Sa2VASam3Config)):
        fields = {key: value for key, value in GROUNDINGS[name, size].items() if key != "model_type"}
        if name == "sam2":
            yield f"SAM 2.1 {size}", kind(**fields, version="2.1")
        else:
            yield "SAM 3" if size == "large" else f"SAM 3 {size}", kind(**fields)


def measure_encoder(title: str, encoder: GroundingEncoder, frame: torch.Tensor, arguments: Any) -> Figures:
    """Figures of encoding a frame (3, H, W), and per object and frame of a clip that repeats it."""
    side, device, others = encoder.image_size, arguments.device, arguments.frames - 1
    pixels = encoder.normalize(resize(frame[None].float(), (side, side)).to(device))
    found: Figures = {}

    def add(part: str, count: int, call: Callable[[], object]) -> None:
        work, seconds, peak = measured(call, device, arguments.size == "tiny", arguments.repeats)
        found[part] = seconds / count, work / count / 1e9, peak
        logger.info("%s: %s: %.2f s, %.0f GFLOP, %.0f MiB", title, part, *found[part])

    with torch.inference_mode():
        features: list[Any] = []
        add("features, per frame", 1, lambda: features.append(encoder.encode(pixels)))
        for objects in arguments.objects:
            call = partial(follow, encoder, features[:1] * arguments.frames, objects)
            add(f"memory and mask, per object and frame, of {objects}", objects * others, call)
    return found


def follow(encoder: GroundingEncoder, features: list[Any], objects: int) -> None:
    """`objects` boxes on the first frame, followed through the others."""
    memory = ClipMemory(encoder, objects, len(features), torch.bfloat16)
    side = float(encoder.image_size)
    boxes = torch.tensor([[side * 0.1, side * 0.2, side * 0.6, side * 0.7]], device=encoder.device)
    memory.prompt_with_embeddings(0, features[0], encoder.prompt(features[0], boxes=boxes.expand(objects, 4)))
    for index in range(1, len(features)):
        memory.follow(index, features[index])


def measured(call: Callable[[], object], device: str, warm_up: bool, repeats: int = 1) -> tuple[int, float, float]:
    """Operations, seconds (of the CPU's threads together where it computes; the median) and the highest peak in MiB
    above the start.

    warm_up: count in a call before the timed ones. Without it the first of them does both, which is right where an
    operation takes far longer than counting it.
    """
    work = operations(call) if warm_up else 0
    seconds, peaks = [], []
    clock = time.perf_counter if device == "cuda" else time.process_time
    for run in range(repeats):
        counting = FlopCounterMode(display=False) if run == 0 and not warm_up else nullcontext()
        with Memory(device) as memory, counting as counter:
            start = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - start)
        peaks.append(memory.peak)
        work = counter.get_total_flops() if counter else work
    return work, statistics.median(seconds), max(peaks)
