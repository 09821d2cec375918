"""Pseudo-labels: masks of object parts, predicted for images without a mask, filtered and written beside them.

The input is a folder as `data.sources.folder_parts` reads it. The output is X_mask.png beside each image X, and
ROOT/pseudo_labels.json with the status of every image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin

from sa2va_hf.components import keep_components
from sa2va_hf.data.prompts.templates import SEG_ANSWERS, SEG_QUESTIONS, clean_phrase, fill
from sa2va_hf.data.sources.folder_parts import MASK_END, PartPicture, Shapes, find_pictures, read_shapes
from sa2va_hf.data.sources.parts import check_part_phrase, part_phrase
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.masks import mask_to_box
from sa2va_hf.model.visuals import open_image

NAME = "pseudo_labels.json"
MARK = "pseudo_label"  # key of a PNG's text, which distinguishes predicted masks from annotated ones
QUESTION, ANSWER = SEG_QUESTIONS[1], SEG_ANSWERS[1]  # "Please segment the ... in this image.", "Sure, [SEG]."
ON, OFF = 1, 0  # SAM 2's labels of points


@dataclass(frozen=True)
class Filter:
    """Which masks are good enough.

    min_area_ratio: components of a mask below this share of the image are discarded, and a mask without any other is
    rejected. max_area_ratio: a larger mask is rejected: it is probably the background. min_score: a mask is rejected
    if the IoU that SAM 2 predicts for it is lower. largest: only the largest component of a mask is kept.
    """

    min_area_ratio: float = 0.0005
    max_area_ratio: float = 0.95
    min_score: float = 0.5
    largest: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_area_ratio < self.max_area_ratio <= 1:
            ratios = f"{self.min_area_ratio} and {self.max_area_ratio}"
            raise ValueError(f"min_area_ratio must be below max_area_ratio, both in [0, 1], got {ratios}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be in [0, 1], got {self.min_score}")


def pseudo_label(
    predictor: Sa2VAPredictor,
    root: Path | str,
    *,
    model_name: str,
    part: str = "{part} of the {object}",
    filters: Filter | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Predicts a mask for every image of a folder_parts root without one; returns and writes the manifest.

    The model is asked for the phrase `part` with both names filled in, such as "handle of the mug". Where X.json holds
    boxes or points, SAM 2 is prompted with these instead. A run that was stopped is resumed: existing masks are kept,
    and an image that was rejected is not tried again unless the model, the phrase or the filters have changed.
    Annotated masks and polygons are never changed.

    Args:
        overwrite: predict those masks again that a model has predicted.
        progress: called with 1 for every image.

    Returns:
        The manifest: `model`, `part`, `filters`, `pictures`, by id {"status": "drawn" (predicted) | "rejected" |
        "given" (annotated), "reason" of a reject, and of a prediction "prompt" ("text" or "points"), "score", "area"
        in pixels, "area_ratio", "box"}, and `problems`, files that belong to no image.

    Raises:
        ValueError: there are no such images, or an existing manifest cannot be read.
    """
    check_part_phrase(part)
    root, filters = Path(root), filters or Filter()
    pictures, problems = find_pictures(root)
    settings = {"model": model_name, "part": part, "filters": asdict(filters)}
    before = {} if overwrite else _rejected_before(root / NAME, settings)
    manifest = settings | {"pictures": {}, "problems": [asdict(problem) for problem in problems]}
    try:
        for picture in pictures:
            entry = _present(picture, overwrite) or before.get(picture.id)
            if entry is None:
                entry = _label(predictor, picture, part_phrase(picture.category, part), filters)
                if (
                    entry["status"] == "rejected" and picture.mask is not None
                ):  # predicted before, and good enough then
                    picture.mask.unlink()
            manifest["pictures"][picture.id] = entry
            if progress is not None:
                progress(1)
    finally:
        _save(root / NAME, manifest)
    return manifest


# ---------------------------------------------------------------- earlier results


def _rejected_before(path: Path, settings: dict[str, Any]) -> dict[str, dict]:
    """Manifest entries of the images that a run with the same settings rejected."""
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        same = {key: manifest[key] for key in settings} == settings
        pictures = {key: entry for key, entry in manifest["pictures"].items() if entry["status"] == "rejected"}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no manifest of pseudo-labels ({error!r}): remove it to start anew") from error
    return pictures if same else {}


def _present(picture: PartPicture, overwrite: bool) -> dict[str, Any] | None:
    """The manifest entry of an image that needs no prediction; None where a mask has to be predicted."""
    if picture.mask is not None:
        try:
            with Image.open(picture.mask) as image:
                mark = image.info.get(MARK)
        except (OSError, SyntaxError):
            return _rejected(f"{picture.mask.name} beside it cannot be read as an image: remove it")
        if mark is None:
            return {"status": "given"}
        return None if overwrite else json.loads(mark)
    try:
        given = picture.shapes is not None and read_shapes(picture.shapes, picture.category).polygons
    except ValueError as error:
        return _rejected(str(error))
    return {"status": "given"} if given else None


def _rejected(reason: str, **found: Any) -> dict[str, Any]:
    return {"status": "rejected", "reason": reason} | found


# ---------------------------------------------------------------- predicting


def _label(predictor: Sa2VAPredictor, picture: PartPicture, phrase: str, filters: Filter) -> dict[str, Any]:
    """Predicts the mask of an image, writes it if the filters accept it, and returns the manifest entry."""
    try:
        if picture.shapes is None:
            kind = "text"
            question = fill(QUESTION, clean_phrase(phrase))
            prediction = predictor.segment(image=picture.photo, text=question, answer=ANSWER)
            mask, score = prediction.masks[0, 0], float(prediction.scores[0])
        else:
            kind = "points"
            shapes = read_shapes(picture.shapes, picture.category)
            mask, score = prompted_mask(predictor, open_image(picture.photo), shapes)
    except ValueError as error:
        return _rejected(str(error))
    least = max(int(np.ceil(filters.min_area_ratio * mask.size)), 1)
    kept = keep_components(mask, least, "largest" if filters.largest else "all")
    found = {"prompt": kind, "score": round(score, 4), "area": int(kept.sum()), "area_ratio": float(kept.mean())}
    if not kept.any():
        return _rejected(f"no component of the mask has {least} pixels (min_area_ratio)", **found)
    found["box"] = list(mask_to_box(kept))
    if found["area_ratio"] > filters.max_area_ratio:
        ratio = f"{found['area_ratio']:.3f} > max_area_ratio {filters.max_area_ratio}"
        return _rejected(f"the mask covers too much of the image: {ratio}", **found)
    if score < filters.min_score:
        return _rejected(f"SAM 2 predicts a low IoU: {score:.3f} < min_score {filters.min_score}", **found)
    entry = {"status": "drawn"} | found
    _write_mask(picture.mask or picture.photo.with_name(f"{picture.photo.stem}{MASK_END}.png"), kept, entry)
    return entry


@torch.no_grad()
def prompted_mask(predictor: Sa2VAPredictor, image: Image.Image, shapes: Shapes) -> tuple[np.ndarray, float]:
    """SAM 2's mask for boxes or points: the union over boxes, bool (H, W), and the lowest predicted IoU.

    Points refine the single box, or are a prompt by themselves.

    Raises:
        ValueError: several boxes together with points.
    """
    if len(shapes.boxes) > 1 and shapes.points:
        raise ValueError(f"points: expected them with at most one box, got {len(shapes.boxes)} boxes")
    model, encoder = predictor.model, predictor.model.grounding_encoder
    side, device = encoder.image_size, encoder.device
    scale = torch.tensor([side / image.width, side / image.height])
    clicks = boxes = None
    if shapes.points:
        prompts = max(len(shapes.boxes), 1)
        positions = torch.tensor([[(x, y) for x, y, _ in shapes.points]]) * scale
        labels = torch.tensor([[ON if is_on else OFF for _, _, is_on in shapes.points]], dtype=torch.int32)
        clicks = (positions.expand(prompts, -1, -1).to(device), labels.expand(prompts, -1).to(device))
    if shapes.boxes:
        boxes = (torch.tensor(shapes.boxes) * scale.repeat(2)).to(device)
    pixels = predictor.processor.grounding_pixels([image]).to(device)
    with model.grounding_precision():
        found = encoder.prompt(encoder.encode(encoder.normalize(pixels)), points=clicks, boxes=boxes)
    scores, logits = found.ious.amax(dim=1), found.masks.unsqueeze(1)
    for size in ((side, side), (image.height, image.width)):  # first to SAM 2's input size, as the predictor does
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return (logits > 0).any(dim=0)[0].cpu().numpy(), float(scores.min())


# ---------------------------------------------------------------- writing


def _write_mask(path: Path, mask: np.ndarray, entry: dict[str, Any]) -> None:
    """Writes the mask atomically as a PNG of 0 and 255, with the manifest entry in its text."""
    text = PngImagePlugin.PngInfo()
    text.add_text(MARK, json.dumps(entry))
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(mask.astype(np.uint8) * 255).save(partial, "PNG", pnginfo=text)
    os.replace(partial, path)


def _save(path: Path, manifest: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
