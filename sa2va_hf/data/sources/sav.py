"""SA-V (https://ai.meta.com/datasets/segment-anything-video): videos with masklets, annotated by hand or by SAM 2.

    ROOT/sav_train/sav_000/sav_000001.mp4
    ROOT/sav_train/sav_000/sav_000001_manual.json, sav_000001_auto.json
        {"video_id", "video_frame_count", "video_width", "video_height", "masklet": [[RLE per object] per frame], ...}

A masklet has an entry for every 4th frame of the video: 24 frames and 6 entries per second. Instead of the mp4 there
may be the frames taken from it, numbered as in the video (sav_000001/00000.jpg, 00004.jpg, ...), beside it or in the
folder that the option `frames` names. SA-V's val and test are folders of mask pictures: `vos_folders`.
"""

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sa2va_hf.data.listing import files_below
from sa2va_hf.data.media import video_shape
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.clips import clip_size, numbered_frames, paths, track
from sa2va_hf.data.sources.files import first_existing, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions

EVERY = 4  # frames of the video per entry of a masklet
KINDS = ("manual", "auto")


@in_portions
def sav(
    root: Path | str, split: str, *, masklets: str = "manual", frames: Path | str | None = None
) -> Iterator[Sample | Reject | Portion]:
    """One sample per video and json, without texts. An object whose entry is null was not annotated there.

    masklets: "manual", "auto" or "both" (then a video gives two samples: the same thing is in both). frames: folder of
    the folders of frames. Raises ValueError when the folder of the split or its json files are missing.
    """
    if masklets not in (*KINDS, "both"):
        raise ValueError(f"masklets must be manual, auto or both, got {masklets!r}")
    root = Path(root)
    folder = first_existing([root / f"sav_{split}", root / split], f"SA-V's split {split}", "Name the folder so")
    kinds = KINDS if masklets == "both" else (masklets,)
    files = sorted(path for kind in kinds for path in files_below(folder, f"*_{kind}.json"))
    if not files:
        raise ValueError(f"there are no files *_{'.json or *_'.join(kinds)}.json below {folder}")
    for file in files:
        yield partial(_records, file, None if frames is None else Path(frames))


def _records(file: Path, frames: Path | None) -> Iterator[Sample | Reject]:
    try:
        sample, problems = read_masklets(file, frames)
    except ValueError as error:
        yield Reject(file.stem, str(error), str(file))
        return
    for number, reason in problems.items():
        yield Reject(f"{file.stem}/object {number}", reason, str(file))
    sample.objects = [instance for instance in sample.objects if instance is not None]
    if sample.objects:
        yield sample


def read_masklets(file: Path, frames: Path | None = None) -> tuple[Sample, dict[int, str]]:
    """The clip of an SA-V json with an object per masklet (None for a bad one), and why the bad ones are.

    ValueError when the json or the clip cannot be used, or the masklets have not one entry per 4th frame.
    """
    content = read_json(file, object)
    record = content if isinstance(content, dict) else {"masklet": content}  # SAM 2's loader takes a bare list as well
    table = record.get("masklet" if "masklet" in record else "masks")
    if not isinstance(table, list) or not table or not all(isinstance(row, list) for row in table):
        raise ValueError(f"'masklet' must be a list (frames) of lists (objects) of RLEs, got {table!r:.80}")
    if uneven := {len(row) for row in table if len(row) != len(table[0])}:
        raise ValueError(f"'masklet' has {len(table[0])} objects on its first frame and {min(uneven)} on another")
    sample, at = _clip(file, record, len(table), frames)
    entries = [number for number in range(len(table)) if number * EVERY in at]
    sample.annotated = [at[number * EVERY] for number in entries]
    problems: dict[int, str] = {}
    for index in range(len(table[0])):
        try:
            rles = [table[number][index] for number in entries]
            sample.objects.append(track(rles, len(rles), sample.height, sample.width, null_is_absent=False))
        except ValueError as error:
            problems[index] = str(error)
            sample.objects.append(None)
    return sample, problems


def _clip(file: Path, record: dict, entries: int, frames: Path | None) -> tuple[Sample, dict[int, int]]:
    """The clip without objects, and the place in it of each frame of the video."""
    stem = file.stem
    for kind in KINDS:
        stem = stem.removesuffix(f"_{kind}")
    folders = [place / stem for place in ([frames] if frames else [file.parent]) if (place / stem).is_dir()]
    video = file.with_name(f"{stem}.mp4")
    if folders:
        files = numbered_frames(folders[0])
        count = _whole(record, "video_frame_count") or max(max(files) + 1, (entries - 1) * EVERY + 1)
        _check_entries(entries, count)
        size = clip_size(list(files.values()))
        sample = Sample(file.stem, "referring", *size, frames=paths(files.values()), source="sav")
        at = {number: place for place, number in enumerate(files)}
    elif video.is_file() and frames is None:
        names = ("video_frame_count", "video_width", "video_height")
        shape = [_whole(record, name) for name in names]
        count, width, height = shape if all(shape) else video_shape(video)
        _check_entries(entries, count)
        sample = Sample(file.stem, "referring", width, height, video=os.path.abspath(video), num_frames=count)
        sample.source = "sav"
        at = {number: number for number in range(count)}
    else:
        looked = f"{frames / stem}" if frames else f"{video} and the folder {file.parent / stem}"
        raise ValueError(f"its video was not found; looked for {looked}")
    if not any(number * EVERY in at for number in range(entries)):
        raise ValueError(f"none of the frames in {folders[0]} is a multiple of {EVERY}: only those have masks")
    return sample, at


def _check_entries(entries: int, count: int) -> None:
    if (wanted := -(-count // EVERY)) != entries:
        raise ValueError(
            f"'masklet' has {entries} entries but a video of {count} frames needs {wanted}, one per {EVERY} frames: "
            "which entry belongs to which frame?"
        )


def _whole(record: dict, name: str) -> int:
    """A whole number that SA-V writes as a float (483.0); 0 where it is not given."""
    value: Any = record.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf or value % 1:
        raise ValueError(f"{name!r} must be a whole number, got {value!r:.80}")
    return int(value)
