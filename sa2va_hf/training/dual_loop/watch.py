"""What the teacher writes, looked at: how long captions are, how varied, and whether one stands for everything."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

logger = logging.getLogger(__name__)


def caption_counts(captions: Sequence[Tensor]) -> dict[str, float]:
    """Sums over captions (n,): how many, their tokens, and the share of different tokens in each."""
    return {
        "captions": len(captions),
        "caption_tokens": sum(map(len, captions)),
        "distinct": sum(len(set(one.tolist())) / len(one) for one in captions),
    }


class CaptionWatch:
    """Keeps the captions of the last regions, of this rank, until they are looked at.

    Args:
        share: of the regions that one caption may stand for. regions: that have to be there before one looks.
        on_collapse: stop or warn.
    """

    def __init__(self, share: float, regions: int, on_collapse: str, decode: Callable[[list[int]], str]) -> None:
        self.share, self.regions, self.on_collapse, self.decode = share, regions, on_collapse, decode
        self.seen: list[tuple[int, ...]] = []

    def add(self, captions: Sequence[Tensor]) -> None:
        self.seen += [tuple(one.tolist()) for one in captions]

    def check(self, step: int, gather: Callable[[list], list]) -> float | None:
        """The share of the commonest caption among those of all ranks; None while there are too few.

        A collective call of every rank.

        Raises:
            ValueError: one caption stands for more of the regions than it may.
        """
        everywhere = gather(self.seen)
        if len(everywhere) < self.regions:
            return None
        self.seen = []
        commonest, count = Counter(map(tuple, everywhere)).most_common(1)[0]
        if (share := count / len(everywhere)) > self.share:
            message = (
                f"step {step}: the teacher's captions have collapsed: {self.decode(list(commonest))!r:.80} stands for "
                f"{count} of the last {len(everywhere)} regions. Resume from an earlier checkpoint with a lower "
                "learning rate or a higher `supervised_share`, or start from a model that describes regions; "
                "`on_collapse: warn` goes on"
            )
            if self.on_collapse == "stop":
                raise ValueError(message)
            logger.warning(message)
        return share
