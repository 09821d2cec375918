"""Arrow rows -> pairs: an object in one picture, and the same object in another one.

Of a clip these are two frames of one track; of a single picture, two views of it. The rows are read where they are:
there is no second copy of the data. An index says the epoch too (epoch * len + number), and every choice is sampled
with rng(seed, epoch, number), as in `Sa2VADataset`.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.clips.dataset import open_frames
from sa2va_hf.data.dataset.entries import Entry, Share
from sa2va_hf.data.dataset.length_cache import fingerprint
from sa2va_hf.data.dataset.rows import Row, Rows, scan
from sa2va_hf.data.media import describe
from sa2va_hf.data.pairs.views import VIEWS, second_views
from sa2va_hf.data.schema import Reject
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

logger = logging.getLogger(__name__)

MOST_LISTED = 20


@dataclass
class PairSettings:
    """Which frames of a clip make a pair, and what becomes of single pictures.

    min_gap, max_gap: the least and the most frames between the two, counted in the clip's own frame indices; no
        max_gap: as far apart as the clip allows. views: of a single picture, one of `VIEWS`. captioned: only objects
        that the row has a caption of. use_captions: False: give none, although there may be some.
    """

    min_gap: int = 1
    max_gap: int | None = None
    views: str = "same"
    captioned: bool = False
    use_captions: bool = True

    def __post_init__(self) -> None:
        if self.min_gap < 1:
            raise ValueError(f"`min_gap`: expected at least 1 frame, got {self.min_gap}")
        if self.max_gap is not None and self.max_gap < self.min_gap:
            raise ValueError(f"`max_gap`: expected at least `min_gap`, {self.min_gap}, got {self.max_gap}")
        if self.views not in VIEWS:
            raise ValueError(f"`views`: expected one of {', '.join(VIEWS)}, got {self.views!r}")


@dataclass
class Pair:
    """An object in two pictures.

    first, second: RGB. region, target: the object in them, bool (H, W). ignore: pixels of the second one that do not
    count, bool (H, W), or None. caption: what the data say about the object, or None. seed: of the random numbers
    that the training takes for this pair in this epoch.
    """

    sample_id: str
    first: Image.Image
    region: np.ndarray
    second: Image.Image
    target: np.ndarray
    ignore: np.ndarray | None
    caption: str | None
    seed: int


class PairDataset(torch.utils.data.Dataset):
    """Pairs of one or more prepared datasets: `dataset[epoch * len(dataset) + i]` is `Pair` i of that epoch.

    Object, frames and caption are sampled anew in every epoch. In evaluation (`train=False`) every row gives one pair,
    the same in every epoch. Rows that give no pair are rejected and listed in `rejected`.

    Raises:
        ValueError: a dataset without a row that can be used. Reading: a file that is not what was prepared.
    """

    def __init__(
        self,
        entries: Sequence[tuple[datasets.Dataset, float | Share]],
        settings: PairSettings | None = None,
        *,
        seed: int = 0,
        train: bool = True,
    ):
        self.settings, self.seed, self.train = settings or PairSettings(), seed, train
        self.rejected: list[Reject] = []
        given = [(rows, share if isinstance(share, Share) else Share(share)) for rows, share in entries]
        self._facts = [(rows._fingerprint, str(share)) for rows, share in given], self.settings, seed, train
        self.entries = [self._open(index, *one) for index, one in enumerate(given)]
        self._starts = np.cumsum([0] + [len(entry) for entry in self.entries])
        self._report()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """A hash of all that the pairs follow from."""
        return fingerprint(*self._facts)

    def __getitem__(self, index: int) -> Pair:
        epoch, number = divmod(int(index), len(self))
        entry_index = int(np.searchsorted(self._starts, number, side="right")) - 1
        entry = self.entries[entry_index]
        row = entry.rows[entry.numbers[entry.item(epoch, number - int(self._starts[entry_index]))]]
        rng = np.random.default_rng((self.seed, epoch if self.train else 0, number))
        return self._pair(row, rng)

    def _pair(self, row: Row, rng: np.random.Generator) -> Pair:
        instance, first, second = self._sample(row, rng)
        known = captions(row).get(instance, []) if self.settings.use_captions else []
        caption = known[int(rng.integers(len(known)))] if known else None
        annotated = row.annotated()
        pictures = open_frames(row, [int(annotated[first]), int(annotated[second])])
        found = [masks.decode(row.mask(instance, at)).astype(bool) for at in (first, second)]
        views = list(zip(pictures, found, strict=True))
        ignore = None if (rle := row.ignore(second)) is None else masks.decode(rle).astype(bool)
        if first == second and self.settings.views != "same":
            views, ignore = second_views(views[0], self.settings.views, rng, may_flip=caption is None), None
        (one, region), (other, target) = views
        name = f"{row['id']} object {instance}, frames {annotated[first]} and {annotated[second]}"
        seed = int(rng.integers(2**62))
        return Pair(name, one, region, other, target, ignore, caption, seed)

    def _sample(self, row: Row, rng: np.random.Generator) -> tuple[int, int, int]:
        """An object, and the positions of two of the annotated frames that show it."""
        choices = self._choices(row)
        if not choices:
            raise ValueError(f"sample {row['id']!r}: {self._nothing()}")
        instance = sorted(choices)[int(rng.integers(len(choices)))]
        possible = choices[instance]
        first, second = possible[int(rng.integers(len(possible)))]
        return instance, int(first), int(second)

    def _choices(self, row: Row) -> dict[int, np.ndarray]:
        """The ordered pairs of positions (n, 2) that each object can be shown on."""
        visible, numbers = row.visible(), row.annotated()
        allowed = sorted(captions(row)) if self.settings.captioned else range(len(visible))
        if not row["is_video"]:
            return {instance: np.zeros((1, 2), int) for instance in allowed if visible[instance, 0]}
        gaps = np.abs(numbers[:, None] - numbers[None])
        near = (gaps >= self.settings.min_gap) & (gaps <= (self.settings.max_gap or np.inf))
        found = {instance: np.argwhere(near & np.outer(visible[instance], visible[instance])) for instance in allowed}
        return {instance: pairs for instance, pairs in found.items() if len(pairs)}

    def _nothing(self) -> str:
        settings = self.settings
        kind = "object with a caption" if settings.captioned else "object"
        most = "" if settings.max_gap is None else f" and at most {settings.max_gap}"
        return f"no {kind} is seen in the picture, or on two frames at least {settings.min_gap}{most} apart"

    def _open(self, entry_index: int, dataset: datasets.Dataset, share: Share) -> Entry:
        if not (np.isfinite(share.repeats) and share.repeats > 0):
            raise ValueError(f"entry {entry_index + 1}: `repeats` must be positive, got {share.repeats}")
        facts, rows = scan(dataset), Rows(dataset)
        masked = rows.dataset.select_columns("num_masks")[:].column("num_masks").to_numpy()
        unsure = np.flatnonzero(facts.is_video | (masked == 0) | self.settings.captioned)  # others show their objects
        bad = [number for number in unsure.tolist() if not masked[number] or not self._choices(rows[number])]
        for number in bad:
            row = rows[number]
            reason = self._nothing() if masked[number] else "its objects have no masks"
            self.rejected.append(Reject(row["id"], reason, _file(row)))
        numbers = np.setdiff1d(np.arange(len(facts)), np.array(bad, int))
        spans, tight = np.zeros((len(numbers), 2), int), np.zeros(len(numbers), bool)
        entry = Entry(rows, numbers, spans, facts.take(numbers), tight)
        rng = np.random.default_rng((self.seed, entry_index))
        entry.repeat(share.repeats_of(len(numbers)) if self.train else 1, rng, self.train and share.replacement)
        return entry

    def _report(self) -> None:
        """Log the rejects, and raise where a dataset has nothing left."""
        listed = "; ".join(f"{reject.id}: {reject.reason}" for reject in self.rejected[:MOST_LISTED])
        more = f"; and {len(self.rejected) - MOST_LISTED} more" if len(self.rejected) > MOST_LISTED else ""
        if self.rejected:
            level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG  # once, not per process
            logger.log(level, "%d rows give no pair and are skipped: %s%s", len(self.rejected), listed, more)
        if not self.entries:
            raise ValueError("no pairs: expected at least one prepared dataset, got none")
        for number, entry in enumerate(self.entries, start=1):
            if not len(entry):
                raise ValueError(
                    f"entry {number} of {len(self.entries)} gives no pair: {len(self.rejected)} rows rejected"
                    f"{f': {listed}{more}' if listed else ''}"
                )


def captions(row: Row) -> dict[int, list[str]]:
    """What a row says about single objects, by object: expressions that mean it alone, answers about its region."""
    found: dict[int, list[str]] = {}
    for expression in row["expressions"]:
        if len(expression["targets"]) == 1:
            found.setdefault(expression["targets"][0], []).append(expression["text"])
    regions = row["regions"]
    for turn in row["turns"] if regions else ():
        named = set(re.findall(r"\bregion(\d+)\b", turn["question"]))
        if len(named) == 1 and SEG_TOKEN not in turn["answer"]:
            found.setdefault(regions[int(named.pop()) - 1], []).append(turn["answer"])
    return found


def _file(row: Row) -> str:
    video = row.video()
    if video is not None:
        return describe(video)
    return describe(row.frame(0)) if row["num_frames"] else ""
