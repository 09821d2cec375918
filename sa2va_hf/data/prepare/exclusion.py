"""Pictures that must not be trained on, whatever dataset brings them: no evaluation picture leaks into training.

RefCOCO's test pictures are COCO train2014 pictures, which COCO-Stuff, LLaVA, LVIS and PACO have too, under names like
COCO_train2014_000000460986.jpg and 000000460986.jpg. Both are one key here, "coco 460986". A shorter number is another
dataset's name (Visual Genome has a 123.jpg of its own); only on a list, where ids stand, it may be COCO's as well.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from datasets import load_from_disk

from sa2va_hf.data.schema import Media, Sample

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(?=\d{12}$)0*(\d+)")


def picture_key(name: str) -> str:
    """What a picture is called in any dataset: its name without folders and suffix; a COCO name as its number."""
    stem = re.split(r"[/\\]", name)[-1]
    stem = stem.rsplit(".", 1)[0] if "." in stem else stem
    coco = _COCO_NAME.fullmatch(stem)
    return f"coco {coco[1]}" if coco else stem


def id_keys(name: str) -> set[str]:
    """Keys that an id or a name on a list may mean: a plain number may be COCO's."""
    key = picture_key(name)
    return {key, f"coco {int(key)}"} if key.isdecimal() else {key}


def sample_keys(sample: Sample) -> set[str]:
    """Keys of a sample: of its picture; of a clip, its file or the folder of its frames; of neither, its id."""
    first = sample.frames[0] if sample.frames else None
    return _keys(sample.id, first, sample.video, sample.num_frames)


def _keys(sample_id: str, frame: Media | None, video: Media | None, num_frames: int) -> set[str]:
    if isinstance(video, str):
        return {picture_key(video)}
    if isinstance(frame, str):  # frames of different clips share their names: 00000.jpg
        return {picture_key(frame) if num_frames == 1 else Path(frame).parent.name}
    return id_keys(sample_id)


def read_exclusions(files: Sequence[Path | str]) -> tuple[frozenset[str], dict[str, str]]:
    """Keys to exclude, and the sha256 of each list's keys.

    files: text files with a name or an id per line, JSON lists of them, or folders that prepare wrote (all of their
    pictures). Raises ValueError when one is none of these or is empty.
    """
    keys, hashes = set(), {}
    for file in files:
        path = Path(file)
        found = _of_prepared(path) if path.is_dir() else _of_list(path)
        if not found:
            raise ValueError(f"exclude list {path} is empty: expected a picture's name or id per line")
        hashes[str(file)] = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
        keys |= found
    return frozenset(keys), hashes


def _of_list(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"exclude list {path} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise ValueError(f"exclude list {path} must be a JSON list of names or ids, got {names!r:.80}")
    return {key for name in names if str(name).strip() for key in id_keys(str(name).strip())}


def _of_prepared(path: Path) -> set[str]:
    if not (path / "dataset_info.json").is_file():
        raise ValueError(f"exclude list {path} is a folder, but not one that prepare_data.py wrote")
    keys: set[str] = set()
    rows = load_from_disk(str(path)).select_columns(["id", "frames", "video", "num_frames"]).with_format("arrow")
    for table in rows.iter(1000):
        columns = [table[name] for name in ("id", "frames", "video", "num_frames")]
        for sample_id, frames, video, count in zip(*columns, strict=True):
            first = frames.values.field("path")[0].as_py() if len(frames) else None  # never the bytes
            keys |= _keys(sample_id.as_py(), first, video["path"].as_py() if video.is_valid else None, count.as_py())
    return keys
