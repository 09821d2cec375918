"""HC-STVG (https://github.com/tzhhhh123/HC-STVG): a person in a film scene of 20 seconds, by a sentence and a tube.

    ROOT/train.json, test.json              version 1, also in anno/ or annos/hcstvg_v1/
    ROOT/train_v2.json, val_v2.json         version 2, also in anno_v2/; annos/hcstvg_v2/train.json
        {"55_vfjywN5CN0Y.mp4": {"bbox": [[x, y, w, h], ...], "st_frame": 157, "img_num": 480,
                                "caption": TEXT, "width": 480, "height": 360}}
    ROOT/.../55_vfjywN5CN0Y.mp4             anywhere below ROOT

"bbox" has an entry per frame from "st_frame" on, which counts from 1. In version 2 the text is "English", and the size
"img_size": [height, width]. "st_time" and "ed_time" say the same in seconds and are not read.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.files import annotation_file, expect_keys, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.video_tubes import ClipPlaces, check_size, check_step, open_footage, tube

FILES = {
    1: ("{split}.json", "anno/{split}.json", "annos/hcstvg_v1/{split}.json"),
    2: ("{split}_v2.json", "anno_v2/{split}_v2.json", "annos/hcstvg_v2/{split}.json"),
}


@in_portions
def hc_stvg(
    root: Path | str,
    split: str,
    *,
    version: int = 1,
    annotations: Path | str | None = None,
    videos: Path | str | None = None,
    frames: Path | str | None = None,
    step: int = 1,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per video, with one expression. Outside of the tube the person counts as absent.

    version: of the data set. annotations, videos: the file and the folder of the videos, where they lie elsewhere.
    frames: a folder VIDEO/00001.jpg of frames to read instead of the videos, numbered from 0 or 1; step: how many
    frames of the video each of them is apart. Raises ValueError when the file is missing or not of this form.
    """
    if isinstance(version, bool) or version not in FILES:
        raise ValueError(f"option version must be 1 or 2, got {version!r}")
    check_step(step)
    root = Path(root)
    path = annotation_file(root, annotations, [root / name.format(split=split) for name in FILES[version]])
    places = ClipPlaces(root, videos, frames)
    for video, record in read_json(path, dict).items():
        name = f"hc_stvg/{Path(video).stem}"
        try:
            yield partial(_records, name, record, places.find(Path(video).stem), step, str(path))
        except ValueError as error:
            yield Reject(name, str(error), str(path))


def _records(name: str, record: Any, place: Path, step: int, path: str) -> Iterator[Sample | Reject]:
    try:
        yield _sample(name, record, place, step)
    except ValueError as error:
        yield Reject(name, str(error), path)


def _sample(name: str, record: Any, place: Path, step: int) -> Sample:
    expect_keys(record, {"bbox": list, "st_frame": int, "img_num": int}, "the video")
    text, (width, height) = _text(record), _size(record)
    footage = open_footage(place, step)
    check_size(footage, width, height)
    start, count = record["st_frame"] - 1, len(record["bbox"])
    there = min(record["img_num"], footage.numbers[-1] + step)
    if start < 0 or not count or start + count > there:
        raise ValueError(f"its {count} boxes from frame {start + 1} on are not within the {there} frames of its video")
    last = footage.numbers[-1]
    sample = footage.sample(name, "hc_stvg", 0, last)
    boxes = dict(enumerate(record["bbox"], start))
    sample.objects, sample.expressions = [tube(footage, 0, last, boxes, "xywh")], [Expression(text, [0])]
    return sample


def _text(record: dict) -> str:
    key = "English" if "English" in record else "caption"
    expect_keys(record, {key: str}, "the video")
    if not (text := record[key].strip()).strip(" ."):
        raise ValueError(f"{key!r} must be a non-empty text, got {record[key]!r}")
    return text


def _size(record: dict) -> tuple[int, int]:
    """Width and height."""
    if "img_size" not in record:
        expect_keys(record, {"width": int, "height": int}, "the video")
        return record["width"], record["height"]
    size = record["img_size"]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f"'img_size' must be [height, width], got {size!r:.80}")
    return size[1], size[0]
