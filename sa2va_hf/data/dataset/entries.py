"""The entries of a mixture, and which of their rows make up an epoch."""

from dataclasses import dataclass, field

import numpy as np

from sa2va_hf.data.dataset.rows import Facts, Row, Rows

ANSWERS = ("masks", "boxes", "both")  # of expressions; a fixed dialogue is as it is


@dataclass
class Share:
    """How much a dataset counts in an epoch: every usable row `repeats` times, or `samples` items of it in all.

    replacement: the rows of these items are sampled anew for each of them, as in LISA's training, instead of in turn.
    answer: what its expressions are answered with, one of `ANSWERS`.
    """

    repeats: float = 1.0
    samples: float | None = None
    replacement: bool = False
    answer: str = "masks"

    def repeats_of(self, usable: int) -> float:
        """How often each of `usable` rows counts in an epoch; 0 where there is none."""
        return self.repeats if self.samples is None else self.samples / usable if usable else 0.0


@dataclass
class Entry:
    """One entry of a mixture: the usable items of its dataset, and how they fill an epoch.

    numbers, spans, facts, tight: one value per item. An item is a row number and, where it has expressions, the span
        (first, last + 1) of those that it may use; tight says that it may have more than max_length tokens.
    answer: see `Share`.
    """

    rows: Rows
    numbers: np.ndarray  # (n,)
    spans: np.ndarray  # (n, 2)
    facts: Facts
    tight: np.ndarray  # (n,) bool
    answer: str = "masks"
    repeats: int = 1
    extras: list[tuple[np.ndarray, int]] = field(default_factory=list)  # (shuffled items, how many in an epoch)
    seed: int | None = None  # of sampling with replacement; None: in turn
    _sampled: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)  # by extra: epoch, items

    def __len__(self) -> int:
        """Virtual rows of an epoch."""
        return self.repeats * len(self.numbers) + sum(count for _, count in self.extras)

    def take(self, items: np.ndarray) -> "Entry":
        taken = (self.numbers[items], self.spans[items], self.facts.take(items), self.tight[items])
        return Entry(self.rows, *taken, self.answer)

    @property
    def modality(self) -> np.ndarray:
        """As `Facts.modality`: what is answered by boxes alone has no masks."""
        facts = self.facts
        alone = facts.has_targets & (facts.num_expressions > 0) & (self.answer == "boxes")
        return facts.modality - alone.astype(np.int8)

    def open(self, item: int) -> "Item":
        facts, row = self.facts, self.rows[self.numbers[item]]
        size = (int(facts.width[item]), int(facts.height[item])) if facts.width[item] else None
        names = ("is_video", "num_frames", "num_regions", "num_expressions", "has_targets", "complete")
        span = slice(*self.spans[item].tolist())
        return Item(
            row,
            size,
            *(getattr(facts, name)[item].item() for name in names),
            bool(self.tight[item]),
            span,
            self.answer,
        )

    def repeat(self, repeats: float, rng: np.random.Generator, replacement: bool = False) -> None:
        """Fill an epoch with every item `floor(repeats)` times and a random selection of `repeats mod 1` of them.

        The selections go through one shuffle, a stretch per epoch: in the long run every item is used as often as any
        other. They are made per modality, so that an epoch's number of items of each is always the same.

        replacement: instead, each of as many items is sampled from all of its modality.
        """
        self.repeats = 0 if replacement else int(repeats)
        self.seed = int(rng.integers(2**63)) if replacement else None
        modality = self.modality
        names, counts = np.unique(modality, return_counts=True)
        wanted = (repeats - self.repeats) * counts
        extra = np.floor(wanted).astype(int)
        missing = round(wanted.sum()) - extra.sum()
        extra[np.argsort(extra - wanted, kind="stable")[:missing]] += 1  # the largest remainders
        self.extras = [
            (rng.permutation(np.flatnonzero(modality == name)), int(count))
            for name, count in zip(names, extra, strict=True)
        ]

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The items of all virtual rows of an epoch: (len(self),) positions in `numbers`."""
        every = np.tile(np.arange(len(self.numbers)), self.repeats)
        return np.concatenate([every, *(self._extra(index, epoch) for index in range(len(self.extras)))])

    def _extra(self, index: int, epoch: int) -> np.ndarray:
        """The items of `extras[index]` in an epoch."""
        pool, count = self.extras[index]
        if self.seed is None:
            return _stretch(pool, count, epoch)
        if self._sampled.get(index, (None,))[0] != epoch:
            sampled = np.random.default_rng((self.seed, epoch, index)).integers(max(len(pool), 1), size=count)
            self._sampled[index] = epoch, pool[sampled]
        return self._sampled[index][1]

    def item(self, epoch: int, virtual: int) -> int:
        """`of_epoch(epoch)[virtual]`, without making the rest."""
        every = self.repeats * len(self.numbers)
        if virtual < every:
            return virtual % len(self.numbers)
        virtual -= every
        for index, (pool, count) in enumerate(self.extras):
            if virtual < count and self.seed is not None:
                return int(self._extra(index, epoch)[virtual])
            if virtual < count:
                return int(pool[(epoch * count + virtual) % len(pool)])
            virtual -= count
        raise IndexError(f"virtual row beyond the {len(self)} of the entry")


@dataclass
class Item:
    """One item of an entry: its row, and its values of the arrays in `Facts` and `Entry`."""

    row: Row
    size: tuple[int, int] | None  # width, height; None for text only
    is_video: bool
    num_frames: int
    num_regions: int
    num_expressions: int
    has_targets: bool
    complete: bool
    tight: bool
    span: slice
    answer: str = "masks"

    @property
    def has_choices(self) -> bool:
        """Whether anything of it is sampled: expressions with their questions and answers, or frames."""
        return self.num_expressions > 0 or self.is_video

    @property
    def asks_boxes(self) -> bool:
        """Whether its turns are written when the frames are chosen, since boxes are in them."""
        return self.answer != "masks" and self.num_expressions > 0


def _stretch(pool: np.ndarray, count: int, epoch: int) -> np.ndarray:
    return pool[(epoch * count + np.arange(count)) % len(pool)] if count else pool[:0]
