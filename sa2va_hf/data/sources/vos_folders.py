"""Objects of videos as folders of frames and of mask pictures: DAVIS, MOSE, YouTube-VOS, LVOS, SA-V val and test.

    DAVIS     ROOT/JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png, ImageSets/2017/train.txt
    MOSE, YouTube-VOS, LVOS     ROOT/train/JPEGImages/VIDEO/00000.jpg, ROOT/train/Annotations/VIDEO/00000.png
    SA-V      ROOT/sav_val/JPEGImages_24fps/VIDEO/00000.jpg, Annotations_6fps/VIDEO/000/00000.png, sav_val.txt

A mask picture holds an index per object (a palette PNG), or there is a folder per object with masks of 0 and 255.
One grey mask from 0 to 255, with sharp edges or soft ones, is one object. Its
frame is found by the number in its name, whatever its digits. The videos have no texts: they are for training and
scoring the masks alone, and for `vos_relations`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.listing import subfolders
from sa2va_hf.data.schema import Object, Reject, Sample
from sa2va_hf.data.sources.clips import clip_size, numbered_frames, paths, read_names
from sa2va_hf.data.sources.files import sized_mask, sized_objects
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.masks import RLE

BASES = ("{split}", "sav_{split}", "DAVIS", "")
FOLDERS = (
    ("JPEGImages/480p", "Annotations/480p"),
    ("JPEGImages_24fps", "Annotations_6fps"),
    ("JPEGImages", "Annotations"),
)
LISTS = ("ImageSets/2017/{split}.txt", "ImageSets/{split}.txt", "{split}.txt", "sav_{split}.txt")

VOID = 255  # beside other values: pixels that do not count


@in_portions
def vos_folders(
    root: Path | str,
    split: str,
    *,
    videos: Path | str | None = None,
    exclude: Path | str | None = None,
    frames: Path | str | None = None,
    annotations: Path | str | None = None,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per video with all its frames; those that have a mask picture are annotated.

    An object without pixels on an annotated frame is absent there. videos, exclude: files with one video name per
    line, to be taken or excluded (default: the list of the split, else every video). frames, annotations: the two
    folders of videos, where they are elsewhere. Raises ValueError when a folder or a listed video is missing.
    """
    root = Path(root)
    frame_base, mask_base = find_folders(root, split, frames, annotations)
    places = [root, *(root / base.format(split=split) for base in BASES), frame_base.parent]
    lists = [place / name.format(split=split) for place in places for name in LISTS]
    file = Path(videos) if videos is not None else next((path for path in lists if path.is_file()), None)
    names = read_names(file) if file else [path.name for path in subfolders(mask_base)]
    left_out = set(read_names(Path(exclude))) if exclude is not None else set()
    for name in names:
        if name not in left_out:
            yield partial(_records, name, frame_base / name, mask_base / name)


def _records(name: str, frames: Path, masks_of_frames: Path) -> Iterator[Sample | Reject]:
    try:
        sample, _, problems = read_clip(name, frames, masks_of_frames)
    except ValueError as error:
        yield Reject(name, str(error), str(masks_of_frames))
        return
    yield from problems
    if sample.objects:
        yield sample
    elif not problems:
        yield Reject(name, "its mask pictures hold no object on any frame", str(masks_of_frames))


def find_folders(
    root: Path, split: str, frames: Path | str | None, annotations: Path | str | None
) -> tuple[Path, Path]:
    """The folders of the videos' frames and of their masks. ValueError that lists where they were looked for."""
    pairs = [
        (Path(frames or base / pictures), Path(annotations or base / its_masks))
        for base in (root / name.format(split=split) for name in BASES)
        for pictures, its_masks in FOLDERS
    ]
    for pictures, its_masks in pairs:
        if pictures.is_dir() and its_masks.is_dir():
            return pictures, its_masks
    looked = ", ".join(f"{pictures} + {its_masks}" for pictures, its_masks in dict.fromkeys(pairs))
    raise ValueError(f"no folders of frames and of masks for split {split!r}; looked for {looked}")


def read_clip(name: str, frames: Path, annotations: Path) -> tuple[Sample, list[str], list[Reject]]:
    """The clip with its objects, the name of each (its index, or its folder), and mask pictures that cannot be used.

    ValueError when there are no frames or no masks.
    """
    files = numbered_frames(frames)
    width, height = clip_size(list(files.values()))
    sample = Sample(name, "referring", width, height, frames=paths(files.values()), source="vos_folders")
    names, problems = _fill(sample, annotations, {number: at for at, number in enumerate(files)})
    return sample, names, problems


def _fill(sample: Sample, folder: Path, index_of: dict[int, int]) -> tuple[list[str], list[Reject]]:
    """Adds the annotated frames and the objects to the sample; returns names and problems of `read_clip`."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder of masks {folder}")
    layers = {path.name: numbered_frames(path, (".png",)) for path in subfolders(folder)}
    layers = layers or {"": numbered_frames(folder, (".png",))}
    found: dict[int, dict[str, RLE]] = {}  # frame -> object -> mask
    ignored: dict[int, RLE] = {}
    problems = []
    for layer, files in layers.items():
        opened: dict[int, np.ndarray] = {}
        for number, path in files.items():
            try:
                if number not in index_of:
                    raise ValueError(f"there is no frame {number} for the mask {path}")
                read = sized_mask if layer else sized_objects
                opened[index_of[number]] = read(path, sample.height, sample.width)
            except ValueError as error:
                problems.append(Reject(f"{sample.id}/{layer}{'/' if layer else ''}{path.stem}", str(error), str(path)))
        values = sorted({int(value) for ids in opened.values() for value in np.unique(ids)} - {0})
        instances = values if layer or values == [VOID] else [value for value in values if value != VOID]
        for at, ids in opened.items():
            of_frame = found.setdefault(at, {})
            if layer:
                of_frame[layer] = masks.encode(ids != 0)
                continue
            of_frame |= {f"{value:03d}": masks.encode(ids == value) for value in instances}
            if VOID not in instances and (ids == VOID).any():
                ignored[at] = masks.encode(ids == VOID)
    sample.annotated = sorted(found)
    absent = masks.empty(sample.height, sample.width)
    names = []
    for name in sorted({name for of_frame in found.values() for name in of_frame}):
        rles = [found[at].get(name, absent) for at in sample.annotated]
        if any(masks.area(rle) for rle in rles):
            names.append(name)
            sample.objects.append(Object(rles, [None] * len(rles)))
    sample.ignore = [ignored.get(at) for at in sample.annotated] if ignored else []
    return names, problems
