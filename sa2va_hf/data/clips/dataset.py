"""Arrow rows -> clips of frames and objects for SAM 2, and the order in which datasets of them take turns.

An index says the epoch too (epoch * len + number), and all chance comes from rng(seed, epoch, number), as in
`dataset.py`. The frames of a clip are neighbours among the annotated ones.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Sampler

from sa2va_hf import masks
from sa2va_hf.data.clips.transforms import Augmentation, transform
from sa2va_hf.data.dataset.entries import Entry, Share
from sa2va_hf.data.dataset.length_cache import fingerprint
from sa2va_hf.data.dataset.rows import Row, Rows, scan
from sa2va_hf.data.media import describe, load_frames
from sa2va_hf.data.schema import Media, Reject, Sample

logger = logging.getLogger(__name__)

NOTHING_SEEN = "no object has a pixel on the first frame of any clip of {} frames"


@dataclass
class ClipEntry:
    """A prepared dataset in a mixture of clips and images.

    repeats: how often each usable row counts in an epoch; samples: how many clips an epoch has of it; replacement: see
    `Share`. batch_size: clips of it in a micro-batch of one device. num_frames: of a clip; default: the run's, or 1
    where there are only images.
    """

    rows: datasets.Dataset
    repeats: float = 1.0
    batch_size: int = 1
    num_frames: int | None = None
    samples: float | None = None
    replacement: bool = False


class ClipDataset(torch.utils.data.Dataset):
    """`dataset[epoch * len(dataset) + i]` is clip i of that epoch: {"images": uint8 (T, 3, S, S), "masks": bool
    (O, T, S, S), "ignore": bool (T, S, S), "sample_id"}.

    A clip is T neighbours of the annotated frames, with at most `max_objects` of the objects that its first frame
    shows, in random order; with the probability `reverse` it runs backwards. Frames on which some object was not
    annotated are not in it. Rows that have no such clip are rejected and listed in `rejected`.

    Raises:
        ValueError: nothing is left, or a number is out of range. Reading: a file that is not what was prepared.
    """

    def __init__(
        self,
        entries: Sequence[ClipEntry],
        *,
        image_size: int = 1024,
        num_frames: int = 8,
        max_objects: int = 3,
        reverse: float = 0.0,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.image_size, self.max_objects, self.reverse, self.seed = image_size, max_objects, reverse, seed
        shares = [
            (p.rows._fingerprint, p.repeats, p.batch_size, p.num_frames, p.samples, p.replacement) for p in entries
        ]
        self._facts = shares, image_size, num_frames, max_objects, reverse, augmentation, seed
        self.augmentation = augmentation
        self.rejected: list[Reject] = []
        self.frames: list[int] = []  # of a clip, per entry
        self.entries = [self._open(entry_index, entry, num_frames) for entry_index, entry in enumerate(entries)]
        self.batch_sizes = [entry.batch_size for entry in entries]
        self.starts = np.cumsum([0] + [len(entry) for entry in self.entries])
        if self.rejected:
            listed = "; ".join(f"{reject.id} ({reject.file}): {reject.reason}" for reject in self.rejected[:20])
            more = f"; and {len(self.rejected) - 20} more" if len(self.rejected) > 20 else ""
            level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG  # once, not per process
            logger.log(level, "%d rows give no clip and are skipped: %s%s", len(self.rejected), listed, more)
        for entry_index, entry in enumerate(self.entries):
            if not len(entry):
                first = f"; the first, {self.rejected[0].id}: {self.rejected[0].reason}" if self.rejected else ""
                raise ValueError(
                    f"entry {entry_index + 1} gives no clip: {len(self.rejected)} rows were rejected{first}"
                )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def fingerprint(self) -> str:
        """A hash of all that the clips follow from."""
        return fingerprint(*self._facts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, number = divmod(int(index), len(self))
        entry_index = int(np.searchsorted(self.starts, number, side="right")) - 1
        entry = self.entries[entry_index]
        item = entry.item(epoch, number - int(self.starts[entry_index]))
        rng = np.random.default_rng((self.seed, epoch, number))
        row = entry.rows[entry.numbers[item]]
        positions, instances = self._sample(row, self.frames[entry_index], rng)
        numbers = row.annotated()[positions].tolist()
        size = row["height"], row["width"]
        targets = np.zeros((len(instances), len(positions), *size), bool)
        ignored = np.zeros((len(positions), *size), bool)
        for at, position in enumerate(positions):
            for row_index, instance in enumerate(instances):
                targets[row_index, at] = masks.decode(row.mask(instance, position))
            if (rle := row.ignore(position)) is not None:
                ignored[at] = masks.decode(rle)
        frames = open_frames(row, numbers)
        images, objects, ignore = transform(
            frames, torch.from_numpy(targets), torch.from_numpy(ignored), self.image_size, rng, self.augmentation
        )
        return {"images": images, "masks": objects, "ignore": ignore, "sample_id": f"{row['id']} {numbers}"}

    def _sample(self, row: Row, length: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Samples a clip: positions among the annotated frames, in order, and indices of objects."""
        usable, visible = _usable(row)
        backwards = rng.random() < self.reverse
        starts = rng.permutation(len(usable) - length + 1)
        for direction in (backwards, not backwards):
            firsts = usable[starts + (length - 1 if direction else 0)]
            found = np.flatnonzero(visible[:, firsts].any(0))
            if len(found):
                start = starts[found[0]]
                positions = usable[start : start + length]
                there = np.flatnonzero(visible[:, firsts[found[0]]])
                instances = rng.permutation(there)[: self.max_objects]
                return (positions[::-1] if direction else positions).tolist(), instances.tolist()
        raise ValueError(f"sample {row['id']!r}: {NOTHING_SEEN.format(length)}")

    def _open(self, entry_index: int, given: ClipEntry, num_frames: int) -> Entry:
        for name in ("repeats", "batch_size"):
            if not getattr(given, name) > 0:
                raise ValueError(f"entry {entry_index + 1}: `{name}` must be positive, got {getattr(given, name)}")
        facts = scan(given.rows)
        length = given.num_frames or (num_frames if facts.is_video.any() else 1)
        self.frames.append(length)
        rows = Rows(given.rows)
        masked = rows.dataset.select_columns("num_masks")[:].column("num_masks").to_numpy()
        reasons = {}
        for number in np.flatnonzero(facts.is_video | (masked == 0) | (facts.num_annotated < length)).tolist():
            if reason := _reason(rows[number], length, int(facts.num_annotated[number])):
                row = rows[number]
                file = row.video() if row.video() is not None else row.frame(0)
                self.rejected.append(Reject(row["id"], reason, describe(file)))
                reasons[number] = reason
        numbers = np.setdiff1d(np.arange(len(facts)), np.array(list(reasons), int))
        nothing = np.zeros(len(numbers), int)
        entry = Entry(rows, numbers, np.stack([nothing, nothing], 1), facts.take(numbers), nothing.astype(bool))
        rng = np.random.default_rng((self.seed, entry_index))
        entry.repeat(Share(given.repeats, given.samples).repeats_of(len(numbers)), rng, given.replacement)
        return entry


def _usable(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the frames on which every object with masks was annotated, and bool (objects, annotated): which
    object is seen where."""
    known, visible = row.known(), row.visible()
    return np.flatnonzero(known[known.any(1)].all(0)), visible


def _reason(row: Row, length: int, annotated: int) -> str:
    """Why a row gives no clip; "" if it does."""
    if annotated < length:
        return f"it has {annotated} annotated frames, {length} are asked for"
    if not row["num_masks"]:
        return "its objects have no masks"
    usable, visible = _usable(row)
    if len(usable) < length:
        return f"every object is annotated on {len(usable)} of its frames, {length} are asked for"
    if not visible[:, usable[: len(usable) - length + 1]].any():
        return NOTHING_SEEN.format(length)
    return ""


def open_frames(row: Row, numbers: Sequence[int]) -> list:
    """The frames of a row with these numbers, in this order, as pictures; others are not read."""
    video, count = row.video(), row["num_frames"]
    frames: list[Media] = []
    if video is None:
        frames = [""] * count  # a clip may have thousands of embedded frames: only the chosen ones are read
        for number in numbers:
            frames[number] = row.frame(number)
    sample = Sample(row["id"], "", row["width"], row["height"], frames, video, num_frames=count, annotated=[])
    return load_frames(sample, numbers)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Clips of one length side by side, in the form that `Sam2ClipModel` takes: the objects of all clips in a row."""
    counts = torch.tensor([len(example["masks"]) for example in examples])
    batch = {
        "images": torch.stack([example["images"] for example in examples]),
        "masks": torch.cat([example["masks"] for example in examples]).transpose(0, 1).contiguous(),
        "clip_of_object": torch.repeat_interleave(torch.arange(len(examples)), counts),
        "sample_ids": [example["sample_id"] for example in examples],
    }
    ignore = torch.stack([example["ignore"] for example in examples], dim=1)
    return batch | ({"ignore": ignore} if ignore.any() else {})


class ClipBatchSampler(Sampler[list[int]]):
    """The micro-batches of one rank: each of one dataset, with that dataset's batch size, and at the same step of the
    same dataset on all ranks. The datasets take turns at random, each as often as it has batches.

    The order is a function of (seed, epoch). With `phases`, an epoch here is that portion of a pass over the data.
    Every clip is used; the last batch of a dataset is filled up with others of its clips.
    """

    def __init__(self, dataset: ClipDataset, *, world_size: int = 1, rank: int = 0, seed: int = 0, phases: int = 1):
        if phases < 1:
            raise ValueError(f"`phases_per_epoch`: expected at least 1, got {phases}")
        self.dataset, self.world_size, self.rank, self.seed, self.phases = dataset, world_size, rank, seed, phases
        self.epoch = 0
        groups = [size * world_size for size in dataset.batch_sizes]
        self._shares = [-(-len(entry) // phases) for entry in dataset.entries]
        self._batches = [-(-share // group) for share, group in zip(self._shares, groups, strict=True)]

    def __len__(self) -> int:
        return sum(self._batches)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        queues = [iter(self._of_entry(entry_index)) for entry_index in range(len(self._batches))]
        turns = np.repeat(np.arange(len(queues)), self._batches)
        for entry_index in np.random.default_rng((self.seed, self.epoch)).permutation(turns):
            yield next(queues[entry_index])

    def _of_entry(self, entry_index: int) -> list[list[int]]:
        """The rank's batches of a dataset, as virtual indices."""
        whole, phase = divmod(self.epoch, self.phases)
        clips = len(self.dataset.entries[entry_index])
        order = np.random.default_rng((self.seed, whole, entry_index)).permutation(clips)
        share, size = self._shares[entry_index], self.dataset.batch_sizes[entry_index]
        mine = np.take(order, np.arange(phase * share, (phase + 1) * share), mode="wrap")
        filled = np.resize(mine, self._batches[entry_index] * size * self.world_size)
        numbers = filled.reshape(-1, self.world_size, size)[:, self.rank]
        return (numbers + int(self.dataset.starts[entry_index]) + whole * len(self.dataset)).tolist()
