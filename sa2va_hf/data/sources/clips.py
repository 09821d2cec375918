"""What the video sources share: frames of a clip found and ordered, masks per frame checked, mask_dicts and lists.

The sources of clips give masks and leave boxes None, but for boxes that come in a file of their own: a box is the
mask's (`masks.rle_to_box`).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.boxes import ABSENT_BOX, Box, pixel_box
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Object, Sample
from sa2va_hf.data.sources.files import (
    IMAGE_SUFFIXES,
    first_existing,
    read_annotation,
    read_json,
    sized_ids,
    upright_size,
)
from sa2va_hf.data.sources.refcoco import load_plain
from sa2va_hf.listings import listed

SLACK = 2  # pixels that a box may differ from its mask's: rounding, and the ends


def frame_number(path: Path) -> int:
    """The number in a frame's name: "00005.jpg", "00000005.png", "frame_00005.jpg" are all 5. ValueError without."""
    digits = path.stem[len(path.stem.rstrip("0123456789")) :]
    if not digits:
        raise ValueError(f"frame {path} has no number at the end of its name")
    return int(digits)


def numbered_frames(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[int, Path]:
    """Pictures of a folder by the number in their name, in order of the numbers (names may have 5 or 8 digits)."""
    found: dict[int, Path] = {}
    for path in entries(folder):
        if path.suffix.lower() in suffixes:
            if (number := frame_number(path)) in found:
                raise ValueError(f"frame {number} of {folder} is there twice: {found[number].name} and {path.name}")
            found[number] = path
    if not found:
        others = listed(path.name for path in entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        hint = f" with the suffix {', '.join(suffixes)}, only {others}: save them so" if others else ""
        raise ValueError(f"there are no frames in {folder}{hint}")
    return dict(sorted(found.items()))


def named_frames(names: Iterable[Any], video: str, folders: Sequence[Path]) -> list[Path]:
    """The files FOLDER/video/name.jpg of the names, in the first folder that has the video. ValueError: which lack."""
    if not (names := list(names)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"'frames' must be a non-empty list of names, got {names!r:.80}")
    if len(set(names)) < len(names):
        raise ValueError(f"'frames' names a frame twice: {next(name for name in names if names.count(name) > 1)!r}")
    place = next((folder / video for folder in folders if (folder / video).is_dir()), None)
    if place is None:
        looked = ", ".join(str(folder / video) for folder in folders)
        raise ValueError(f"the folder of its frames was not found; looked for {looked}")
    there = {path.stem: path for path in entries(place) if path.suffix.lower() in IMAGE_SUFFIXES}
    if missing := [name for name in names if Path(name).stem not in there]:
        raise ValueError(f"{len(missing)} of its {len(names)} frames are missing in {place}: {', '.join(missing[:5])}")
    return [there[Path(name).stem] for name in names]


def paths(files: Iterable[Path]) -> list[str]:
    """Absolute paths as the schema keeps them."""
    return [os.path.abspath(file) for file in files]


def clip_size(files: Sequence[Path]) -> tuple[int, int]:
    """Width and height of a clip, from the header of its first frame (`prepare` checks the others)."""
    return upright_size(files[0])


def track(segmentations: Any, count: int, height: int, width: int, *, null_is_absent: bool) -> Object:
    """An object from one mask per annotated frame, each in any form of COCO.

    null_is_absent: whether null says that the object is not in the frame (MeViS), or that nobody looked (SA-V).
    ValueError when there are not `count` of them, one is garbage or of another size, or none covers a pixel.
    """
    if not isinstance(segmentations, list | tuple):
        raise ValueError(f"masks must be a list with one entry per frame, got {segmentations!r:.80}")
    if len(segmentations) != count:
        raise ValueError(f"it has {len(segmentations)} masks for {count} annotated frames: which belongs to which?")
    absent = masks.empty(height, width) if null_is_absent else None
    rles, pixels = [], 0
    for number, segmentation in enumerate(segmentations):
        try:
            rle = masks.from_segmentation(segmentation, height, width)
        except ValueError as error:
            raise ValueError(f"mask {number}: {error}") from error
        pixels += 0 if rle is None else masks.area(rle)
        rles.append(absent if rle is None else rle)
    if not pixels:
        raise ValueError(f"its masks cover no pixel on any of the {count} annotated frames")
    return Object(rles, [None] * count)


def dict_loader(sample: Sample, by_id: dict[str, Any]) -> Callable[[str], Object]:
    """What makes an object of the clip from the masks of an annotation id, as `track` does."""

    def load(annotation: str) -> Object:
        if annotation not in by_id:
            raise ValueError(f"anno_id {annotation} is not among the {len(by_id)} masks")
        try:
            return track(by_id[annotation], sample.num_frames, sample.height, sample.width, null_is_absent=True)
        except ValueError as error:
            raise ValueError(f"anno_id {annotation}: {error}") from error

    return load


def folder_loader(sample: Sample, video: str, folder: Path) -> Callable[[str], Object]:
    """What makes an object of the clip from an index of the palette pictures FOLDER/video, as `track` does."""
    pictures: list[np.ndarray] = []  # opened for the first object, kept for the others of the video

    def load(annotation: str) -> Object:
        if not annotation.isdigit() or int(annotation) == 0:
            raise ValueError(f"'obj_id' must be an index of the palette from 1, got {annotation!r}")
        if not pictures:
            stems = [Path(frame).stem for frame in sample.frames]
            pictures.extend(sized_ids(folder / video / f"{stem}.png", sample.height, sample.width) for stem in stems)
        rles = [masks.encode(ids == int(annotation)) for ids in pictures]
        try:
            return track(rles, sample.num_frames, sample.height, sample.width, null_is_absent=True)
        except ValueError as error:
            raise ValueError(f"object {annotation} of {folder / video}: {error}") from error

    return load


def box_track(entries: Any, count: int, height: int, width: int, ends: str) -> list[Box]:
    """The boxes of an object, one [x0, y0, x1, y1] or null (it is absent) per frame. ValueError as `track`."""
    if not isinstance(entries, list | tuple):
        raise ValueError(f"boxes must be a list with one entry per frame, got {entries!r:.80}")
    if len(entries) != count:
        raise ValueError(f"it has {len(entries)} boxes for {count} frames: which belongs to which?")
    boxes = []
    for number, entry in enumerate(entries):
        try:
            boxes.append(ABSENT_BOX if entry is None else pixel_box(entry, height, width, ends))
        except ValueError as error:
            raise ValueError(f"box {number}: {error}") from error
    return boxes


def boxed_loader(
    sample: Sample, by_id: dict[str, Any], ends: str, load: Callable[[str], Object] | None = None
) -> Callable[[str], Object]:
    """What makes an object of the clip from the boxes of an annotation id, with the masks that `load` gives, if any.

    ValueError when the boxes are not those of the masks: they may be of other frames, or of a picture of another size.
    """

    def load_boxes(annotation: str) -> Object:
        instance = Object([None] * sample.num_frames, []) if load is None else load(annotation)
        if annotation not in by_id:
            raise ValueError(f"anno_id {annotation} is not among the {len(by_id)} tracks of boxes")
        try:
            instance.boxes = box_track(by_id[annotation], sample.num_frames, sample.height, sample.width, ends)
        except ValueError as error:
            raise ValueError(f"anno_id {annotation}: {error}") from error
        for number, (rle, box) in enumerate(zip(instance.masks, instance.boxes, strict=True)):
            tight = box if rle is None else masks.rle_to_box(rle) or ABSENT_BOX
            if (box == ABSENT_BOX) != (tight == ABSENT_BOX) or np.abs(np.subtract(box, tight)).max() > SLACK:
                raise ValueError(
                    f"anno_id {annotation}: box {number} is {box} but the mask's box is {tight}: "
                    "do both have the same frames, and pictures of the same size?"
                )
        if all(box == ABSENT_BOX for box in instance.boxes):
            raise ValueError(f"anno_id {annotation}: it is on none of the {sample.num_frames} frames")
        return instance

    return load_boxes


def given_path(root: Path, given: Path | str, what: str) -> Path:
    """A file or folder that an option names, from here or from root. ValueError when it is in neither."""
    return first_existing([Path(given), root / given], what, "It was named by an option")


def read_mask_dict(path: Path) -> dict[str, Any]:
    """{annotation id: [mask per frame]} of a mask_dict.json or .pkl. ValueError for anything else."""
    content = load_plain(path) if path.suffix in (".pkl", ".p", ".pickle") else read_json(path, dict)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict at its top level, got a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def read_names(path: Path) -> list[str]:
    """The names of a list file, one per line; empty lines do not count. ValueError when it cannot be read."""
    try:
        lines = read_annotation(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    return [line.strip() for line in lines if line.strip()]
