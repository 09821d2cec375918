"""ReasonSeg (https://github.com/dvlab-research/LISA): phrases that need a thought, and answers that explain.

    ROOT/train/X.jpg, ROOT/train/X.json     {"text": [...], "is_sentence": bool, "shapes": [{"label", "points"}, ...]}
    ROOT/explanatory/train.json             [{"image": "X.jpg", "query": ..., "outputs": EXPLANATION}, ...]

ROOT may also be the folder that holds ReasonSeg. A label is "target", contains "ignore" (pixels that do not count), or
is "flag" (skipped). Large polygons are painted first, so that a small one lies on top of a large one.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, Turn
from sa2va_hf.data.sources.files import expect_keys, find_picture, read_annotation, read_json, upright_size
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

TARGET, IGNORED = 1, 255
SUFFIXES = (".jpg", ".jpeg", ".png")
EXPLAIN = "{text} Please segment it and explain why."


FORMS = ("phrases", "explained", "told")


@in_portions
def reason_seg(
    root: Path | str, split: str, *, explain: bool = True, forms: Sequence[str] = FORMS[:2]
) -> Iterator[Sample | Reject | Portion]:
    """One sample per picture with its phrases, and, where it has an explanation, one dialogue "X/explained" with it.

    The target is the union of the regions labelled so. Expressions have the kind "sentence" or "phrase" (is_sentence).
    explain: read explanatory/SPLIT.json, where there is one. forms: some of "phrases", "explained" (a mask and why)
    and "told" (the explanation alone, without a mask); a mixture gives each its share.

    Raises ValueError when the split has no json files, or for another form.
    """
    if not forms or not set(forms) <= set(FORMS):
        raise ValueError(f"forms: expected some of {', '.join(FORMS)}, got {forms!r}")
    root = Path(root)
    root = root / "ReasonSeg" if (root / "ReasonSeg").is_dir() else root
    files = [path for path in entries(root / split) if path.suffix == ".json"]
    if not files:
        raise ValueError(f"no annotations found in {root / split}; expected ROOT/{split}/X.json beside X.jpg")
    explanations, rejects = _explanations(root / "explanatory" / f"{split}.json" if explain else None)
    yield from rejects
    for path in files:
        yield partial(_records, path, explanations.get(path.stem), tuple(forms))


def _records(path: Path, explanation: str | None, forms: tuple[str, ...]) -> Iterator[Sample | Reject]:
    try:
        sample = _sample(path)
    except ValueError as error:
        yield Reject(path.stem, str(error), str(path))
        return
    if "phrases" in forms:
        yield sample
    if explanation is None:
        return
    text = sample.expressions[0].text
    dialogues = {
        "explained": Turn(EXPLAIN.format(text=_closed(text)), f"It is {SEG_TOKEN}. {explanation}", [[0]]),
        "told": Turn(text, explanation, []),
    }
    for form in FORMS[1:]:
        if form in forms:
            turns = [dialogues[form]]
            yield replace(sample, id=f"{path.stem}/{form}", task="conversation", expressions=[], turns=turns)


def _closed(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _explanations(path: Path | None) -> tuple[dict[str, str], list[Reject]]:
    """Explanation by stem of the picture, and the records that are none."""
    found: dict[str, str] = {}
    rejects = []
    for number, record in enumerate(read_json(path, list) if path is not None and path.is_file() else ()):
        try:
            expect_keys(record, {"image": str, "outputs": str}, f"explanation {number}")
            if not record["outputs"].strip():
                raise ValueError(f"explanation {number}: 'outputs' is empty")
            found[Path(record["image"]).stem] = record["outputs"].strip().replace(SEG_TOKEN, "")
        except ValueError as error:
            rejects.append(Reject(f"explanation {number}", str(error), str(path)))
    return found, rejects


def read_shapes_json(path: Path) -> Any:
    """The json in UTF-8 or, as some of the published files are, in cp1252."""
    data = read_annotation(path)
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return json.loads(data.decode(encoding))
        except UnicodeDecodeError:
            continue
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    raise ValueError(f"{path} is neither UTF-8 nor cp1252 text")


def _sample(path: Path) -> Sample:
    record = read_shapes_json(path)
    expect_keys(record, {"text": list, "is_sentence": bool, "shapes": list}, path.name)
    texts = [text.strip() if isinstance(text, str) else "" for text in record["text"]]
    if not texts or not all(text.strip(" .") for text in texts):
        raise ValueError(f"'text' must be a list of non-empty texts, got {record['text']!r:.80}")
    photo = next((path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix).is_file()), None)
    photo = photo or find_picture(f"{path.stem}.jpg", [path.parent])
    width, height = upright_size(photo)
    labels = paint_shapes(record["shapes"], width, height)
    if not (labels == TARGET).any():
        raise ValueError("no pixel is labelled 'target'")
    rle = masks.encode(labels == TARGET)
    sample = Sample(path.stem, "referring", width, height, frames=[os.path.abspath(photo)], source="reason_seg")
    sample.objects = [Object([rle], [masks.rle_to_box(rle)])]
    kind = "sentence" if record["is_sentence"] else "phrase"
    sample.expressions = [Expression(text, [0], kind) for text in texts]
    sample.ignore = [masks.encode(labels == IGNORED)] if (labels == IGNORED).any() else []
    return sample


def paint_shapes(shapes: list, width: int, height: int) -> np.ndarray:
    """Labels (height, width): 0, TARGET or IGNORED. Outlines belong to the polygons, as in LISA.

    ValueError naming the shape whose label or points cannot be used.
    """
    layers = []
    for number, shape in enumerate(shapes):
        expect_keys(shape, {"label": str, "points": list}, f"shape {number}")
        label = shape["label"].lower()
        if label == "flag":
            continue
        if label != "target" and "ignore" not in label:
            raise ValueError(f"shape {number}: label must be 'target', 'flag' or contain 'ignore', got {label!r}")
        try:
            masks.from_polygons([shape["points"]], height, width)  # its checks, not its raster
        except ValueError as error:
            raise ValueError(f"shape {number}: {error}") from error
        if not all(isinstance(point, list) for point in shape["points"]):
            raise ValueError(f"shape {number}: 'points' must be [[x, y], ...], got {shape['points']!r:.80}")
        layer = Image.new("1", (width, height))
        points = [(int(x), int(y)) for x, y in shape["points"]]
        ImageDraw.Draw(layer).polygon(points, fill=1, outline=1)
        layers.append((np.asarray(layer), IGNORED if "ignore" in label else TARGET))
    labels = np.zeros((height, width), dtype=np.uint8)
    for layer, value in sorted(layers, key=lambda entry: -int(entry[0].sum())):
        labels[layer] = value
    return labels
