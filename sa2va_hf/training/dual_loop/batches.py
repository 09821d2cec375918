"""Pairs -> what the loops read, and the order in which pairs, captions and supervised samples follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ...data.collator import Sa2VACollator
from ...data.dataset.length_cache import fingerprint, processor_fingerprint
from ...data.pairs.dataset import Pair, PairDataset
from ...model.conversations import get_template
from ...model.processing_sa2va import Sa2VAProcessor
from .arguments import CAPTION, LoopSettings
from .regions import covered_cells
from .schedule import interleave

PAIRS, CAPTIONS, SUPERVISED = "pairs", "captioned", "supervised"


class LoopCollator:
    """The items of a micro-batch, (kind, item), -> the inputs of `DualLoopModel`.

    Supervised items become the batch of `Sa2VACollator`. Pairs become {"describe", "segment", ...}, see `pairs`.
    """

    def __init__(self, processor: Sa2VAProcessor, settings: LoopSettings, max_length: int | None = None) -> None:
        self.processor, self.settings = processor, settings
        self.supervised = Sa2VACollator(processor, max_length)
        self.special = set(processor.tokenizer.get_added_vocab().values()) | set(processor.tokenizer.all_special_ids)
        template = get_template(processor.template)
        self.end = template.instruction.partition("{input}")[2]
        self.before, _, after = settings.segment_question.partition(CAPTION)
        self.after = self._ids(after + self.end)
        self.answer = self._ids(settings.answer + template.suffix)

    def __call__(self, items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        of_kind: dict[str, list[Any]] = {}
        for kind, item in items:
            of_kind.setdefault(kind, []).append(item)
        if SUPERVISED in of_kind:
            return self.supervised(of_kind[SUPERVISED])
        batch = {PAIRS: self.pairs(of_kind[PAIRS])}
        if CAPTIONS in of_kind:
            batch[CAPTIONS] = self.pairs(of_kind[CAPTIONS], describe_second=True)
        return batch

    def pairs(self, pairs: Sequence[Pair], describe_second: bool = False) -> dict[str, Any]:
        """A batch of B pairs.

        describe: the question about the region, as ids before and after its tokens ("head", "tail", B each), the
            pixels of the first pictures (describe_second: of the second ones), and the region's cells. segment: the
            question about the second picture, as ids before and after its caption, the answer's ids, and the pixels.
        mask_labels, ignore_labels: as the model takes them. captions: ids (n,) of those that are known, else None.
        seeds: of their random numbers.
        """
        shown = [(pair.second, pair.target) if describe_second else (pair.first, pair.region) for pair in pairs]
        batch = {
            "describe": self._describe(*zip(*shown, strict=True)),
            "segment": self._segment([pair.second for pair in pairs]),
            "mask_labels": [torch.from_numpy(pair.target)[None, None] for pair in pairs],
            "captions": [self.caption(pair.caption) for pair in pairs],
            "seeds": [pair.seed for pair in pairs],
            "sample_ids": [pair.sample_id for pair in pairs],
        }
        if any(pair.ignore is not None for pair in pairs):
            batch["ignore_labels"] = [
                None if pair.ignore is None else torch.from_numpy(pair.ignore)[None] for pair in pairs
            ]
        return batch

    def caption(self, text: str | None) -> Tensor | None:
        """The ids (n,) of a caption without special tokens; None where there is none."""
        ids = [] if text is None else [token for token in self._ids(text) if token not in self.special]
        return torch.tensor(ids[: self.settings.caption_length]) if ids else None

    def _describe(self, pictures: Sequence[Image.Image], masks: Sequence[np.ndarray]) -> dict[str, Any]:
        rows = [self._asked(one, self.settings.caption_question, region=True) for one in pictures]
        start, end = (self.processor.tokenizer.convert_tokens_to_ids(token) for token in ("<vp>", "</vp>"))
        ids = [row["input_ids"][0] for row in rows]
        tiles = torch.tensor([int(row["region_tiles"][0]) for row in rows])
        counts = torch.tensor([len(row["pixel_values"]) for row in rows])
        grid = self.processor.pictures.region_grid
        return {
            "head": [one[: int((one == start).nonzero()[0, 0]) + 1] for one in ids],
            "tail": [one[int((one == end).nonzero()[0, 0]) :] for one in ids],
            "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
            "region_tiles": tiles + counts.cumsum(0) - counts,
            "region_masks": covered_cells(torch.stack([_shares(mask, grid) for mask in masks])),
        }

    def _segment(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        rows = [self._asked(one, self.before) for one in pictures]
        end = len(self._ids(self.end))
        return {
            "head": [row["input_ids"][0, :-end] for row in rows],
            "tail": [self.after] * len(rows),
            "answer": self.answer,
            **{name: torch.cat([row[name] for row in rows]) for name in ("pixel_values", "grounding_pixel_values")},
            "num_frames": torch.ones(len(rows), dtype=torch.long),
        }

    def _asked(self, picture: Image.Image, question: str, region: bool = False) -> Any:
        """A question about a picture; with a region, about one that covers all of it."""
        content: list[dict[str, Any]] = [{"type": "image", "image": picture}]
        if region:
            content.append({"type": "region", "mask": np.ones(picture.size[::-1], bool)})
        content.append({"type": "text", "text": question})
        return self.processor.apply_chat_template([{"role": "user", "content": content}])

    def _ids(self, text: str) -> Any:
        return torch.tensor(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


def _shares(mask: np.ndarray, grid: int) -> Tensor:
    """Which share of each cell a mask (H, W) covers: (grid, grid)."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)[0]


class LoopDataset(Dataset):
    """Pairs, captioned ones and supervised samples under one roof: `dataset[kind, index]` is (kind, item)."""

    def __init__(
        self, pairs: PairDataset, captioned: PairDataset | None = None, supervised: Dataset | None = None
    ) -> None:
        parts = {PAIRS: pairs, CAPTIONS: captioned, SUPERVISED: supervised}
        self.parts = {kind: one for kind, one in parts.items() if one is not None}
        self.rejected = [reject for one in self.parts.values() for reject in getattr(one, "rejected", [])]

    def __len__(self) -> int:
        """Pairs of an epoch; the others follow from it."""
        return len(self.parts[PAIRS])

    def __getitem__(self, index: tuple[str, int]) -> tuple[str, Any]:
        kind, number = index
        return kind, self.parts[kind][number]

    @property
    def fingerprint(self) -> str:
        """A hash of all that the items follow from."""
        facts = [f"{kind} {one.fingerprint}" for kind, one in self.parts.items()]
        supervised = self.parts.get(SUPERVISED)
        return fingerprint(*facts, *([processor_fingerprint(supervised.processor)] if supervised else []))


class LoopBatches(Sampler[list[tuple[str, int]]]):
    """The micro-batches of one rank: of pairs (with as many captioned ones), or supervised; alike on all ranks.

    An epoch uses every pair once; the last batch is filled up with others. Captioned and supervised samples are taken
    in turn, over the epochs, however many there are. The order is a function of (seed, epoch).

    Args:
        share: of all micro-batches, those that are supervised.
    """

    def __init__(
        self,
        dataset: LoopDataset,
        batch_size: int,
        share: float = 0.0,
        *,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.world_size, self.rank, self.epoch = world_size, rank, 0
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self.loops = -(-len(dataset) // (batch_size * world_size))
        supervised = SUPERVISED in dataset.parts and share > 0
        self.supervised = max(1, round(self.loops * share / (1 - share))) if supervised else 0

    def __len__(self) -> int:
        return self.loops + self.supervised

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        loop = given = 0
        for is_supervised in interleave(self.loops, self.supervised):
            if is_supervised:
                yield self._batch(SUPERVISED, self.epoch * self.supervised + given)
                given += 1
                continue
            batch = self._pairs(loop)
            if CAPTIONS in self.dataset.parts:
                batch += self._batch(CAPTIONS, self.epoch * self.loops + loop)
            yield batch
            loop += 1

    def _pairs(self, number: int) -> list[tuple[str, int]]:
        """Batch `number` of the epoch's pairs; an epoch begins with its own first pair."""
        size = len(self.dataset)
        order = self._order(PAIRS, self.epoch, size)
        places = self._places(number) % size
        return [(PAIRS, self.epoch * size + int(order[place])) for place in places]

    def _batch(self, kind: str, number: int) -> list[tuple[str, int]]:
        """Batch `number`, counted over all epochs, of another kind."""
        size, found = len(self.dataset.parts[kind]), []
        for place in self._places(number).tolist():
            turn, inside = divmod(place, size)
            found.append((kind, turn * size + int(self._order(kind, turn, size)[inside])))
        return found

    def _order(self, kind: str, turn: int, size: int) -> np.ndarray:
        """In which order pass `turn` over the samples of a kind takes them; the last one of each kind is kept."""
        if self._orders.get(kind, (None,))[0] != turn:
            rng = np.random.default_rng((self.seed, len(kind), turn))
            self._orders[kind] = turn, rng.permutation(size)
        return self._orders[kind][1]

    def _places(self, number: int) -> np.ndarray:
        """The samples of batch `number` that are this rank's, counted over all ranks."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return np.arange(first, first + self.batch_size)
