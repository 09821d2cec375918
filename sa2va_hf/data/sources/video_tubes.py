"""What the sources of spatio-temporal grounding share: clips as video files or folders of frames, and tubes in them.

A tube is a box on every frame of a span of time. Outside of it the object counts as absent: the sentence is not about
it there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2va_hf.boxes import ABSENT_BOX, from_numbers
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.media import video_shape
from sa2va_hf.data.schema import Object, Sample
from sa2va_hf.data.sources.clips import clip_size, given_path, numbered_frames, paths
from sa2va_hf.listings import listed

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm")
ADVICE = "name its folder with --option videos=DIR, or that of its frames with --option frames=DIR"


class ClipPlaces:
    """Where clips lie, by the name of the video without its suffix: FRAMES/NAME/ where a folder of frames is given,
    else a video file anywhere below VIDEOS (default: root)."""

    def __init__(self, root: Path, videos: Path | str | None, frames: Path | str | None) -> None:
        self.frames = None if frames is None else given_path(root, frames, "the folder of frames")
        self.videos = root if videos is None else given_path(root, videos, "the folder of videos")
        self._files: dict[str, list[Path]] = {}
        for path in files_below(self.videos) if self.frames is None else ():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._files.setdefault(path.stem, []).append(path)

    def find(self, name: str) -> Path:
        """A video file or a folder of frames. ValueError when there is none, or more than one."""
        if self.frames is not None:
            if not name or not (self.frames / name).is_dir():
                raise ValueError(f"the folder of its frames was not found; looked for {self.frames / name}")
            return self.frames / name
        found = self._files.get(name, [])
        if len(found) != 1:
            where = f"is there {len(found)} times: {listed(found)}" if found else f"was not found below {self.videos}"
            raise ValueError(f"the video {name} {where}; {ADVICE}")
        return found[0]


@dataclass(frozen=True)
class Footage:
    """A clip's pixels. numbers: which frames of the video its frames are, from 0; files: their pictures, none for a
    video file, whose frames are all there."""

    place: Path
    width: int
    height: int
    numbers: Sequence[int]
    files: Sequence[Path] = ()

    def sample(self, name: str, source: str, first: int, last: int) -> Sample:
        """The clip from one frame of the video to another one (within), without objects.

        Raises:
            ValueError: it has no frame there, or it is a video file that has others.
        """
        within = [index for index, number in enumerate(self.numbers) if first <= number <= last]
        if not within:
            raise ValueError(f"{self.place} has no frame from {first} to {last}")
        size = (self.width, self.height)
        if self.files:
            frames = paths(self.files[index] for index in within)
            return Sample(name, "referring", *size, frames=frames, source=source)
        if len(within) < len(self.numbers):
            raise ValueError(
                f"it is about frames {first} to {last} of the {len(self.numbers)} in {self.place}: a part of a video "
                "file is no clip; save its frames as pictures and name their folder with --option frames=DIR"
            )
        video = os.path.abspath(self.place)
        return Sample(name, "referring", *size, video=video, num_frames=len(within), source=source)


def open_footage(place: Path, step: int) -> Footage:
    """The frames of a video file, or of a folder of pictures that are numbered from 0 or 1.

    step: frames of the video from one picture to the next. ValueError for what is neither.
    """
    if not place.is_dir():
        count, width, height = video_shape(place)
        return Footage(place, width, height, range(count))
    files = numbered_frames(place)
    if (first := min(files)) > 1:
        raise ValueError(f"frames of {place} must be numbered from 0 or 1, got {first} as the first number")
    numbers = [(number - first) * step for number in files]
    return Footage(place, *clip_size(list(files.values())), numbers, list(files.values()))


def check_step(step: Any) -> None:
    """ValueError for what is no step of `open_footage`."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"option step must be a whole number from 1 on, got {step!r}")


def check_size(footage: Footage, width: Any, height: Any) -> None:
    """ValueError when the boxes are of pictures of another size than the clip's."""
    if (width, height) != (footage.width, footage.height):
        found = f"{footage.width} x {footage.height}"
        raise ValueError(f"its boxes are of a video of {width} x {height}, but {footage.place} is {found}")


def tube(footage: Footage, first: int, last: int, boxes: Mapping[int, Any], form: str) -> Object:
    """The object of a clip from frame `first` to `last` of a video that has `boxes` by frame of the video.

    Raises:
        ValueError: what is no box, or none of the clip's frames has one.
    """
    found = []
    for number in footage.numbers:
        if first <= number <= last:
            try:
                box = boxes.get(number, ABSENT_BOX)
                found.append(box if box is ABSENT_BOX else from_numbers(box, form, footage.height, footage.width))
            except ValueError as error:
                raise ValueError(f"frame {number}: {error}") from error
    if all(box is ABSENT_BOX for box in found):
        raise ValueError(f"none of the {len(found)} frames of its clip is among the {len(boxes)} that have a box")
    return Object([None] * len(found), found)
