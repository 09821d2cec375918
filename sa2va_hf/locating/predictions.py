"""Boxes that a model writes, and masks of boxes, as predictions: what `Sa2VAPredictor` offers of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sa2va_hf.boxes import Box, BoxAnswer, read
from sa2va_hf.locating.segments import Boxes
from sa2va_hf.locating.styles import BoxStyle, asked, sides, style_of
from sa2va_hf.locating.tracks import track_boxes
from sa2va_hf.model.answering import full_masks
from sa2va_hf.model.frames import check_count, uniform_frames
from sa2va_hf.model.packed import PackedMasks
from sa2va_hf.model.placement import resident
from sa2va_hf.model.visuals import Clip
from sa2va_hf.prediction import History, Prediction, packed_boxes

Predictor = Any  # a `Sa2VAPredictor`, whose module imports this one


@dataclass(frozen=True)
class _Question:
    """One text to locate. frames: those that are read; shown: what the LLM sees, pictures or lists of frames."""

    clip: Clip
    is_video: bool
    wording: str
    frames: list[int]
    shown: list[Any]


def locate(
    predictor: Predictor,
    asked_for: Sequence[tuple[str, Any, Any]],
    question: str | None,
    masks: bool,
    num_frames: int,
    **generation: Any,
) -> list[Prediction]:
    """See `Sa2VAPredictor.locate`. asked_for: (text, image, video), one of the last two None."""
    style, count = style_of(predictor.processor), check_count("num_frames", num_frames)
    questions = [_question(style, *one, question, count) for one in asked_for]
    shown = [seen for one in questions for seen in one.shown]
    wordings = [one.wording for one in questions for _ in one.shown]
    pictures = [None if isinstance(seen, list) else seen for seen in shown]
    clips = [seen if isinstance(seen, list) else None for seen in shown]
    # the frames themselves are given: which ones a clip's mode of masks has the LLM read is another matter
    said = iter(predictor(image=pictures, video=clips, text=wordings, num_frames=count, **generation))
    return [_located(predictor, style, one, [next(said).text for _ in one.shown], masks) for one in questions]


def _question(style: BoxStyle, text: str, image: Any, video: Any, question: str | None, count: int) -> _Question:
    clip, is_video = _clip(image, video), video is not None
    frames = uniform_frames(len(clip), count)
    pictures = [clip[index] for index in frames]
    shown = [pictures] if is_video and style.clips else pictures
    return _Question(clip, is_video, asked(style, text, is_video, question), frames, shown)


def _located(predictor: Predictor, style: BoxStyle, question: _Question, texts: list[str], masks: bool) -> Prediction:
    """What the texts say: one of all frames, or one per frame."""
    clip, size = question.clip, len(question.frames) // len(texts)
    seen = (seen[0] if isinstance(seen, list) else seen for seen in question.shown)
    answers = [
        _read(text, picture, style, predictor.processor, size) for text, picture in zip(texts, seen, strict=True)
    ]
    found = [boxes for answer in answers for boxes in answer.frames]
    boxes = {
        index: _with_area(of_frame)
        for index, of_frame in zip(question.frames, found, strict=True)
        if of_frame is not None
    }
    text = "\n".join(texts)
    history = History(clip, question.is_video, turns=((question.wording, text),))
    if masks and any(any(box is not None for box in of_frame) for of_frame in boxes.values()):
        prediction = _masks_of(predictor, clip, boxes, history)
        prediction.text, prediction.boxes = text, _array(boxes, len(clip))
    else:
        prediction = _without_masks(predictor, text, _array(boxes, len(clip)), history)
    problems = [problem for answer in answers for problem in answer.problems]
    prediction.problems = (*problems, *_empty_boxes(boxes))
    return prediction


def _empty_boxes(boxes: Boxes) -> list[str]:
    """A line for each box without area, which counts as no box. They are as few as an answer has boxes."""
    return [
        f"frame {index}, object {number}: a box without area"
        for index, of_frame in boxes.items()
        for number, box in enumerate(of_frame)
        if box is None
    ]


def segment_boxes(predictor: Predictor, image: Any, video: Any, boxes: Any) -> Prediction:
    """See `Sa2VAPredictor.segment_boxes`."""
    clip = _clip(image, video)
    if video is None and not isinstance(boxes, Mapping):
        boxes = {0: boxes}
    if not isinstance(boxes, Mapping):
        raise ValueError(f"boxes: expected {{frame: [box, ...]}} for a video, got {type(boxes).__name__}")
    width, height = clip.size
    for index, of_frame in boxes.items():
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise ValueError(f"boxes: expected indices of frames, whole numbers, got {index!r:.80}")
        if not isinstance(of_frame, Sequence | np.ndarray) or isinstance(of_frame, str):
            raise ValueError(f"boxes: frame {index}: expected a list of boxes, got {type(of_frame).__name__}")
    inside = {
        index: [_cut(box, width, height, f"frame {index}, object {number}") for number, box in enumerate(of_frame)]
        for index, of_frame in boxes.items()
    }
    return _masks_of(predictor, clip, inside, History(clip, video is not None))


def _clip(image: Any, video: Any) -> Clip:
    if (image is None) == (video is None):
        raise ValueError("give one of image and video")
    return Clip([image]) if video is None else Clip(video)


def _read(text: str, picture: Any, style: Any, processor: Any, frames: int) -> BoxAnswer:
    return read(text, *picture.size, frames=frames, sides=sides(style, processor, picture))


def _with_area(boxes: Sequence[Box]) -> list[Box | None]:
    """Objects are known by their position, so a box without area keeps its place."""
    return [box if box[2] > box[0] and box[3] > box[1] else None for box in boxes]


def _cut(box: Sequence[float] | None, width: int, height: int, name: str) -> Box | None:
    """A box cut at the picture's edges. ValueError where nothing of it lies in the picture."""
    if box is None:
        return None
    try:
        values = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"boxes: {name}: expected [x0, y0, x1, y1] of finite numbers, got {box!r:.80}")
    low, high = np.clip(values[:2], 0, (width, height)), np.clip(values[2:], 0, (width, height))
    if (high <= low).any():
        raise ValueError(f"boxes: {name}: {values.tolist()} has no area in a picture of {width} x {height}")
    return (*low.tolist(), *high.tolist())


def _array(boxes: Boxes, num_frames: int) -> np.ndarray:
    """float32 (objects, frames, 4), NaN where an object has no box."""
    found = np.full((max(map(len, boxes.values()), default=0), num_frames, 4), np.nan, dtype=np.float32)
    for index, of_frame in boxes.items():
        for number, box in enumerate(of_frame):
            if box is not None:
                found[number, index] = box
    return found


def _without_masks(predictor: Predictor, text: str, boxes: np.ndarray, history: History) -> Prediction:
    frames, side, (width, height) = boxes.shape[1], predictor.model.grounding_encoder.mask_size, history.clip.size
    none = PackedMasks.empty(0, frames, height, width)
    logits = np.zeros((0, frames, side, side), dtype=np.float32)
    return Prediction(text, none, boxes, np.full(len(boxes), np.nan, dtype=np.float32), history, logits)


@torch.no_grad()
def _masks_of(predictor: Predictor, clip: Clip, boxes: Boxes, history: History) -> Prediction:
    model, encoder = predictor.model, predictor.model.grounding_encoder
    side, (width, height) = encoder.image_size, clip.size
    scale = np.array([side / width, side / height] * 2)
    scaled = {
        index: [None if box is None else (np.array(box) * scale).tolist() for box in of_frame]
        for index, of_frame in boxes.items()
    }
    count = max(map(len, boxes.values()), default=0)
    masks = PackedMasks.empty(count, len(clip), height, width)
    logits = np.zeros((count, len(clip), encoder.mask_size, encoder.mask_size), dtype=np.float32)
    sums, times = np.zeros(count), np.zeros(count)

    def open_frame(index: int) -> torch.Tensor:
        return predictor.processor.grounding_pixels([clip[index]])[0]

    with resident(encoder), model.grounding_precision():
        for frame in track_boxes(encoder, open_frame, len(clip), scaled):
            if not frame.objects:
                continue
            rows = list(frame.objects)
            found = np.zeros((count, 1, height, width), dtype=bool)
            found[rows] = full_masks(frame.logits.float().unsqueeze(1), side, (height, width))
            masks.put(slice(frame.index, frame.index + 1), found)
            logits[rows, frame.index] = frame.logits.float().cpu().numpy()
            sums[rows] += frame.ious.float().cpu().numpy()
            times[rows] += 1
    scores = (sums / np.maximum(times, 1)).astype(np.float32)
    return Prediction("", masks, packed_boxes(masks), scores, history, logits)
