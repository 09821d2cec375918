"""What the video sources share: frames of a clip found and ordered, masks per frame checked, mask_dicts and lists.

The sources of clips give masks and leave boxes None: a box is the mask's (`masks.rle_to_box`), and decoding every
mask of a large video set for it would take hours.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf import masks
from sa2va_hf.data.schema import Object
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, read_annotation, read_json, upright_size
from sa2va_hf.data.sources.refcoco import load_plain


def frame_number(path: Path) -> int:
    """The number in a frame's name: "00005.jpg", "00000005.png", "frame_00005.jpg" are all 5. ValueError without."""
    digits = path.stem[len(path.stem.rstrip("0123456789")) :]
    if not digits:
        raise ValueError(f"frame {path} has no number at the end of its name")
    return int(digits)


def numbered_frames(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[int, Path]:
    """Pictures of a folder by the number in their name, in order of the numbers (names may have 5 or 8 digits)."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if (number := frame_number(path)) in found:
                raise ValueError(f"frame {number} of {folder} is there twice: {found[number].name} and {path.name}")
            found[number] = path
    if not found:
        raise ValueError(f"there are no frames in {folder}")
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
    there = {path.stem: path for path in sorted(place.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
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


def read_mask_dict(path: Path) -> dict[str, Any]:
    """{annotation id: [mask per frame]} of a mask_dict.json or .pkl. ValueError for anything else."""
    content = load_plain(path) if path.suffix in (".pkl", ".p", ".pickle") else read_json(path, dict)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict at its top level, got a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def read_names(path: Path) -> list[str]:
    """The names of a list file, one per line; empty lines do not count. ValueError when it cannot be read."""
    try:
        lines = read_annotation(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    return [line.strip() for line in lines if line.strip()]
