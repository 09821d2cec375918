"""Which form of own data a folder has, told by what its files hold and not by their names."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sa2va_hf.data.listing import entries, files_below
from sa2va_hf.data.sources.coco_json import SPLIT_NAMES, split_of
from sa2va_hf.data.sources.cvat import is_cvat
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, read_records
from sa2va_hf.data.sources.instances import is_instances
from sa2va_hf.data.sources.labelme import find_labelme
from sa2va_hf.data.sources.labelstudio import is_labelstudio
from sa2va_hf.data.sources.png_masks import MASK_FOLDERS, png_masks
from sa2va_hf.data.sources.yolo_seg import CONFIGS, is_yolo_seg

EXPECTED = (
    "expected photos with mask images (png_masks: images/X.jpg with masks/X.png) or an annotation file of coco_json, "
    "finetune_json, labelme, labelstudio, cvat or yolo_seg; docs/own_masks.md describes them"
)


@dataclass
class Recognised:
    """A form, and how to read a split of it.

    source: a key of SOURCES. file: what it was told by, from the root. splits: the options of the source for "train"
    and, where the data have a validation split of their own, for "val".
    """

    source: str
    file: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def options(self, split: str, val_fraction: float = 0.0) -> dict[str, Any]:
        """The options of `source` for a split. val_fraction: the share of the pictures that is held out as "val",
        where the data have no validation split of their own."""
        if "val" in self.splits or split not in ("train", "val"):
            return dict(self.splits.get(split, {}))
        return self.splits.get("train", {}) | ({"val_fraction": val_fraction} if val_fraction else {})


def recognise(root: Path | str) -> Recognised:
    """The form of a folder.

    Raises:
        ValueError: there is no such folder; it has no form that is known, with what it holds instead; or it has
            several, which are named with the files they were told by.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder, {'this is a file' if root.exists() else 'there is none'}")
    found = [one for one in (look(root) for look in LOOKS) if one is not None]
    if len(found) > 1:
        named = ", ".join(f"{one.source} ({one.file})" for one in found)
        raise ValueError(f"{root} holds several forms: {named}; say which with --source, or move the others away")
    if found:
        return found[0]
    pictures = _png_masks(root)
    if pictures is None:
        raise ValueError(f"{root} has no form that is known: {_held(root)}; {EXPECTED}")
    return pictures


def _held(root: Path) -> str:
    """What a folder of no known form holds, as far as it tells what is missing."""
    files = files_below(root)
    for path in _texts(root, "*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            return f"{path.relative_to(root)} is not JSON ({error})"
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    masks, photos = ([path for path in pictures if _is_named_as_mask(path, root) is named] for named in (True, False))
    if not files:
        return "it is empty"
    if not pictures:
        return f"no image among its files ({_relative(files, root)})"
    if not masks:
        return f"photos ({_relative(photos, root)}) and no mask image"
    if not photos:
        return f"mask images ({_relative(masks, root)}) and no photo"
    named = f"mask images {_relative(masks, root)}, photos {_relative(photos, root)}"
    return f"no mask image has the name of a photo ({named})"


def _is_named_as_mask(path: Path, root: Path) -> bool:
    folders = path.relative_to(root).parts[:-1]
    return "mask" in path.stem.lower() or any(name in MASK_FOLDERS for name in folders)


def _texts(root: Path, pattern: str) -> list[Path]:
    """Annotation files where tools put them: in the root, in `annotations`, and in a folder per split."""
    places = [root, root / "annotations", *(root / name for names in SPLIT_NAMES.values() for name in names)]
    return [path for place in places for path in entries(place) if path.is_file() and path.match(pattern)]


def _coco(root: Path) -> Recognised | None:
    files = [path for path in _texts(root, "*.json") if is_instances(path)]
    if not files:
        return None
    of_split = {split: [path for path in files if split_of(path, root) == split] for split in ("train", "val")}
    splits = {split: {} for split, paths in of_split.items() if paths}
    if set(splits) == {"train"}:  # a part of the only file is held out
        splits["train"] = {"annotations": str(of_split["train"][0])}
    elif not splits and len(files) > 1:
        named = ", ".join(str(path.relative_to(root)) for path in files)
        raise ValueError(f"{root} holds several COCO files without a split in their names: {named}")
    elif not splits:
        splits["train"] = {"annotations": str(files[0])}
    return Recognised("coco_json", _relative(files, root), splits)


def _finetune(root: Path) -> Recognised | None:
    files = [path for path in _texts(root, "*.json") if _is_finetune(path)]
    if not files:
        return None
    of_split = {split for split in ("train", "val") if any(_is_split_of(path, split) for path in files)}
    splits = {split: {} for split in of_split} if of_split >= {"train", "val"} else {"train": {}}
    return Recognised("finetune_json", _relative(files, root), splits)


def _is_split_of(path: Path, split: str) -> bool:
    return path.stem in (split, f"annotations_{split}") or path.parent.name == split


def _is_finetune(path: Path) -> bool:
    try:
        first = next(read_records(path), None)
    except ValueError:
        return False
    return isinstance(first, dict) and {"image", "mask", "text"} <= set(first)


def _labelme(root: Path) -> Recognised | None:
    files = find_labelme(root)
    return Recognised("labelme", _relative(files, root), _folder_splits(root, files)) if files else None


def _labelstudio(root: Path) -> Recognised | None:
    files = [path for path in entries(root) if is_labelstudio(path)]
    return Recognised("labelstudio", _relative(files, root), {"train": {}}) if files else None


def _cvat(root: Path) -> Recognised | None:
    files = [path for path in _texts(root, "*") if is_cvat(path)]
    splits = {split: {} for split in ("train", "val") if any(path.stem in SPLIT_NAMES[split] for path in files)}
    return Recognised("cvat", _relative(files, root), splits) if files else None


def _yolo(root: Path) -> Recognised | None:
    if not is_yolo_seg(root):
        return None
    path = next(root / name for name in CONFIGS if (root / name).is_file())
    return Recognised("yolo_seg", path.name, _folder_splits(root, files_below(root, "*.txt")))


def _png_masks(root: Path) -> Recognised | None:
    splits = {}
    for split in ("train", "val"):
        try:
            next(iter(png_masks.portions(root, split)), None)
            splits[split] = {}
        except ValueError:
            continue
    return Recognised("png_masks", "photos and masks", splits) if splits else None


def _folder_splits(root: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """The splits that have a folder of their own, of any of the names that tools give it."""
    names = {part for path in files for part in path.relative_to(root).parts[:-1]}
    return {split: {} for split in ("train", "val") if names.intersection(SPLIT_NAMES[split])}


def _relative(files: list[Path], root: Path) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].relative_to(root)}{more}"


LOOKS: tuple[Callable[[Path], Recognised | None], ...] = (_coco, _finetune, _labelme, _labelstudio, _cvat, _yolo)
