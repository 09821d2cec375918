"""Benchmarks of tracking: objects are given on one frame and predicted on the others, by SAM 2 alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa2va_hf import masks
from sa2va_hf.data.clips.vos import MaskFolder
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation import video_conventions
from sa2va_hf.evaluation.items import Answer, Item, Settings, checked_mask, percent
from sa2va_hf.evaluation.metrics import mean
from sa2va_hf.evaluation.video_metrics import Scores
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.model.postprocessing import object_masks
from sa2va_hf.model.tracking import follow_objects

CONVENTIONS = ("davis", "sa_v")


@dataclass(frozen=True)
class Following:
    """Clips one at a time; the tracker is given each object on the first annotated frame on which it has pixels.

    overlap: a pixel may belong to several objects, as with SA-V's published command (an image per object); otherwise
    it belongs to the likeliest one, as in a palette image.
    """

    convention: str
    overlap: bool = False

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        yield Item(sample.id, sample, "", targets=tuple(range(len(sample.objects))))

    def record(self, settings: Settings) -> dict[str, Any]:
        if settings.mode != "generate" or settings.baseline is not None:
            raise ValueError("this benchmark runs SAM 2 without text: mode 'teacher' and baselines do not apply")
        return {"prompts": ["the mask of each object on its first annotated frame"], "convention": self.convention}

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        return [Answer("", follow(predictor, item.sample, _first_masks(item), self.overlap)) for item in items]

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        sample = item.sample
        if len(answer.masks) != len(item.targets):
            raise ValueError(f"expected masks of {len(item.targets)} objects, got {len(answer.masks)}")
        places = range(len(sample.annotated))
        drawn = (
            _numbered(checked_mask(track, item, sample.annotated[place]) for track in answer.masks) for place in places
        )
        true = (_numbered(item.truth(place)) for place in places)
        if self.convention == "davis":
            size = (sample.height, sample.width)
            found = video_conventions.davis((_labels(f, size) for f in drawn), (_labels(f, size) for f in true))
        else:
            found = video_conventions.sa_v(drawn, true)
        objects = {str(number): [scores.j.tolist(), scores.f.tolist()] for number, scores in found.items()}
        scores = [mean(j) / 2 + mean(f) / 2 for j, f in objects.values()]
        return {"score": mean(scores) if scores else 1.0, "objects": objects}  # without objects

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        objects = [Scores(*map(np.array, pair)) for answer in answers for pair in answer.figures["objects"].values()]
        return {"clips": len(items), "objects": len(objects)} | summarize(objects, self.convention)


def follow(
    predictor: Sa2VAPredictor, sample: Sample, prompts: Sequence[Mapping[int, np.ndarray]], overlap: bool = False
) -> list[list[masks.RLE]]:
    """Tracks objects from given masks through a clip, by SAM 2.

    Args:
        prompts: per object its given masks, {frame index: bool (H, W)}.
        overlap: whether a pixel may belong to several objects; otherwise it belongs to the likeliest one.

    Returns:
        Per object an RLE per frame; frames before the first given mask have an empty one.
    """
    model = predictor.model
    given = {
        obj: {frame: torch.from_numpy(mask).to(model.device) for frame, mask in frames.items()}
        for obj, frames in enumerate(prompts)
        if frames
    }

    def open_frame(number: int) -> Tensor:
        return predictor.processor.grounding_pixels(load_frames(sample, [number]))[0].to(model.device)

    tracks = [[masks.empty(sample.height, sample.width)] * sample.num_frames for _ in prompts]
    with torch.no_grad(), model.grounding_precision():
        for number, logits in follow_objects(model.grounding_encoder, open_frame, sample.num_frames, given):
            predicted = object_masks(torch.stack([*logits.values()]), (sample.height, sample.width), overlap=overlap)
            for obj, mask in zip(logits, predicted.cpu().numpy(), strict=True):
                tracks[obj][number] = masks.encode(mask)
    return tracks


def score_folder(truth: MaskFolder, drawn: MaskFolder, convention: str) -> list[Scores]:
    """The scores of each object of a video, from the mask images in two folders.

    Frames without ground truth are skipped.

    Raises:
        ValueError: a frame without a prediction, or with one of another size.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {CONVENTIONS}, got {convention!r}")
    if missing := [number for number in truth if number not in drawn]:
        raise ValueError(f"{drawn.folder}: {len(missing)} frames have no masks, the first is {missing[0]}")
    for number in truth:
        if (found := drawn.size(number)) != (expected := truth.size(number)):
            raise ValueError(f"{drawn.folder}: frame {number}: expected masks of {expected} (H, W), got {found}")
    if convention == "sa_v":
        return list(video_conventions.sa_v((drawn[number] for number in truth), truth.values()).values())
    return list(video_conventions.davis(_ids(drawn, truth), _ids(truth, truth)).values())


def _ids(folder: MaskFolder, truth: MaskFolder) -> Iterator[np.ndarray]:
    return (_labels(folder[number], truth.size(number)) for number in truth)


def summarize(objects: Sequence[Scores], convention: str) -> dict[str, float]:
    """{"J&F", ...} in percent, over the objects of all videos."""
    if convention == "davis":
        return percent(video_conventions.summarize_davis(objects))
    return video_conventions.summarize_sa_v(objects)


def _first_masks(item: Item) -> list[dict[int, np.ndarray]]:
    """The mask of each object on the first annotated frame on which it has pixels; none for one without any."""
    prompts: list[dict[int, np.ndarray]] = [{} for _ in item.targets]
    for place, frame in enumerate(item.sample.annotated):
        for prompt, mask in zip(prompts, item.truth(place), strict=True):
            if not prompt and mask.any():
                prompt[frame] = mask
    return prompts


def _numbered(objects: Iterable[np.ndarray]) -> dict[int, np.ndarray]:
    """{1: mask, 2: mask, ...}"""
    return dict(enumerate(objects, start=1))


def _labels(objects: Mapping[int, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size, dtype=np.int32)
    for number, mask in objects.items():
        found[mask] = number
    return found
