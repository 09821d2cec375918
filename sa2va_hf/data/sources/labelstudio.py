"""Own data as Label Studio exports it as JSON or JSON-MIN (https://labelstud.io). (Its COCO export is `coco_json`.)

    ROOT/export.json   [{"data": {"image": "/data/upload/1/3f2a9c1b-X.jpg"}, "annotations": [{"result": [...]}]}, ...]
                       or JSON-MIN: [{"image": ..., "tag": [{"rle": [...], "brushlabels": ["dog"], ...}]}, ...]
    ROOT/X.jpg         or below ROOT/images; the name may lack the eight characters that an upload puts before it

Brush strokes, polygons and ellipses are objects. A text that was written for a region (a per-region TextArea) is a
phrase for it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.sources.coco_json import SPLIT_NAMES, check_phrases
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, annotation_file, expect_keys, keep_split, read_json, unique_id
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.shapes_of_tools import (
    Drawn,
    Shape,
    ellipse,
    find_uploaded,
    polygon_of_shares,
    records,
    refuse,
)
from sa2va_hf.listings import listed

LABELS = ("brushlabels", "polygonlabels", "ellipselabels", "rectanglelabels", "keypointlabels", "labels")
IMAGE_FOLDERS = ("images", "upload", "media/upload", "")
OPAQUE = 128  # alpha of a brushed pixel from which on it belongs to the mask


@in_portions
def labelstudio(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    image_key: str | None = None,
    val_fraction: float = 0.0,
    one: str = "{}",
    several: str = "every {}",
) -> Iterator[Sample | Reject | Portion]:
    """One sample per task with regions, with one expression per label and one per text of a region.

    Of several annotations of a task the first that was not cancelled counts. annotations, images: the file and the
    folder, where they are elsewhere. image_key: the key of a task's data that names the picture, where it has several.
    val_fraction: share of the pictures that is split "val". one, several: the phrase for one and for several objects
    of a label. Raises ValueError when the file is missing or of another form.
    """
    check_phrases(one=one, several=several)
    root = Path(root)
    path = annotation_file(root, annotations, _usual(root, split))
    tasks = read_json(path, list)
    own = annotations is None and path.stem in SPLIT_NAMES.get(split, (split,))
    seen: dict[str, int] = {}
    names = {unique_id(_name(task, number), seen): task for number, task in enumerate(tasks)}
    chosen = set(names) if own else keep_split(names, split, val_fraction, f"name the file {split}.json")
    folders = [Path(images)] if images else [root / folder for folder in IMAGE_FOLDERS]
    for name, task in names.items():
        if name in chosen:
            yield partial(_records, name, task, image_key, folders, (one, several), str(path))


def _usual(root: Path, split: str) -> list[Path]:
    named = [root / f"{name}.json" for name in SPLIT_NAMES.get(split, (split,))]
    found = [path for path in entries(root) if is_labelstudio(path)]
    return [path for path in named if path in found] or (found if len(found) == 1 else named)


def is_labelstudio(path: Path) -> bool:
    """Whether a file is a list of Label Studio's tasks, in the full form or as JSON-MIN."""
    try:
        tasks = read_json(path, list) if path.suffix == ".json" else []
    except ValueError:
        return False
    return bool(tasks) and all(isinstance(task, dict) for task in tasks) and any(map(_is_task, tasks))


def _is_task(task: dict) -> bool:
    return (isinstance(task.get("data"), dict) and "annotations" in task) or bool(_short_regions(task))


def _name(task: Any, number: int) -> str:
    return f"task {task['id']}" if isinstance(task, dict) and "id" in task else f"task {number}"


def _records(
    name: str, task: Any, image_key: str | None, folders: list[Path], phrases: tuple[str, str], file: str
) -> Iterator[Sample | Reject]:
    try:
        regions, texts = _regions(task)
        if not regions:
            return  # nobody has annotated it
        photo = find_uploaded(_image(task.get("data", task), image_key), folders)
        size = (regions[0].get("original_width"), regions[0].get("original_height"))
        size = size if all(isinstance(side, int) for side in size) else None
        shapes = [_shape(number, region, texts) for number, region in enumerate(regions)]
        drawn = Drawn(name, photo, shapes, size)
    except ValueError as error:
        yield Reject(name, str(error), file)
        return
    yield from records(drawn, "labelstudio", phrases, file)


def _image(data: dict, key: str | None) -> str:
    """What a task says of its picture."""
    if key is not None:
        if not isinstance(data.get(key), str):
            raise ValueError(f"its data have no text {key!r}; they have {listed(data)}")
        return data[key]
    found = [value for value in data.values() if isinstance(value, str) and _is_picture(value)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} of its data {listed(data)} name a picture: say which, --option image_key=KEY")
    return found[0]


def _is_picture(value: str) -> bool:
    return value.lower().split("?")[0].endswith(IMAGE_SUFFIXES) or value.lower().endswith(IMAGE_SUFFIXES)


# ---------------------------------------------------------------- regions


def _regions(task: Any) -> tuple[list[dict], dict[str, list[str]]]:
    """The regions of a task, flat (what "value" holds and the rest side by side), and the texts by region."""
    if not isinstance(task, dict):
        raise ValueError(f"it must be a dict, got {type(task).__name__}")
    if "annotations" not in task:
        return _short_regions(task), {}
    expect_keys(task, {"data": dict, "annotations": list}, "the task")
    usable = [one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
    results = usable[0].get("result") or [] if usable else []
    if not isinstance(results, list):
        raise ValueError(f"'result' of its annotation must be a list, got {results!r:.80}")
    regions = [one for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]
    texts: dict[str, list[str]] = {}
    for one in regions:
        if one.get("type") == "textarea":
            said = one["value"].get("text")
            texts.setdefault(str(one.get("id")), []).extend(map(str, said if isinstance(said, list) else [said or ""]))
    drawn = [one | one["value"] for one in regions if one.get("type") in LABELS]
    return drawn, texts


def _short_regions(task: dict) -> list[dict]:
    """JSON-MIN has the regions of a control under the name of the control."""
    lists = [value for value in task.values() if isinstance(value, list)]
    return [one for value in lists for one in value if isinstance(one, dict) and any(key in one for key in LABELS)]


def _shape(number: int, region: dict, texts: dict[str, list[str]]) -> Shape:
    labels = next((region[key] for key in LABELS if region.get(key)), None)
    if not isinstance(labels, list) or not isinstance(labels[0], str):
        raise ValueError(f"region {number} has no label")
    own = tuple(text.strip() for text in texts.get(str(region.get("id")), []) if text.strip())
    return Shape(labels[0], f"region {number}", _mask(region), own)


def _mask(region: dict) -> Callable[[int, int], masks.RLE]:
    if region.get("image_rotation"):
        return refuse(f"the picture was turned by {region['image_rotation']} degrees in Label Studio")
    try:
        if "rle" in region:
            return partial(_brushed, region["rle"])
        if "polygonlabels" in region:
            shares = np.asarray(region["points"], dtype=float) / 100
            return partial(polygon_of_shares, shares)
        if "ellipselabels" in region:
            x, y, across, down = (float(region[name]) / 100 for name in ("x", "y", "radiusX", "radiusY"))
            return lambda height, width: ellipse(x * width, y * height, across * width, down * height)(height, width)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        return refuse(f"its shape cannot be read: {error}")
    kind = next((key for key in LABELS if key in region), "region")
    return refuse(f"a region of {kind} is no mask: draw it with the brush or as a polygon")


def _brushed(packed: Any, height: int, width: int) -> masks.RLE:
    """The mask of a brush region: the alpha of its RGBA picture."""
    values = unpack(packed, 4 * height * width)
    if len(values) != 4 * height * width:
        raise ValueError(f"its brush RLE has {len(values)} values, the picture has {height} x {width} x 4")
    return masks.encode(values.reshape(height, width, 4)[..., 3] >= OPAQUE)


def unpack(packed: Any, limit: int = 2**31) -> np.ndarray:
    """The bytes (n,), n at most `limit`, that Label Studio's brush RLE stands for, uint8.

    Its form is that of @thi.ng/rle-pack: of a stream of bits, highest first, 32 say how many values there are, 5 the
    bits of a value less one, four times 4 the bits of a count less one. Then blocks follow: a bit that says whether
    one value is repeated, two that choose the size of the count, the count less one, and the value, or the values.

    Raises:
        ValueError: not a list of bytes, values of another size than a byte, or a stream that ends too early.
    """
    if not isinstance(packed, list) or not all(isinstance(one, int) and 0 <= one < 256 for one in packed):
        raise ValueError("its brush RLE must be a list of bytes")
    stream = _Bits(bytes(packed))
    count, size = stream.take(32), stream.take(5) + 1
    sizes = [stream.take(4) + 1 for _ in range(4)]
    if size != 8 or count > limit:
        raise ValueError(f"its brush RLE has {count} values of {size} bits; expected at most {limit} bytes")
    pieces, found = [], 0
    while found < count:
        repeated = stream.take(1)
        length = min(stream.take(sizes[stream.take(2)]) + 1, count - found)
        pieces.append(np.full(length, stream.take(8), np.uint8) if repeated else stream.octets(length))
        found += length
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)


class _Bits:
    """A stream of bits, the highest of a byte first."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> int:
        """The number that the next bits are."""
        end = self.at + count
        if end > 8 * len(self.data):
            raise ValueError("its brush RLE ends too early (cut off?)")
        first, last = self.at // 8, (end + 7) // 8
        number = int.from_bytes(self.data[first:last], "big") >> (8 * last - end)
        self.at = end
        return number & ((1 << count) - 1)

    def octets(self, count: int) -> np.ndarray:
        """The next `count` bytes."""
        return np.frombuffer(self.take(8 * count).to_bytes(count, "big"), np.uint8)
