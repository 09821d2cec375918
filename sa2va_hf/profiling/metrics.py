"""Time of J&F against an implementation that dilates whole frames with OpenCV, and memory on a long clip.

OpenCV is not a dependency of the package: pip install opencv-python-headless.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from sa2va_hf.evaluation.video_metrics import BOUNDARY_BOUND, clip_scores, frame_scores
from sa2va_hf.mask_pictures import read_ids
from sa2va_hf.profiling.report import Memory, table

Pair = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], tuple[float, float]]
SIZES = {"480p": (480, 854), "1080p": (1080, 1920)}
# radius, and distance of the prediction from the target, as shares of the image height
OBJECTS = {"small": (0.05, 0.01), "medium": (0.15, 0.01), "large": (0.35, 0.01), "large, far off": (0.35, 0.08)}


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables one by one."""
    yield _speed(_objects(arguments.frames, arguments.masks), arguments.repeats)
    yield _memory(arguments.long)


def _objects(count: int, folders: Sequence[Path]) -> Iterator[tuple[str, str, list[Pair]]]:
    """Yields size, name and pairs of the objects: drawn ones, or where folders are given the masks of these."""
    for folder in folders:
        pairs = _real(folder)
        yield "{1} x {0}".format(*pairs[0][0].shape), folder.name, pairs
    for size, shape in SIZES.items() if not folders else ():
        for kind, (radius, shift) in OBJECTS.items():
            yield size, kind, list(_clip(count, shape, radius, shift))


def _real(folder: Path) -> list[Pair]:
    """Pairs of the masks of a clip, each with the one before it as its prediction.

    Raises:
        ValueError: the folder has fewer than two mask pictures, or one that is no mask.
    """
    masks = [read_ids(path) > 0 for path in sorted(folder.glob("*.png"))]
    if len(masks) < 2:
        raise ValueError(f"--masks {folder}: expected at least two mask pictures (PNG), found {len(masks)}")
    return list(pairwise(masks))


def _speed(objects: Iterable[tuple[str, str, list[Pair]]], repeats: int) -> str:
    slow = _straightforward()
    rows = []
    for size, kind, frames in objects:
        (theirs, expected), (ours, found) = _medians((slow, frame_scores), frames, repeats)
        difference = float(np.abs(np.array(found) - np.array(expected)).max())
        rows.append([size, kind, 1e3 * theirs, 1e3 * ours, theirs / ours, f"{difference:.0e}"])
    columns = ["size", "object", "cv2, ms a frame", "ours", "times faster", "largest difference"]
    return "### J&F of one object\n\n" + table(columns, rows)


def _memory(count: int) -> str:
    mask, _ = next(_clip(1, SIZES["480p"], *OBJECTS["large"]))
    rows = []
    for frames in (10, count):
        with Memory("cpu") as memory:
            clip_scores((mask.copy(), np.roll(mask, number % 9, axis=1)) for number in range(frames))
        rows.append([frames, memory.peak, frames * 2 * math.prod(SIZES["480p"]) / 2**20])
    return "### J&F of a long clip, 480p\n\n" + table(["frames", "peak MiB", "its masks would be MiB"], rows)


def _medians(scores: Sequence[Score], frames: list[Pair], repeats: int) -> list[tuple[float, list]]:
    """Of each implementation the seconds per frame, a median over passes, and its scores.

    They take turns, so that other load on the machine meets all of them.
    """
    passes: list[list[float]] = [[] for _ in scores]
    found: list[list] = [[] for _ in scores]
    for _ in range(repeats):
        for index, score in enumerate(scores):
            start = time.perf_counter()
            found[index] = [score(*pair) for pair in frames]
            passes[index].append((time.perf_counter() - start) / len(frames))
    return [(float(np.median(seconds)), values) for seconds, values in zip(passes, found, strict=True)]


def _clip(count: int, shape: tuple[int, int], radius: float, shift: float) -> Iterator[Pair]:
    """Yields (prediction, target) per frame: a moving disk with an irregular outline, and a shifted copy."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    for number in range(count):
        masks = []
        for off in (0, int(shift * shape[0])):
            cy, cx = shape[0] * 0.5 + off, shape[1] * (0.4 + 0.2 * number / count) - off
            angle = np.arctan2(y - cy, x - cx)
            wobble = 1 + 0.2 * np.sin(5 * angle + number) + 0.03 * np.sin(31 * angle)
            masks.append(np.hypot(y - cy, x - cx) < radius * shape[0] * wobble)
        yield masks[0], masks[1]


def _straightforward() -> Score:
    """J and F of one frame by their definition: both outlines, both dilated, multiplied."""
    try:
        import cv2
    except ImportError as error:
        raise SystemExit("the comparison needs OpenCV: pip install opencv-python-headless") from error

    def edges(mask: np.ndarray) -> np.ndarray:
        right, below, across = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
        right[:, :-1], below[:-1], across[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
        found = mask ^ right | mask ^ below | mask ^ across
        found[-1], found[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
        found[-1, -1] = False
        return found

    def score(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        union = np.sum(prediction | target)
        j = np.sum(prediction & target) / union if union else 1.0
        radius = math.ceil(BOUNDARY_BOUND * math.hypot(*target.shape))
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disk = (x * x + y * y <= radius * radius).astype(np.uint8)
        found, wanted = edges(prediction), edges(target)
        found_wide = cv2.dilate(found.astype(np.uint8), disk)
        wanted_wide = cv2.dilate(wanted.astype(np.uint8), disk)
        points, others = np.sum(found), np.sum(wanted)
        if not points or not others:
            return float(j), float(points == others)
        precision, recall = np.sum(found * wanted_wide) / points, np.sum(wanted * found_wide) / others
        return float(j), float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0

    cv2.setNumThreads(1)  # one thread, as ours
    return score
