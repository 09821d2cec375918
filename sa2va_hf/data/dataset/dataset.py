"""Arrow rows -> training examples: the one `torch.utils.data.Dataset` of the package.

An index says the epoch too (epoch * len + number), and every choice is sampled with rng(seed, epoch, number): the
items do not depend on the number of workers, on the order of access, or on anything that a resumed run has not seen.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from sa2va_hf.data.dataset.entries import ANSWERS, Entry, Share
from sa2va_hf.data.dataset.generators import generator, generators
from sa2va_hf.data.dataset.length_cache import cached, fingerprint, processor_fingerprint
from sa2va_hf.data.dataset.mask_targets import MaskGrid, mask_labels
from sa2va_hf.data.dataset.planning import Plan, Planner, is_located, region_masks
from sa2va_hf.data.dataset.processes import in_processes
from sa2va_hf.data.dataset.rows import Row, Rows, scan
from sa2va_hf.data.dataset.token_counts import TokenCounter
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Media, Reject, Sample

logger = logging.getLogger(__name__)

MOST_LISTED = 20  # rejects in the log; the others are counted
CHUNK = 5000  # rows whose expressions are read at a time
NO_TEXT = "it has neither expressions nor turns"
REGIONS_ON_CLIP = "region prompts need a single image, it is a clip"
NOT_LOCATED = "boxes are asked for, and on no frame it has a mask or a box of each object that is meant"
NO_REGIONS = "it has region prompts, which this model has no form for"


class Sa2VADataset(torch.utils.data.Dataset):
    """Rows of one or more Arrow caches, each with its `Share` or its repeats, as examples for `Sa2VACollator`.

    `dataset[epoch * len(dataset) + i]` is item i of that epoch. Repeats of 2.5 give every row twice and a random half
    of the rows once more, in turn. Repeats and samples hold over the rows that can be used.

    Training: of a row's expressions at most `max_expressions` are sampled without replacement, and each becomes a turn
    with question and answer sampled from `prompts`; of a clip `num_frames` random frames are taken. Evaluation
    (`train=False`): all expressions in order, `max_expressions` per item (a row may give several items), frames spread
    evenly; the same in every epoch.

    Frames: of rows with masks only annotated ones, on which every object that is meant has a mask, or, if there are
    none, a mask or a box; a clip with few of them gives few frames.

    Length: sampled turns, or the last turns of a fixed dialogue, are skipped until the rest fits `max_length` tokens;
    text is never cut. Rows that do not fit even so are rejected and listed in `rejected`; so are rows without text,
    region prompts on clips, which the model's prompt has no form for (with Qwen-VL: all of them), and regions too
    small for the model's grid.

    mask_grid: the masks as the loss of a model reads them (`MaskGrid.of(model)`) instead of at the size of the image.

    classes: examples say the class of each [SEG], for a contrastive term.

    length_cache: a folder where `lengths` are kept from run to run (`length_cache.default_folder()`); None: they are
    not kept.

    Raises:
        ValueError: no items left of a dataset; repeats that are not positive, or not 1 in evaluation; a dataset of
            another schema.
    """

    def __init__(
        self,
        entries: Sequence[tuple[datasets.Dataset, float | Share]],
        processor: Any,
        *,
        seed: int = 0,
        num_frames: int = 5,
        max_expressions: int = 5,
        max_length: int = 8192,
        train: bool = True,
        length_cache: Path | str | None = None,
        mask_grid: MaskGrid | None = None,
        classes: bool = False,
    ):
        self.processor, self.seed, self.train, self.mask_grid = processor, seed, train, mask_grid
        self.classes = classes
        self.length_cache = None if length_cache is None else Path(length_cache)
        self.planner = Planner(TokenCounter(processor), num_frames, max_expressions, max_length, train)
        self.rejected: list[Reject] = []
        shares = [share if isinstance(share, Share) else Share(share) for _, share in entries]
        given = [(rows, share) for (rows, _), share in zip(entries, shares, strict=True)]
        self.entries = [self._open(entry_index, *one) for entry_index, one in enumerate(given)]
        self._starts = np.cumsum([0] + [len(entry) for entry in self.entries])
        self._lengths: dict[int, np.ndarray] = {}  # of one epoch
        settings = (seed, num_frames, max_expressions, max_length, train)
        self._facts = [(rows._fingerprint, str(share)) for rows, share in given], settings
        self._fixed_lengths: dict[int, np.ndarray] = {}  # of the items of a entry that are the same in every epoch
        self._report()
        logger.info("%d items per epoch from %d mixture entries", len(self), len(self.entries))

    def _report(self) -> None:
        """Log the rejects, and raise where a dataset of the mixture has no item left."""
        listed = "; ".join(f"{reject.id}: {reject.reason}" for reject in self.rejected[:MOST_LISTED])
        more = f"; and {len(self.rejected) - MOST_LISTED} more" if len(self.rejected) > MOST_LISTED else ""
        if self.rejected:
            level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG  # once, not per process
            logger.log(level, "%d rows cannot be used and are skipped: %s%s", len(self.rejected), listed, more)
        for ordinal, entry in enumerate(self.entries, start=1):
            if not len(entry) and len(entry.numbers):
                raise ValueError(
                    f"entry {ordinal} of {len(self.entries)}: its share of the epoch is less than one of its "
                    f"{len(entry.numbers)} rows; raise `repeats`, `samples` or its weight, or remove it"
                )
            if not len(entry):
                first = f": {listed}{more}" if self.rejected else ""
                raise ValueError(
                    f"the dataset is empty: entry {ordinal} of {len(self.entries)} has no row that can be used, "
                    f"{len(self.rejected)} rows rejected{first}"
                )
        if not self.entries:
            raise ValueError("the dataset is empty: expected at least one entry, got none")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """A hash of all that the items and their order follow from: rows, shares, settings, and the processor."""
        return fingerprint(processor_fingerprint(self.processor), *self._facts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"messages", "mask_labels": bool (num_seg, num_frames, H, W), "sample_id"}, and where pixels do not count
        "ignore_labels": bool (num_frames, H, W); where not all masks are known "mask_known": bool (num_seg,
        num_frames), and "box_labels" of the others, see `Sa2VAForConditionalGeneration.forward`. For text only
        mask_labels is (0, 1, 1, 1). With `classes`, "seg_classes": the class of each [SEG], None where its objects
        have none, or several.

        With a `mask_grid` H and W are its size, and shares of cells (`how` "area") are float.

        Raises:
            ValueError: naming sample and file, when a file cannot be read or is not what was prepared.
        """
        plan = self.plan(index)
        if plan.size is None:
            visuals, labels = [], {"mask_labels": torch.zeros(0, 1, 1, 1, dtype=torch.bool)}
        else:
            pictures = open_media(plan)
            visual = {"type": "video", "video": pictures} if plan.is_video else {"type": "image", "image": pictures[0]}
            visuals = [visual, *({"type": "region", "mask": mask} for mask in region_masks(plan.row))]
            labels = mask_labels(plan, self.mask_grid)
        if self.classes:
            labels["seg_classes"] = [_class_of(plan.row, instances) for instances in plan.targets]
        return {"messages": _messages(plan, visuals), **labels, "sample_id": plan.sample_id}

    def plan(self, index: int) -> Plan:
        """What item `index` will be. Opens no media."""
        epoch, number = divmod(int(index), len(self))
        entry_index, entry, item = self._find(epoch, number)
        opened = entry.open(item)
        rng = self._rng(epoch, number, entry_index, entry.numbers[item]) if opened.has_choices else None
        return self.planner.plan(opened, rng)

    def sample_id(self, index: int) -> str:
        """The id of the row that item `index` is made of; also where the rest of it cannot be used."""
        _, entry, item = self._find(*divmod(int(index), len(self)))
        return str(entry.open(item).row["id"])

    def _find(self, epoch: int, number: int) -> tuple[int, Entry, int]:
        """Item `number` of an epoch: the index of its entry, the entry, and the index of the item in it."""
        entry_index = bisect_right(self._starts, number) - 1
        entry = self.entries[entry_index]
        return entry_index, entry, entry.item(epoch, number - int(self._starts[entry_index]))

    def modalities(self, epoch: int) -> np.ndarray:
        """0 text, 1 image without masks, 2 image with masks, 3 video without, 4 video with: (len,) int8.

        The same in every epoch: a row with masks stays one when only phrases that match nothing were sampled from it.
        """
        return np.concatenate([entry.modality[entry.of_epoch(epoch)] for entry in self.entries])

    def entry_indices(self, epoch: int) -> np.ndarray:
        """The index of the mixture entry that each item comes from: (len,) ints. The same in every epoch."""
        return np.repeat(np.arange(len(self.entries)), np.diff(self._starts))

    def lengths(self, epoch: int) -> np.ndarray:
        """Exact token counts of an epoch's items: (len,) ints. Kept until another epoch is asked for.

        Costs one pass over the texts on all cores. Fixed dialogues are counted once, not per epoch. With a
        `length_cache` folder it is done once for the same data, processor, settings and epoch, by one process of the
        machine: the others wait for it.
        """
        if epoch not in self._lengths:

            def count() -> np.ndarray:
                return np.concatenate([self._lengths_of(index, epoch) for index in range(len(self.entries))])

            key = fingerprint(processor_fingerprint(self.processor), *self._facts, epoch) if self.length_cache else ""
            self._lengths = {epoch: cached(self.length_cache, key, len(self), count)}
        return self._lengths[epoch]

    def _lengths_of(self, entry_index: int, epoch: int) -> np.ndarray:
        entry, start = self.entries[entry_index], int(self._starts[entry_index])
        items, facts = entry.of_epoch(epoch), entry.facts
        sampled = (facts.num_expressions > 0) & self.train
        if entry_index not in self._fixed_lengths:
            self._fixed_lengths[entry_index] = self._lengths_of_fixed(entry_index, np.flatnonzero(~sampled))
        lengths = self._fixed_lengths[entry_index][items]
        quick = sampled & facts.complete & ~entry.tight & (facts.num_regions == 0)
        quick &= entry.answer == "masks"

        def sample_and_count(numbers: np.ndarray) -> np.ndarray:
            return self._sampled_lengths(entry, items[numbers], epoch, start + numbers)

        def plan_and_count(numbers: np.ndarray) -> np.ndarray:
            plans = (self.plan(epoch * len(self) + start + number) for number in numbers.tolist())
            return np.array([self.planner.length(plan) for plan in plans], np.int64)

        _fill(lengths, np.flatnonzero(quick[items]), sample_and_count)
        _fill(lengths, np.flatnonzero((sampled & ~quick)[items]), plan_and_count)
        return lengths

    def _sampled_lengths(self, entry: Entry, items: np.ndarray, epoch: int, numbers: np.ndarray) -> np.ndarray:
        """Lengths of items that are planned from their expressions alone. numbers: theirs in the epoch."""
        texts, shapes = entry.rows.phrases(entry.numbers[items]), self._shapes(entry, items)
        rngs = generators((self.seed, epoch), numbers)
        sampled = (self.planner.sample_turns(*texts.of(row), rng)[1] for row, rng in enumerate(rngs))
        return np.array(list(map(self.planner.counter.count, sampled, *shapes)), np.int64)

    def _lengths_of_fixed(self, entry_index: int, which: np.ndarray) -> np.ndarray:
        """Lengths of items in which no text is sampled; 0 for others: (items of the entry,)."""
        entry, facts = self.entries[entry_index], self.entries[entry_index].facts
        lengths = np.zeros(len(entry.numbers), np.int64)
        whole = ~facts.is_video | facts.complete | ~facts.has_targets  # its frames do not depend on who is meant
        quick = (facts.num_expressions == 0) & whole & ~entry.tight & (facts.num_regions == 0)

        def read_and_count(items: np.ndarray) -> np.ndarray:
            turns = entry.rows.turns(entry.numbers[items])
            return np.array(list(map(self.planner.counter.count, turns, *self._shapes(entry, items))), np.int64)

        def plan_and_count(items: np.ndarray) -> np.ndarray:
            rngs = (self._rng(0, 0, entry_index, row) for row in entry.numbers[items].tolist())
            plans = (self.planner.plan(entry.open(item), rng) for item, rng in zip(items.tolist(), rngs, strict=True))
            return np.array([self.planner.length(plan) for plan in plans], np.int64)

        _fill(lengths, which[quick[which]], read_and_count)
        _fill(lengths, which[~quick[which]], plan_and_count)
        return lengths

    def _shapes(self, entry: Entry, items: np.ndarray) -> tuple[list, list[int], list[bool]]:
        """Of items whose frames do not depend on what is asked: size or None, number of frames, whether a video."""
        facts = entry.facts.take(items)
        sizes = zip(facts.width.tolist(), facts.height.tolist(), strict=True)
        frames = self.planner.usual_frames(facts).tolist()
        return [size if size[0] else None for size in sizes], frames, facts.is_video.tolist()

    def _rng(self, epoch: int, number: int, entry_index: int, row: int) -> np.random.Generator:
        """In training of the epoch and the item; in evaluation of the row, however its expressions are split."""
        return generator(*((self.seed, epoch, number) if self.train else (self.seed, entry_index, int(row))))

    # ---------------------------------------------------------------- construction

    def _open(self, entry_index: int, rows: datasets.Dataset, share: Share) -> Entry:
        if not (np.isfinite(share.repeats) and share.repeats > 0):
            raise ValueError(f"entry {entry_index + 1}: repeats must be positive, got {share.repeats}")
        if share.answer not in ANSWERS:
            raise ValueError(
                f"entry {entry_index + 1}: answer must be one of {', '.join(ANSWERS)}, got {share.answer!r}"
            )
        if not self.train and share != Share(answer=share.answer):
            given = f"repeats {share.repeats}" if share.samples is None else f"samples {share.samples}"
            raise ValueError(f"entry {entry_index + 1}: in evaluation every row counts once, got {given}")
        facts = scan(rows)
        spans = np.stack([np.zeros_like(facts.num_expressions), facts.num_expressions], axis=1)
        tight = self.planner.may_be_too_long(facts, boxes=share.answer != "masks")
        entry = Entry(Rows(rows), np.arange(len(facts)), spans, facts, tight, share.answer)
        reasons = self._reasons(entry)
        self.rejected += [Reject(entry.rows[item]["id"], reason) for item, reason in sorted(reasons.items())]
        entry = entry.take(np.setdiff1d(np.arange(len(facts)), np.array(list(reasons), int)))
        if not self.train:
            return self._split(entry_index, entry)
        rng = np.random.default_rng((self.seed, entry_index))
        entry.repeat(share.repeats_of(len(entry.numbers)), rng, share.replacement)
        return entry

    def _reasons(self, entry: Entry) -> dict[int, str]:
        """Why rows cannot be used, by item."""
        facts, limit = entry.facts, self.planner.max_length
        reasons = dict.fromkeys(np.flatnonzero(facts.num_turns + facts.num_expressions == 0).tolist(), NO_TEXT)
        reasons |= dict.fromkeys(np.flatnonzero(facts.is_video & (facts.num_regions > 0)).tolist(), REGIONS_ON_CLIP)
        if not self.processor.takes_regions:
            reasons |= dict.fromkeys(np.flatnonzero(facts.num_regions).tolist(), NO_REGIONS)
        for number in set(np.flatnonzero(facts.num_regions).tolist()) - set(reasons):
            prompts = self.planner.regions(entry.open(number).row)
            missed = [n for n, cells in enumerate(prompts, 1) if not cells.any()]
            if missed:
                reasons[number] = f"region{missed[0]} is too small: it covers no cell of the model's grid"
        unsure = ~facts.complete & (facts.num_expressions > 0) & (entry.answer != "masks")
        for number in set(np.flatnonzero(unsure).tolist()) - set(reasons):
            item = entry.open(number)
            if not any(is_located(item, item.row.targets(n)) for n in range(item.num_expressions)):
                reasons[number] = NOT_LOCATED
        for number in set(np.flatnonzero(entry.tight).tolist()) - set(reasons):
            item = entry.open(number)
            tokens = self.planner.least(item)
            if tokens > limit:
                reasons[number] = f"its shortest conversation has {tokens} tokens, max_length is {limit}"
        return reasons

    def _split(self, entry_index: int, entry: Entry) -> Entry:
        """Evaluation: a row with many expressions becomes several items, each short enough."""
        items, spans = [], []
        for item, count in enumerate(entry.spans[:, 1].tolist()):
            # objects that are not annotated on the same frames are asked for one by one
            size = self.planner.max_expressions if entry.facts.complete[item] else 1
            cuts = [(first, min(first + size, count)) for first in range(0, count, size)] or [(0, 0)]
            if (entry.tight[item] or entry.answer != "masks") and count:
                cuts = self._fitting_spans(entry_index, entry, item, size)
            items += [item] * len(cuts)
            spans += cuts
        entry = entry.take(np.array(items, int))
        entry.spans = np.array(spans, int).reshape(-1, 2)
        entry.repeat(1, np.random.default_rng(0))
        return entry

    def _fitting_spans(self, entry_index: int, entry: Entry, number: int, size: int) -> list[tuple[int, int]]:
        """Spans of at most `size` expressions that fit max_length; an expression too long by itself is rejected."""
        item, limit = entry.open(number), self.planner.max_length
        asks = self.planner.asks(item, self._rng(0, 0, entry_index, entry.numbers[number]))
        spans, first = [], 0
        while first < len(asks):
            if item.asks_boxes and not is_located(item, asks[first].expression.targets):
                self.rejected.append(Reject(f"{item.row['id']}, expression {first}", NOT_LOCATED))
                first += 1
                continue
            last = min(first + size, len(asks))
            while last > first and self.planner.count(item, asks[first:last]) > limit:
                last -= 1
            if last > first:
                spans.append((first, last))
            else:
                last = first + 1
                self.rejected.append(
                    Reject(f"{item.row['id']}, expression {first}", f"it does not fit {limit} tokens")
                )
            first = last
        return spans


def _fill(lengths: np.ndarray, which: np.ndarray, count: Callable[[np.ndarray], np.ndarray]) -> None:
    """Sets the lengths at the indices `which`, a chunk of them at a time, on all cores where they are many."""
    chunks = [which[start : start + CHUNK] for start in range(0, len(which), CHUNK)]
    if chunks:
        lengths[which] = np.concatenate(in_processes(count, chunks))


def open_media(plan: Plan) -> list[Image.Image]:
    """The images or the chosen frames of a plan. Raises: ValueError as `Sa2VADataset.__getitem__`."""
    video, count = plan.row.video() if plan.is_video else None, plan.row["num_frames"]
    frames: list[Media] = []
    if video is None:
        frames = [""] * count  # a clip may have thousands of embedded frames: only the chosen ones are read
        for number in plan.frames:
            frames[number] = plan.row.frame(number)
    sample = Sample(plan.sample_id, "", *plan.size, frames, video, num_frames=count, annotated=[])
    return load_frames(sample, plan.frames)


def _class_of(row: Row, instances: Sequence[int]) -> str | None:
    found = {row.category(instance) for instance in instances}
    return found.pop() if len(found) == 1 else None


def _messages(plan: Plan, visuals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages = []
    for question, answer in plan.turns:
        content = [*visuals, {"type": "text", "text": question}]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        visuals = []  # with the first question only
    return messages
