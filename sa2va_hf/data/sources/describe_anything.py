"""Describe Anything (https://huggingface.co/datasets/nvidia/describe-anything-dataset): captions of regions.

    ROOT/COCOStuff/annotations.json    {"000000000009": REGION or [REGION, ...], ...}
                                       REGION: {"caption": "A plate ...", "mask_rle": RLE, ...}
    ROOT/COCOStuff/images/*.tar        000000000009.jpg; of SAV's clips 0001.0.jpg, 0001.1.jpg, ...

A split is a folder: SAV, COCOStuff, LVIS, Mapillary, OpenImages or PACO. The pictures may also have been unpacked into
`images`. A picture in a tar is read where it lies there and goes into the sample as its bytes.
"""

import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Media, Object, Reject, Sample
from sa2va_hf.data.sources.dialogue import MIN_CELLS, region_mask
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, expect_keys, first_existing, read_json
from sa2va_hf.data.sources.osprey import describing_turns

logger = logging.getLogger(__name__)


class Member(NamedTuple):
    """Where a file lies in an uncompressed tar."""

    tar: Path
    offset: int
    size: int


def describe_anything(
    root: Path | str, split: str, *, max_regions: int = 5, min_cells: int = MIN_CELLS
) -> Iterator[Sample | Reject]:
    """One sample per picture, with up to `max_regions` regions as prompts and a turn for each; more regions make more
    samples of the same picture.

    The questions are drawn by the id. Of a clip the first picture is taken: the mask is of it. min_cells: a region
    that covers fewer cells of the 16 x 16 that the model sees regions in is rejected. Raises ValueError when the
    annotations are missing or no dict, when there are no pictures at all, or a tar cannot be read.
    """
    if not all(isinstance(one, int) and one >= 1 for one in (max_regions, min_cells)):
        got = f"{max_regions!r} and {min_cells!r}"
        raise ValueError(f"options max_regions and min_cells must be whole numbers from 1 on, got {got}")
    folder = first_existing([Path(root) / split], f"the split {split!r}", "A split is a folder: SAV, COCOStuff, ...")
    path = folder / "annotations.json"
    content = read_json(path, dict)
    pictures = index_pictures(folder / "images")
    for key, entry in content.items():
        name = f"{split}/{key}"
        usable = []
        for number, region in enumerate(entry if isinstance(entry, list) else [entry]):
            try:
                usable.append(_region(region, min_cells))
            except ValueError as error:
                yield Reject(f"{name}/region {number}", str(error), str(path))
        for first in range(0, len(usable), max_regions):
            # the id ends with the picture's name, by which `exclusion` knows a picture that comes as bytes
            sample_id = name if first == 0 else f"{split}#{first // max_regions + 1}/{key}"
            try:
                yield _sample(sample_id, usable[first : first + max_regions], pictures, key)
            except ValueError as error:
                yield Reject(sample_id, str(error), str(path))


def _region(region: Any, min_cells: int) -> tuple[str, masks.RLE]:
    expect_keys(region, {"caption": str, "mask_rle": dict}, "the region")
    if not region["caption"].strip():
        raise ValueError("its caption is empty")
    rle = masks.normalize(region["mask_rle"])
    return region["caption"], region_mask(rle, *rle["size"], min_cells)


def _sample(sample_id: str, regions: list[tuple[str, masks.RLE]], pictures: dict, key: str) -> Sample:
    sizes = {tuple(rle["size"]) for _, rle in regions}
    if len(sizes) > 1:
        raise ValueError(f"its masks are of different sizes (height, width): {sorted(sizes)}")
    ((height, width),) = sizes
    # some files write the number of a COCO picture with zeros in front, and others do not
    found = pictures.get(key) or pictures.get(key.lstrip("0"))
    if found is None:
        raise ValueError(f"there is no picture {key}.jpg or {key}.0.jpg among the {len(pictures)} pictures")
    sample = Sample(sample_id, "region_caption", width, height, frames=[_read(found[1])], source="describe_anything")
    sample.objects = [Object([rle], [masks.rle_to_box(rle)]) for _, rle in regions]
    sample.regions = list(range(len(regions)))
    sample.turns = describing_turns([caption for caption, _ in regions], sample)
    return sample


def _read(place: Path | Member) -> Media:
    """A picture as the path of its file, or as its bytes from a tar."""
    if isinstance(place, Path):
        return os.path.abspath(place)
    with place.tar.open("rb") as tar:
        tar.seek(place.offset)
        return tar.read(place.size)


def index_pictures(folder: Path) -> dict[str, tuple[int, Path | Member]]:
    """id -> (number of the frame, place) of all pictures in a folder and the tars in it; of a clip the first frame.

    Of the tars only the headers are read. ValueError when there are no pictures, or a tar is damaged or compressed.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder of the pictures {folder} does not exist; it holds *.tar, or the files unpacked")
    found: dict[str, tuple[int, Path | Member]] = {}
    for file in entries(folder):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            _enter(found, file.name, file)
        elif file.suffix == ".tar":
            try:
                with tarfile.open(file, "r:") as tar:
                    while (entry := tar.next()) is not None:
                        tar.members.clear()  # it keeps them all, and there may be millions
                        if entry.isfile() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                            _enter(found, entry.name, Member(file, entry.offset_data, entry.size))
            except (tarfile.TarError, OSError) as error:
                raise ValueError(f"{file} cannot be read as an uncompressed tar: {error}") from error
    if not found:
        raise ValueError(f"there are no pictures in {folder}, and none in tars there")
    logger.info("%s: %d pictures", folder, len(found))
    return found


def _enter(found: dict, name: str, place: Path | Member) -> None:
    """Enters "dir/0001.3.jpg" as frame 3 of "0001", "0001.jpg" as its frame 0, unless an earlier frame is there."""
    stem = Path(name).stem
    key, dot, frame = stem.rpartition(".")
    key, number = (key, int(frame)) if dot and frame.isdigit() else (stem, 0)
    if key not in found or number < found[key][0]:
        found[key] = (number, place)
