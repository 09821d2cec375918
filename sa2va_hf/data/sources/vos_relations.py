"""Spatial relations between the objects of any source that gives masks; `relations` says which and when.

    --source vos_relations --root DAVIS --split train
    --source vos_relations --root sav --split train --option base=sav --option masklets=auto --option margin=0.1

Published relation files need boxes and masks of five datasets merged into one; this needs one dataset.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sa2va_hf.data.relations import KINDS, MARGIN, WINDOWS, relate
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.derived import base_records
from sa2va_hf.data.sources.portions import Portion, in_portions

NAME = "vos_relations"


@in_portions
def vos_relations(
    sources: Mapping[str, Callable[..., Iterator[Sample | Reject]]],
    root: Path | str | None = None,
    split: str = "train",
    *,
    base: str = "vos_folders",
    kinds: Sequence[str] = KINDS,
    per_clip: int = 8,
    margin: float = MARGIN,
    window: str = WINDOWS[0],
    negatives: int = 0,
    **options,
) -> Iterator[Sample | Reject | Portion]:
    """The base's samples with relations as their only expressions; its rejects, and samples without a clear relation.

    sources: SOURCES. base: a key of it; options: the base's own. kinds: some of relations.KINDS. per_clip: expressions
    per sample at most. margin: of the picture's width, between objects whose order is taken for clear. window: which
    run of frames a phrase is given for, one of relations.WINDOWS. negatives: phrases per sample beside these, at most,
    that count one further than there are objects ("the fourth object from the left" of three); give them only where
    every object that would be counted is annotated.
    Raises ValueError for a base, a kind or an option that is not there, and whatever the base raises.
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be a list of some of {', '.join(KINDS)}, got {kinds!r}")
    if per_clip < 1 or not 0 < margin < 1:
        raise ValueError(f"per_clip must be positive and margin within 0 and 1, got {per_clip} and {margin}")
    if window not in WINDOWS or negatives < 0:
        raise ValueError(
            f"window must be one of {', '.join(WINDOWS)} and negatives not below 0, got {window!r} and {negatives}"
        )
    for item in base_records(sources, NAME, base, root, split, options, "vos_folders or sav"):
        yield partial(_records, item, kinds, per_clip, margin, window, negatives)


def _records(item: Sample | Reject | Portion, kinds: Sequence[str], *rules: Any) -> Iterator[Sample | Reject]:
    for record in item() if callable(item) else (item,):
        if isinstance(record, Reject):
            yield record
            continue
        related = relate(record, kinds, *rules)
        if related is None:
            count = len(record.objects)
            reason = f"no relation between its {count} objects is clear" if count > 1 else "it has not two objects"
            yield Reject(record.id, reason)
        else:
            related.source = NAME
            yield related
