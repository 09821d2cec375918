"""One answer of a model, and the forms in which it leaves: COCO results, supervision's detections, files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .drawing import overlay
from .masks import RLE, encode
from .model.packed import PackedMasks
from .model.visuals import Clip

FORMATS = ("png", "rle", "coco")
FOLDER_RATE = Fraction(10)  # frames per second of a clip that comes as pictures


@dataclass(frozen=True)
class History:
    """A conversation so far: what it looks at (read again for every turn, not copied), and its turns."""

    clip: Clip | None = None
    is_video: bool = False
    regions: tuple[np.ndarray, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


@dataclass
class Prediction:
    """One answer. Objects are the [SEG] of `text` in order; a picture has one frame.

    Args:
        text: without the stop word; [SEG], <p> and </p> are kept.
        packed: the masks, a bit per pixel (a bool array (objects, frames, H, W) is packed).
        boxes: float (objects, frames, 4), the masks' xyxy in pixels, x1 and y1 exclusive; NaN where a mask is empty.
        scores: float (objects,) in 0..1, the IoU that SAM 2 expects of its masks, mean over frames.
        history: give it with the next question.
        mask_logits: float32 (objects, frames, h, w) at a quarter of SAM 2's input side.
        problems: what could not be read of boxes in the text, one line each (`Sa2VAPredictor.locate`).
        object_scores: float (objects,) in 0..1, SAM 2's probability that the object is there, mean over frames; of a
            phrase it says something after training with `object_score_loss_weight`. None of masks from boxes.
        prompt_tokens: tokens that the LLM read before its answer, with those of the images; None of a given answer.
    """

    text: str
    packed: PackedMasks
    boxes: np.ndarray
    scores: np.ndarray
    history: History
    mask_logits: np.ndarray
    problems: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    object_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.packed, np.ndarray):
            self.packed = PackedMasks.of(self.packed)

    @property
    def masks(self) -> np.ndarray:
        """bool (objects, frames, H, W) at the size of the input, made anew by every access: of a long clip take the
        masks of a frame, `prediction.frame(index)`."""
        return self.packed.unpack()

    @masks.setter
    def masks(self, masks: np.ndarray) -> None:
        self.packed = PackedMasks.of(masks)

    def frame(self, index: int) -> np.ndarray:
        """bool (objects, H, W): the masks of one frame."""
        return self.packed.unpack(frames=index)

    # ---------------------------------------------------------------- forms
    def to_rle(self) -> list[list[RLE]]:
        """COCO's run lengths, {"size": [H, W], "counts": str}, per object and frame."""
        objects, frames = self.packed.shape[:2]
        by_frame = [[encode(mask) for mask in self.frame(index)] for index in range(frames)]
        return [[by_frame[index][row] for index in range(frames)] for row in range(objects)]

    def to_coco(self, image_id: int | str, category_id: int = 1) -> list[dict[str, Any]]:
        """Entries of a COCO results file, one per object.

        Of a picture {"image_id", "category_id", "segmentation", "bbox" (x, y, width, height), "score"}, which
        pycocotools scores; objects without a pixel have the box (0, 0, 0, 0). Of a clip the form of YouTube-VIS:
        {"video_id", "category_id", "segmentations" (None where a frame has no pixel of it), "score"}.
        """
        entries = []
        is_video = self.history.is_video or self.packed.shape[1] > 1
        for row, track in enumerate(self.to_rle()):
            common = {"category_id": category_id, "score": float(self.scores[row])}
            if is_video:
                seen = ~np.isnan(self.boxes[row, :, 0])
                entries.append(coco_track(image_id, track, seen, common["score"], category_id))
            elif track:
                x0, y0, x1, y1 = (float(side) for side in np.nan_to_num(self.boxes[row, 0]))
                box = [x0, y0, x1 - x0, y1 - y0]
                entries.append({"image_id": image_id, "segmentation": track[0], "bbox": box} | common)
        return entries

    def to_supervision(self, frame: int = 0) -> Any:
        """`supervision.Detections` of one frame: boxes, masks and scores of the objects that have pixels there;
        class_id is the index of their [SEG] in the text. The masks are a `CompactMask` where supervision has it, else
        bool (objects, H, W). Raises: ImportError without the package `supervision`."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error

        if not self.packed.shape[1]:
            return supervision.Detections.empty()
        seen = np.flatnonzero(~np.isnan(self.boxes[:, frame, 0]))
        if not len(seen):
            return supervision.Detections.empty()
        boxes, mask = self.boxes[seen, frame].astype(np.float32), self.frame(frame)[seen]
        if compact := getattr(supervision, "CompactMask", None):
            inclusive = boxes - np.array([0, 0, 1, 1], np.float32)
            mask = compact.from_coco_rle([encode(one) for one in mask], inclusive, mask.shape[1:])
        return supervision.Detections(
            xyxy=boxes,
            mask=mask,
            confidence=self.scores[seen].astype(np.float32),
            class_id=seen,
        )

    # ---------------------------------------------------------------- files
    def save(
        self,
        folder: Path | str,
        form: str = "png",
        name: int | str = 1,
        rate: Fraction | None = None,
        as_frames: bool = False,
    ) -> Path:
        """Write text.txt, the masks, and the input with the masks drawn on it into `folder`.

        Args:
            form: "png": masks/object1_frame00000.png ..., 0 and 255, one per object and frame; "rle": masks.json, run
                lengths per object and frame, boxes and scores; "coco": coco.json, `to_coco` with `name` as image_id.
            rate: frames per second of overlay.mp4, which a clip gets; default 10.
            as_frames: overlay/00000.png ... in its place, as without PyAV. A picture gets overlay.png.

        Raises:
            ValueError: an unknown form. OSError: a folder that cannot be written.
        """
        folder = begin_files(folder, form, self.text)
        {"png": self._save_png, "rle": self._save_rle, "coco": self._save_coco}[form](folder, name)
        if self.history.clip is not None:
            self._save_overlay(folder, rate or FOLDER_RATE, as_frames)
        return folder

    def _save_png(self, folder: Path, name: int | str) -> None:
        mask_files(folder)
        for index in range(self.packed.shape[1]):
            save_masks(folder, index, self.frame(index))

    def _save_rle(self, folder: Path, name: int | str) -> None:
        boxes = [[None if np.isnan(box).any() else box.tolist() for box in track] for track in self.boxes]
        content = {"text": self.text, "masks": self.to_rle(), "boxes": boxes, "scores": self.scores.tolist()}
        (folder / "masks.json").write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _save_coco(self, folder: Path, name: int | str) -> None:
        (folder / "coco.json").write_text(json.dumps(self.to_coco(name)) + "\n", encoding="utf-8")

    def _save_overlay(self, folder: Path, rate: Fraction, as_frames: bool) -> None:
        pictures = self.overlays()
        if self.history.is_video:
            save_overlays(pictures, folder, rate, as_frames)
        else:
            next(pictures).save(folder / "overlay.png")

    def overlays(self) -> Iterator[Image.Image]:
        """Every frame with its masks and boxes drawn on it. Raises: ValueError for an answer without a picture."""
        if self.history.clip is None:
            raise ValueError("the answer is about text alone: there is no picture to draw on")
        labels = [f"{number}" for number in range(1, self.packed.shape[0] + 1)]
        for index, picture in enumerate(self.history.clip):
            yield overlay(picture, self.frame(index), list(self.boxes[:, index]), labels)


def coco_track(
    video_id: int | str, track: Sequence[RLE], seen: Sequence[bool], score: float, category_id: int = 1
) -> dict[str, Any]:
    """One object's entry of a results file in the form of YouTube-VIS. seen: whether it has pixels, by frame."""
    masks = [rle if there else None for rle, there in zip(track, seen, strict=True)]
    return {"video_id": video_id, "segmentations": masks, "category_id": category_id, "score": score}


def mask_files(folder: Path) -> Path:
    """folder/masks, without mask pictures of an earlier run, which may have had more objects."""
    masks = folder / "masks"
    masks.mkdir(exist_ok=True)
    for stale in masks.glob("object*_frame*.png"):
        stale.unlink()
    return masks


def begin_files(folder: Path | str, form: str, text: str) -> Path:
    """The folder that a prediction is written into, with its text.txt.

    Raises:
        ValueError: an unknown form. OSError: a folder that cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"form: expected one of {', '.join(FORMATS)}, got {form!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def save_masks(folder: Path, index: int, masks: np.ndarray) -> None:
    """The masks (objects, H, W) of a frame as pictures of 0 and 255 in folder/masks."""
    for number, mask in enumerate(masks, start=1):
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        picture.save(folder / "masks" / f"object{number}_frame{index:05d}.png")


def save_overlays(pictures: Iterator[Image.Image], folder: Path, rate: Fraction, as_frames: bool) -> None:
    """The frames of a clip as folder/overlay.mp4, or as folder/overlay/00000.png ..., as without PyAV."""
    if find_spec("av") and not as_frames:
        write_clip(pictures, folder / "overlay.mp4", rate)
        return
    (folder / "overlay").mkdir(exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / "overlay" / f"{index:05d}.png")


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of bool masks (..., H, W) -> float32 (..., 4): xyxy, x1 and y1 exclusive, NaN for an empty mask."""
    if not masks.size:
        return np.full((*masks.shape[:-2], 4), np.nan, dtype=np.float32)
    columns, rows = masks.any(-2), masks.any(-1)
    x0, y0 = columns.argmax(-1), rows.argmax(-1)
    x1 = columns.shape[-1] - columns[..., ::-1].argmax(-1)
    y1 = rows.shape[-1] - rows[..., ::-1].argmax(-1)
    boxes = np.stack([x0, y0, x1, y1], axis=-1).astype(np.float32)
    boxes[~columns.any(-1)] = np.nan
    return boxes


def packed_boxes(masks: PackedMasks) -> np.ndarray:
    """Tight boxes (objects, frames, 4), as `boxes_of`; a frame is unpacked at a time."""
    frames = masks.shape[1]
    if not frames:
        return np.full((masks.shape[0], 0, 4), np.nan, dtype=np.float32)
    return np.stack([boxes_of(masks.unpack(frames=index)) for index in range(frames)], axis=1)


def write_clip(pictures: Iterator[Image.Image], file: Path, rate: Fraction) -> None:
    """Pictures of one size as an H.264 video. Needs PyAV."""
    import av

    with av.open(str(file), "w") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.width, stream.height = (side + side % 2 for side in picture.size)  # 4:2:0 needs even sides
                stream.pix_fmt = "yuv420p"
            even = picture.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())


def frame_rate(video: Path | str) -> Fraction:
    """Frames per second of a video file; of a folder of frames, `FOLDER_RATE`."""
    if Path(video).is_dir():
        return FOLDER_RATE
    import av

    with av.open(str(video)) as container:
        return container.streams.video[0].average_rate or FOLDER_RATE


def writable(folder: Path | str) -> Path:
    """The folder, which exists or can be made; called before the work, so that a wrong name costs nothing.

    Raises:
        ValueError: a file has that name or the name of a folder above it, or nothing can be written there.
    """
    folder = Path(folder)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"{folder}: expected a folder for the output, {above} is a file")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{folder}: no permission to write into {above}")
    return folder


__all__ = ["FORMATS", "History", "Prediction", "boxes_of", "frame_rate", "packed_boxes", "writable"]
