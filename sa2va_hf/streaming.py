"""The masks of a clip frame by frame, and files of them that are written while they are predicted: `MaskStream`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .drawing import overlay
from .masks import RLE, encode
from .model.visuals import Clip
from .prediction import FOLDER_RATE, begin_files, boxes_of, coco_track, mask_files, save_masks, save_overlays

Step = tuple[int, np.ndarray, np.ndarray]  # frame index, bool (objects, H, W), expected IoU (objects,)


@dataclass
class MaskStream(Iterator[Step]):
    """The answer about a clip, and its masks as they are predicted: (frame index, bool masks (objects, H, W), scores).

    No frame is kept, so the memory needed does not depend on the length of the clip. Scores (objects,) are the IoU
    that SAM 2 expects on that frame. Without a [SEG] in the answer nothing comes.

    Args:
        text: the answer, as in `Prediction`.
        clip: what it is about.
        steps: the masks.
        prompt_tokens: as in `Prediction`.
    """

    text: str
    clip: Clip
    steps: Iterator[Step] = field(repr=False)
    prompt_tokens: int | None = None

    def __next__(self) -> Step:
        return next(self.steps)

    def save(
        self,
        folder: Path | str,
        form: str = "png",
        name: int | str = 1,
        rate: Fraction | None = None,
        as_frames: bool = False,
    ) -> tuple[int, np.ndarray]:
        """Write the files of `Prediction.save`, a frame at a time; of the forms "rle" and "coco" the run lengths are
        held until the end.

        Returns the number of frames with masks, and the scores (objects,), mean over them.

        Raises:
            ValueError: an unknown form. OSError: a folder that cannot be written.
        """
        folder = begin_files(folder, form, self.text)
        seen = _Seen(folder, form)
        save_overlays(self._drawn(seen), folder, rate or FOLDER_RATE, as_frames)
        seen.finish(self.text, name)
        return seen.frames, seen.scores

    def _drawn(self, seen: _Seen) -> Iterator[Image.Image]:
        """Every frame of the clip with its masks on it, which `seen` has taken by then."""
        steps = iter(self)
        # SAM 2 reads ahead: a decoder of its own spares the overlay to start over at every frame
        for index, picture in enumerate(self.clip.reopened()):
            step = next(steps, None)
            if step is None:
                yield picture
                continue
            assert step[0] == index, f"masks of frame {step[0]} where those of {index} are next"
            boxes = seen.take(*step)
            yield overlay(picture, step[1], list(boxes), [f"{number}" for number in range(1, len(boxes) + 1)])


class _Seen:
    """What is written or counted of the frames so far."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form
        self.frames, self.total = 0, np.zeros(0, np.float64)
        self.tracks: list[list[RLE]] = []
        self.boxes: list[np.ndarray] = []
        if form == "png":
            mask_files(folder)

    def take(self, index: int, masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the boxes (objects, 4) of a frame's masks."""
        boxes = boxes_of(masks)
        self.total = scores + (self.total if self.frames else 0)
        self.frames += 1
        if self.form == "png":
            save_masks(self.folder, index, masks)
        else:
            self.tracks.append([encode(mask) for mask in masks])
            self.boxes.append(boxes)
        return boxes

    @property
    def scores(self) -> np.ndarray:
        return self.total / max(self.frames, 1)

    def finish(self, text: str, name: int | str) -> None:
        scores = self.scores.tolist()
        tracks, boxes = [list(track) for track in zip(*self.tracks, strict=True)], list(zip(*self.boxes, strict=True))
        if self.form == "rle":
            shown = [[None if np.isnan(box).any() else box.tolist() for box in track] for track in boxes]
            _write(self.folder / "masks.json", {"text": text, "masks": tracks, "boxes": shown, "scores": scores})
        elif self.form == "coco":
            seen = [[not np.isnan(box).any() for box in track] for track in boxes]
            entries = [coco_track(name, *one) for one in zip(tracks, seen, scores, strict=True)]
            _write(self.folder / "coco.json", entries)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")


__all__ = ["MaskStream"]
