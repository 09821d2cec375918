"""Crops with and without a target, of any source of pictures with named objects; `crops` says which.

    --source target_crops --root coco --split train --option base=coco_json
    --source target_crops --root arrow/objects365 --split train --option base=prepared --option per_picture=2

Of a source whose phrases mean every object of their kind (COCO, Objects365, LVIS), a crop without an annotated one has
none at all. They are stored as JPEG files within the rows.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from sa2va_hf.data.crops import ANSWERS, crops_of, find_pairs
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.derived import base_records
from sa2va_hf.data.sources.portions import Portion, in_portions

NAME = "target_crops"


@in_portions
def target_crops(
    sources: Mapping[str, Callable[..., Iterator[Sample | Reject]]],
    root: Path | str | None = None,
    split: str = "train",
    *,
    base: str = "coco_json",
    per_picture: int = 1,
    minimum_size: int = 224,
    absent: str = ANSWERS[0],
    **options,
) -> Iterator[Sample | Reject | Portion]:
    """Pairs of crops of the base's pictures, and its rejects. Pictures without a pair are skipped.

    sources: SOURCES. base: a key of it; options: the base's own. per_picture: pairs of a picture at most, of different
    phrases. minimum_size: pixels of a crop's shorter side at least, as in a search. absent: with "mask", an absent
    target is answered with [SEG] and an empty mask, from which scores learn; with "words", the answer says that it is
    not there.
    Raises ValueError for a base or an option that is not there, and whatever the base raises.
    """
    if per_picture < 1 or minimum_size < 1 or absent not in ANSWERS:
        raise ValueError(
            f"per_picture and minimum_size must be positive and absent one of {', '.join(ANSWERS)}, got "
            f"{per_picture}, {minimum_size} and {absent!r}"
        )
    for item in base_records(sources, NAME, base, root, split, options, "coco_json or objects365"):
        yield partial(_records, item, per_picture, minimum_size, absent)


def _records(
    item: Sample | Reject | Portion, per_picture: int, minimum_size: int, absent: str
) -> Iterator[Sample | Reject]:
    for record in item() if callable(item) else (item,):
        if isinstance(record, Reject):
            yield record
            continue
        pairs = find_pairs(record, per_picture, minimum_size) if record.num_frames == 1 else []
        if not pairs:
            continue
        try:
            (picture,) = load_frames(record, [0])
        except ValueError as error:
            yield Reject(record.id, str(error))
            continue
        record.source = NAME
        yield from crops_of(record, pairs, picture, absent)
