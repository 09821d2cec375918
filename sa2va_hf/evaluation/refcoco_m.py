"""RefCOCO-M (moondream/refcoco-m on the Hub): RefCOCO's val without its wrong phrases, with masks drawn anew.

    ROOT/data/validation-00000-of-00001.parquet     a row per picture, with the columns
        image       {"bytes", "path"} as `datasets` writes pictures, or the path of one below ROOT
        image_id    COCO's
        samples     [{"sentences": [text or {"raw": text}, ...], "mask": COCO RLE, "bbox": not read}, ...]

It is for evaluation alone: its pictures are in RefCOCO's val, and so in COCO's train2014.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import expect_keys, find_picture, upright_size

COLUMNS = ("image", "image_id", "samples")
ROWS = 16  # that are read together


def refcoco_m(root: Path | str, split: str = "validation") -> Iterator[Sample | Reject]:
    """One sample per picture with all its objects; every sentence is an expression, as it is.

    Raises:
        ValueError: there is no such file, or it has other columns.
    """
    root = Path(root)
    files = sorted(path for folder in (root, root / "data") for path in folder.glob(f"{split}*.parquet"))
    if not files:
        raise ValueError(f"{root}: no RefCOCO-M; expected ROOT/data/{split}-00000-of-00001.parquet")
    for file in files:
        for record in _records(file):
            name = f"refcoco_m/{record['image_id']}"
            try:
                yield _sample(name, record, root)
            except ValueError as error:
                yield Reject(name, str(error), str(file))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(file)
    except (OSError, ArrowInvalid) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error
    if missing := [column for column in COLUMNS if column not in table.schema_arrow.names]:
        raise ValueError(f"{file}: expected the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    for batch in table.iter_batches(ROWS, columns=list(COLUMNS)):
        yield from batch.to_pylist()


def _sample(name: str, record: dict[str, Any], root: Path) -> Sample:
    picture, source = _picture(record["image"], root)
    width, height = upright_size(source)
    sample = Sample(name, "referring", width, height, frames=[picture], source="refcoco_m")
    for number, one in enumerate(record["samples"] or []):
        expect_keys(one, {"sentences": (list, str), "mask": dict}, f"{name}: entry {number} of 'samples'")
        rle = masks.from_segmentation(one["mask"], height, width)
        sample.objects.append(Object([rle], [masks.rle_to_box(rle)]))
        sample.expressions += [Expression(text, [number]) for text in _texts(one["sentences"], name)]
    if not sample.expressions:
        raise ValueError(f"{name}: 'samples' has no sentence")
    return sample


def _picture(image: Any, root: Path) -> tuple[str | bytes, Any]:
    """A picture as a sample holds it, and what its size is read from."""
    content = image.get("bytes") if isinstance(image, dict) else None
    if content:
        return content, io.BytesIO(content)
    path = image.get("path") if isinstance(image, dict) else image
    if not isinstance(path, str) or not path:
        raise ValueError(f"'image' must have bytes or a path, got {image!r:.80}")
    found = find_picture(path, [root, root / "data"])
    return os.path.abspath(found), found


def _texts(sentences: list | str, name: str) -> list[str]:
    texts = [one.get("raw") if isinstance(one, dict) else one for one in _listed(sentences)]
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"{name}: a sentence must be a text, alone or as 'raw', got {wrong[0]!r:.80}")
    return [text.strip() for text in texts]


def _listed(sentences: list | str) -> list:
    return [sentences] if isinstance(sentences, str) else sentences
