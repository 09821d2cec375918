"""Time and memory of the data path: preparing, opening a million rows, random reading, the sampler's order.

Sources are measured on generated files (images of 640 x 480, videos of 24 frames) or on given ones: --source NAME ROOT
SPLIT, which may be repeated.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import DataLoader

from sa2va_hf import masks
from sa2va_hf.data.dataset.dataset import Sa2VADataset, open_media
from sa2va_hf.data.dataset.mask_targets import MaskGrid, mask_labels
from sa2va_hf.data.dataset.rows import Rows
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.prepare.checking import UNIT, Checked
from sa2va_hf.data.prepare.manifest import Manifest
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.prepare.shards import ShardWriter, write_index
from sa2va_hf.data.sampler import Sa2VASampler
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, Turn, to_row
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.profiling.report import Memory, measure, table

SIDE = 448
CLIP = 5  # frames
GRID = 256  # of the mask decoder at 1024 px
SAMPLED_FROM = 10  # items of a row whose question is sampled
ONE_BY_ONE = 2000  # items that the processor counts


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables of the chosen parts one by one."""
    with tempfile.TemporaryDirectory(prefix="sa2va-benchmark-") as folder:
        for part in arguments.parts:
            yield PARTS[part](arguments, Path(folder))


# ---------------------------------------------------------------- preparing


def _photo(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise, whose JPEG is about as large as that of a camera image."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def _make_files(root: Path, photos: int) -> list[tuple[str, str, str]]:
    """Writes a small dataset in each of four formats; returns (source, root, split) of each."""
    size = (640, 480)
    images = root / "finetune_json" / "images"
    images.mkdir(parents=True)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    polygon = np.stack([320 + 90 * np.cos(angles), 240 + 90 * np.sin(angles)], axis=1).reshape(-1).tolist()
    records, coco = [], {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    for number in range(photos):
        name = f"{number:06d}.jpg"
        _photo(number, size).save(images / name, quality=90)
        records.append({"image": name, "mask": [[polygon]], "text": ["the disc"]})
        coco["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        annotation = {"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon], "iscrowd": 0}
        coco["annotations"].append(annotation)
    (root / "finetune_json" / "annotations.json").write_text(json.dumps(records))
    for name in ("coco_json", "png_masks"):
        (root / name).mkdir()
        (root / name / "images").symlink_to(images)
    (root / "coco_json" / "annotations.json").write_text(json.dumps(coco))
    disc = Image.fromarray(masks.decode(masks.from_polygons([polygon], size[1], size[0])).astype(np.uint8) * 255)
    (root / "png_masks" / "masks").mkdir()
    for number in range(photos):
        disc.save(root / "png_masks" / "masks" / f"{number:06d}_disc.png")
    for clip in range(max(1, photos // 24)):
        for kind in ("JPEGImages", "Annotations"):
            (root / "vos_folders" / kind / f"{clip:03d}").mkdir(parents=True)
        for frame in range(24):
            place = root / "vos_folders" / "JPEGImages" / f"{clip:03d}" / f"{frame:05d}.jpg"
            place.symlink_to(images / f"{(24 * clip + frame) % photos:06d}.jpg")
            labels = disc.point(lambda value: value // 255).convert("P")
            labels.save(root / "vos_folders" / "Annotations" / f"{clip:03d}" / f"{frame:05d}.png")
    return [(name, str(root / name), "train") for name in ("finetune_json", "coco_json", "png_masks", "vos_folders")]


def _preparing(arguments: argparse.Namespace, root: Path) -> str:
    rows, folder, own = [], root / "prepared", _make_files(root / "raw", arguments.photos)
    for name, place, split in [*own, *arguments.source]:
        rates = []
        for num_proc in (1, 2):
            start = time.perf_counter()
            manifest = prepare(name, place, split, folder / f"{name}-{num_proc}", num_proc=num_proc, skip_bad=True)
            rates.append((manifest.samples / (time.perf_counter() - start), manifest.frames))
        (one, frames), (two, _) = rates
        rows.append([name, manifest.samples, frames, one, one * frames / manifest.samples, two, two / one])
    columns = ["source", "samples", "pictures", "samples/s, 1 process", "pictures/s", "2 processes", "times 1"]
    return "### Preparing: every picture decoded, every mask checked\n\n" + table(columns, rows)


# ---------------------------------------------------------------- reading


def _reading(arguments: argparse.Namespace, root: Path) -> str:
    """Random reads of 448 px images and clips: with Pillow, as samples from Arrow, as training items."""
    paths = []
    for number in range(arguments.photos):
        paths.append(root / f"{number:06d}.jpg")
        _photo(number, (SIDE, SIDE)).save(paths[-1], quality=90)
    processor = Sa2VAPredictor.from_pretrained("shapes-tiny").processor
    disc = masks.encode(np.hypot(*np.indices((SIDE, SIDE)) - SIDE / 2) < 100)
    images, clips = [[path] for path in paths], [paths[at : at + CLIP] for at in range(0, len(paths) - CLIP + 1, CLIP)]
    masked = {"expressions": [Expression("the disc", [0])]}
    kinds = [
        ("a question", images, {"turns": [Turn("What is it?", "Noise.")]}),
        ("a phrase and its mask", images, masked | {"objects": [Object([disc], [None])]}),
        (
            f"a clip of {CLIP} frames, a phrase and its masks",
            clips,
            masked | {"objects": [Object([disc] * CLIP, [None] * CLIP)]},
        ),
    ]
    rows, steps = [], []
    for name, files, fields in kinds:
        samples = [
            Sample(str(n), "referring", SIDE, SIDE, list(map(str, some)), **fields) for n, some in enumerate(files)
        ]
        ways = {"Pillow alone": partial(_open_all, files)} | _ways(root / name.replace(" ", "_"), samples, processor)
        order = np.random.default_rng(0).permutation(len(files)).tolist()
        found = _in_turn(ways, order, arguments.repeats)
        rows += [[f"{name}: {way}", len(files) / seconds, share] for way, (seconds, share) in found.items()]
        alone = found["Pillow alone"][0] / len(files) * 1e6
        for way, read in ways.items():
            if isinstance(dataset := getattr(read, "__self__", None), Sa2VADataset):
                steps.append([f"{name}: {way}", alone, *_steps(dataset, order, arguments.repeats)])
    columns = ["", "Pillow alone", "to plan it", "its images", "its masks"]
    parts = [
        f"### Random reading at {SIDE} px\n\n" + table(["", "samples per CPU second", "times Pillow alone"], rows)
    ]
    return "\n\n".join([*parts, "### A training item, CPU µs by step\n\n" + table(columns, steps)])


def _steps(dataset: Sa2VADataset, order: list[int], repeats: int) -> list[float]:
    """CPU µs of an item to plan it, to open its images, and to read its masks: medians over the repeats."""
    rounds = []
    for _ in range(repeats):
        marks = []
        for number in order:
            start = time.process_time()
            plan = dataset.plan(number)
            planned = time.process_time()
            open_media(plan)
            opened = time.process_time()
            mask_labels(plan, dataset.mask_grid)
            marks.append(np.diff([start, planned, opened, time.process_time()]) * 1e6)
        rounds.append(np.mean(marks, axis=0))
    return np.median(rounds, axis=0).tolist()


def _ways(folder: Path, samples: list[Sample], processor: Any) -> dict[str, Callable[[int], object]]:
    """How samples are read from Arrow, by what is made of them."""
    _write_cache(folder, [[to_row(sample) for sample in samples]])
    dataset = datasets.load_from_disk(str(folder))
    ways: dict[str, Callable[[int], object]] = {
        "the row as a sample, its pictures": partial(_read_sample, Rows(dataset))
    }
    grids: dict[str, MaskGrid | None] = {"a training item": None}
    if samples[0].objects:
        ways["that and the masks painted"] = partial(_read_sample, Rows(dataset), paint=True)
        grids = {f"a training item, {how} cells of {GRID}": MaskGrid(GRID, how) for how in ("nearest", "area")}
        grids["a training item, masks of full size"] = None
    items = {
        name: Sa2VADataset([(dataset, 1)], processor, num_frames=CLIP, mask_grid=grid) for name, grid in grids.items()
    }
    return ways | {name: dataset.__getitem__ for name, dataset in items.items()}


def _open_all(files: list[list[Path]], number: int) -> list[Image.Image]:
    return [_opened(path) for path in files[number]]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def _read_sample(rows: Rows, number: int, paint: bool = False) -> object:
    """A sample with its images and decoded masks, without its conversation."""
    sample = rows[number].sample()
    painted = [masks.decode(rle) for thing in sample.objects for rle in thing.masks if rle] if paint else []
    return sample, load_frames(sample, range(sample.num_frames)), painted


def _in_turn(ways: dict[str, Callable[[int], object]], order: list[int], repeats: int) -> dict[str, tuple]:
    """Per method: the median CPU time in seconds for all indices, and the median speed relative to the first method.

    The methods alternate, so that other load on the machine slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeats):  # the first round warms up
        for name, read in ways.items():
            start = time.process_time()
            for number in order:
                read(number)
            seconds[name].append(time.process_time() - start)
    times = {name: np.array(found[1:]) for name, found in seconds.items()}
    first = next(iter(times.values()))
    return {name: (float(np.median(own)), float(np.median(first / own))) for name, own in times.items()}


# ---------------------------------------------------------------- starting


def _write_cache(folder: Path, batches: Iterator[list[dict]] | list[list[dict]]) -> None:
    folder.mkdir(parents=True)
    manifest = Manifest("finetune_json", "train", None, {}, False, None)
    writer = ShardWriter(folder, manifest)
    for batch in batches:
        writer.write(Checked(pa.RecordBatch.from_pylist(batch, schema=FEATURES.arrow_schema)))
    writer.finish()
    write_index(folder, manifest)


def _talks(rows: int) -> Iterator[list[dict]]:
    for first in range(0, rows, 100 * UNIT):
        yield [
            to_row(Sample(f"{n}", "question", turns=[Turn(f"What is {n}?", "A number. " * (1 + n % 7))]))
            for n in range(first, min(first + 100 * UNIT, rows))
        ]


def _starting(arguments: argparse.Namespace, root: Path) -> str:
    rows, folder = arguments.rows, root / "large"
    _write_cache(folder, _talks(rows))
    processor = Sa2VAPredictor.from_pretrained("shapes-tiny").processor
    found = []
    with Memory("cpu") as memory:
        start = time.perf_counter()
        dataset = Sa2VADataset([(datasets.load_from_disk(str(folder)), 1)], processor)
        found.append(["to open and scan it, s", time.perf_counter() - start])
    found.append(["memory of that, MiB", memory.peak])
    loader = DataLoader(dataset, batch_size=8, shuffle=False, num_workers=2, collate_fn=list)
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    found.append(["to the first batch of 2 workers, s", time.perf_counter() - start])
    for _ in range(200):
        next(batches)
    found.append(["each worker's own memory, MiB", max(map(_private, (one.pid for one in batches._workers)))])
    return f"### A cache of {rows:,} rows\n\n" + table(["", ""], found)


def _counting(arguments: argparse.Namespace, root: Path) -> str:
    """Token counts of an epoch, against the processor's own count of single conversations, in CPU time: other load
    changes it least."""
    processor = Sa2VAPredictor.from_pretrained("shapes-tiny").processor
    rows = arguments.rows
    kinds = {
        "dialogue": ("a fixed dialogue", _talks(rows), 1),
        "question": ("a sampled question", _phrases(rows // SAMPLED_FROM), SAMPLED_FROM),
    }
    found = []
    for number, (name, batches, repeats) in enumerate(kinds[kind] for kind in arguments.kinds):
        _write_cache(root / f"counted-{number}", batches)
        cache = datasets.load_from_disk(str(root / f"counted-{number}"))
        dataset = Sa2VADataset([(cache, repeats)], processor, max_expressions=1)
        some = range(0, len(dataset), max(1, len(dataset) // ONE_BY_ONE))
        start = _cpu_seconds()
        for item in some:
            plan = dataset.plan(item)
            processor.num_tokens(plan.turns, plan.size)
        single = (_cpu_seconds() - start) / len(some)
        start, wall = _cpu_seconds(), time.perf_counter()
        dataset.lengths(0)
        seconds, wall = _cpu_seconds() - start, time.perf_counter() - wall
        times = single * len(dataset) / seconds
        found.append([name, f"{len(dataset):,}", single * 1e6, seconds / len(dataset) * 1e6, times, seconds, wall])
    columns = ["an item is", "items", "one by one, CPU µs an item", "all at once, CPU µs an item", "times as fast"]
    columns += ["all, CPU s", "all, s by the clock"]
    return f"### Token counts of an epoch, {len(os.sched_getaffinity(0))} cores\n\n" + table(columns, found)


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _phrases(rows: int) -> Iterator[list[dict]]:
    """Rows with one expression, all different, for a mask."""
    colours, kinds = ("red", "dark blue", "green", "small white"), ("dog", "car", "cup of tea", "man", "street sign")
    mask = Object([masks.empty(480, 640)], [None])
    for first in range(0, rows, 100 * UNIT):
        yield [
            to_row(
                Sample(
                    f"{n}", "referring", 640, 480, [f"{n}.jpg"], objects=[mask],
                    expressions=[Expression(f"{colours[n % 4]} {kinds[n % 5]} left of number {n}", [0])],
                )
            )
            for n in range(first, min(first + 100 * UNIT, rows))
        ]  # fmt: skip


def _private(pid: int) -> float:
    """Memory of a process in MiB that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


# ---------------------------------------------------------------- ordering


def heavy_tailed(count: int) -> np.ndarray:
    """Lengths of 8 to 4000 tokens, half of them below 60: int (count,).

    The noise is bounded; otherwise the tail alone would determine the efficiency.
    """
    z = (np.random.default_rng(1).random((count, 4)).sum(axis=1) - 2) * 3**0.5
    return np.clip(60 * np.exp(1.2 * z), 8, 8192).astype(int)


def three_modalities(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and modalities, int (count,) each: short texts with a tail, long images, videos of nearly one length."""
    rng = np.random.default_rng(2)
    modalities = rng.choice([0, 2, 4], count, p=[0.5, 0.35, 0.15])
    z = rng.normal(size=count)
    lengths = {0: 180 * np.exp(0.7 * z), 2: 1800 + 260 * z, 4: 1500 + 90 * z}
    return np.maximum(np.choose(modalities // 2, list(lengths.values())), 10).astype(int), modalities


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, with mean ranks for ties."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[inverse])
    return np.corrcoef(*ranks)[0, 1]


def worst_share_of_a_tenth(order: np.ndarray, labels: np.ndarray) -> float:
    """The largest deviation of a label's share in a tenth of the epoch from its share in all samples."""
    shares = [
        [np.mean(labels[stretch] == label) for label in np.unique(labels)] for stretch in np.array_split(order, 10)
    ]
    return np.abs(np.array(shares) - [np.mean(labels == label) for label in np.unique(labels)]).max()


def sampler_of(lengths: np.ndarray, modalities: np.ndarray, **options: int) -> Sa2VASampler:
    return Sa2VASampler(lambda epoch: lengths, lambda epoch: modalities, **options)


def _ordering(arguments: argparse.Namespace, root: Path) -> str:
    rows, found = arguments.rows, []
    heavy = heavy_tailed(50_000)
    cases = {"heavy tail, 50,000": (heavy, np.zeros_like(heavy)), "three modalities, 30,000": three_modalities(30_000)}
    for name, (lengths, modalities) in cases.items():
        sampler = sampler_of(lengths, modalities, batch_size=8, world_size=8)
        order = sampler.order()
        steps = lengths[order].reshape(sampler.num_batches, -1).mean(axis=1)
        drift = rank_correlation(steps, np.arange(len(steps)))
        shares = worst_share_of_a_tenth(order, modalities)
        efficiency = sampler.padding_efficiency(), sampler.padding_efficiency(across_ranks=True)
        found.append([name, *(f"{value:.4f}" for value in (*efficiency, drift, shares))])
    columns = ["lengths", "real tokens in a batch", "in a step of all ranks", "correlation with time", "worst share"]
    parts = ["### Order at 8 ranks of 8 samples\n\n" + table(columns, found)]
    lengths, modalities = heavy_tailed(rows), np.zeros(rows, int)
    build: Callable[[], Sa2VASampler] = partial(sampler_of, lengths, modalities, batch_size=8, world_size=8)
    seconds, peak = measure(lambda: build().order(), "cpu", 3)
    parts.append(f"The order of {rows:,} samples takes {seconds:.2f} s and {peak:.0f} MiB.")
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[argparse.Namespace, Path], str]] = {
    "preparing": _preparing,
    "reading": _reading,
    "starting": _starting,
    "counting": _counting,
    "ordering": _ordering,
}
