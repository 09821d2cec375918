"""Own data as a folder of photos and a folder of mask pictures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sa2va_hf import mask_pictures, masks
from sa2va_hf.data.listing import entries, subfolders
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.files import IMAGE_SUFFIXES, keep_split, read_json, sized_ids, sized_objects, upright_size
from sa2va_hf.data.sources.portions import Portion, in_portions

LAYOUTS = """Accepted layouts (photos of any picture format; masks as PNG, 0 is background, a grey mask with soft edges
is cut in the middle):
    images/X.jpg + masks/X.png             one mask per photo; several values are several objects
    images/X.jpg + masks/X_PHRASE.png      one mask per object ("X_left_cat.png"; "X_cat_1.png", "X_cat_2.png")
    images/X.jpg + masks/X/PHRASE.png      a folder of masks per photo
    images/X.jpg + masks/PHRASE/X.png      a folder of masks per kind of thing
    X.jpg + X.png or X_mask.png            all in one folder
each also below a folder per split (train/images + train/masks, or images/train + masks/train).
Where no file or folder name says what a mask shows, or it says something else, give --option phrase="the lesion", or
write a labels.json:
    {"default": "the lesion", "ids": {"1": "road", "2": "car"}, "images": {"X": "red car", "Y": {"1": "left dog"}}}"""

ADVICE = 'give --option phrase="the lesion" or write labels.json: {"ids": {"1": "road", "2": "car", "255": null}}'

IMAGE_FOLDERS = ("images", "photos", "JPEGImages", "image")
MASK_FOLDERS = ("masks", "annotations", "Annotations", "labels", "mask")

VOID = 255  # beside ids that a palette or labels.json declares: "do not care", as in VOC and DAVIS

NO_PHRASES = frozenset(  # "X_mask.png", "X_mask0.png"
    "mask masks segmentation seg label labels gt anno annotation annotations matte alpha inst instance".split()
)


@in_portions
def png_masks(
    root: Path | str, split: str, *, phrase: str | None = None, val_fraction: float = 0.0
) -> Iterator[Sample | Reject | Portion]:
    """One sample per photo. Masks of one photo with the same phrase are meant together by it.

    A mask without pixels says that the phrase matches nothing in the photo. phrase: what the masks show, whatever
    their names say. val_fraction: share of the photos that is split "val" when there are no folders per split.

    What a mask shows is looked up in labels.json ("images", then "ids"), `phrase`, the mask's own name, and "default"
    of labels.json: what was written down comes before the name of a file. A phrase in labels.json may be a list of
    phrases, or null for pixels that do not count. Raises ValueError when the folder has another layout (it shows the
    accepted ones) or labels.json is not of this form.
    """
    root = Path(root)
    photo_folder, mask_folder, whole = _layout(root, split)
    shared = photo_folder == mask_folder
    photos, problems = _photos(photo_folder, shared)
    if not photos:
        raise ValueError(f"there are no photos in {photo_folder}.\n{LAYOUTS}")
    found, orphans = _assign(mask_folder, photos, shared)
    if not found:
        raise ValueError(f"no mask in {mask_folder} has the name of a photo in {photo_folder}.\n{LAYOUTS}")
    labels = _read_labels([mask_folder, photo_folder, root], phrase, photos)
    chosen = keep_split(photos, split, val_fraction, f"make a folder {root / split}") if whole else set(photos)
    yield from problems + orphans
    for stem in sorted(chosen):
        yield partial(_records, stem, photos[stem], found.get(stem, []), labels)


def _records(stem: str, photo: Path, mask_files: list, labels: Any) -> Iterator[Sample | Reject]:
    try:
        yield _sample(stem, photo, mask_files, labels)
    except ValueError as error:
        yield Reject(stem, str(error), str(photo))


# ---------------------------------------------------------------- which files belong together


def _layout(root: Path, split: str) -> tuple[Path, Path, bool]:
    """Folder of photos, folder of masks (may be the same), and whether they hold all splits together."""
    pairs = [(image, mask) for image in IMAGE_FOLDERS for mask in MASK_FOLDERS]
    candidates = [(root / split / image, root / split / mask, False) for image, mask in pairs]
    candidates += [(root / image / split, root / mask / split, False) for image, mask in pairs]
    candidates += [(root / split, root / split / mask, False) for mask in MASK_FOLDERS]
    candidates += [(root / split, root / split, False)]
    candidates += [(root / image, root / mask, True) for image, mask in pairs]
    candidates += [(root, root / mask, True) for mask in MASK_FOLDERS]
    candidates += [(root, root, True)]
    for photos, mask_folder, whole in candidates:
        if photos.is_dir() and mask_folder.is_dir() and any(map(_is_picture, entries(photos))):
            return photos, mask_folder, whole
    raise ValueError(f"{root} holds no photos with masks (split {split!r}).\n{LAYOUTS}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _photos(folder: Path, shared: bool) -> tuple[dict[str, Path], list[Reject]]:
    """Photos by the stem of their name. In a shared folder PNGs are masks, unless there is nothing but PNGs."""
    files = [path for path in entries(folder) if _is_picture(path)]
    if shared:
        others = [path for path in files if path.suffix.lower() != ".png"]
        files = others or [path for path in files if "_mask" not in path.stem]
    photos: dict[str, Path] = {}
    rejects = []
    for path in files:
        if path.stem in photos:
            rejects.append(
                Reject(path.name, f"there is also {photos[path.stem].name}: which is the photo?", str(path))
            )
        photos.setdefault(path.stem, path)
    return photos, rejects


def _assign(folder: Path, photos: dict[str, Path], shared: bool) -> tuple[dict, list[Reject]]:
    """For each photo its masks as (file, what its name adds), and the pictures that belong to no photo."""
    found: dict[str, list[tuple[Path, str]]] = {}
    orphans = []
    files = [path for path in entries(folder) if _is_picture(path) and path not in photos.values()]
    if not shared:
        files += [path for below in subfolders(folder) for path in entries(below) if _is_picture(path)]
    for path in files:
        below = path.parent.name if path.parent != folder else ""
        if below in photos:
            found.setdefault(below, []).append((path, path.stem))
        elif stem := _longest_prefix(path.stem, photos):
            found.setdefault(stem, []).append((path, f"{below} {path.stem[len(stem) :].strip('_-')}".strip()))
        else:
            orphans.append(Reject(path.name, f"there is no photo of this name for the mask {path}", str(path)))
    return found, orphans


def _longest_prefix(stem: str, photos: dict[str, Path]) -> str | None:
    """The photo a mask is named after: "a_b_1" is of "a_b", if there is such a photo, rather than of "a"."""
    while stem not in photos:
        cut = max(stem.rfind("_"), stem.rfind("-"))
        if cut <= 0:
            return None
        stem = stem[:cut]
    return stem


# ---------------------------------------------------------------- what they show


@dataclass
class _Labels:
    """labels.json, and the option `phrase`."""

    phrase: str | None = None
    default: Any = None
    ids: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    def phrases(self, stem: str, name: str, value: int) -> list[str] | None:
        """Phrases for a value of a mask of a photo; None where the pixels do not count. ValueError if unknown."""
        own, words = self.images.get(stem, {}), _words(name)
        for table, keys in ((own, (name, str(value))), (self.ids, () if words else (str(value),))):
            for key in keys:
                if isinstance(table, dict) and key in table:
                    return _texts(table[key])
        if not isinstance(own, dict):
            return _texts(own)
        if self.phrase is not None:
            return [self.phrase]
        if not words and self.default is None:
            what = f"its mask shows at value {value}" if value else "is missing in it, as its mask is empty"
            raise ValueError(f"nothing says what {what}: {ADVICE}")
        return [" ".join(words)] if words else _texts(self.default)

    def declares(self, stem: str, name: str) -> bool:
        """Whether labels.json says what the values of this mask are, so that they are ids."""
        own = self.images.get(stem, {})
        digits = isinstance(own, dict) and any(str(key).isdigit() for key in own) and name not in own
        return digits or (bool(self.ids) and not _words(name))

    def named(self, stem: str, value: int) -> bool:
        """Whether a value has an entry of its own."""
        own = self.images.get(stem, {})
        return str(value) in self.ids or (isinstance(own, dict) and str(value) in own)


def _words(name: str) -> list[str]:
    """What a part of a file name says, in words; nothing where it is a number or one of `NO_PHRASES`."""
    words = name.replace("_", " ").split()
    while words and _says_nothing(words[-1]):  # "cat_1", "cat_2": two of the same
        words.pop()
    while words and _says_nothing(words[0]) and not words[0].isdigit():
        words.pop(0)
    return words


def _says_nothing(word: str) -> bool:
    return word.rstrip("0123456789").lower() in {"", *NO_PHRASES}


def _texts(entry: Any) -> list[str] | None:
    if entry is None:
        return None
    texts = entry if isinstance(entry, list) else [entry]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"labels.json: a phrase must be a text, a list of texts or null, got {entry!r}")
    return texts


def _read_labels(folders: list[Path], phrase: str | None, photos: dict[str, Path]) -> _Labels:
    path = next((folder / "labels.json" for folder in folders if (folder / "labels.json").is_file()), None)
    if path is None:
        return _Labels(phrase)
    content = read_json(path, dict)
    if unknown := sorted(set(content) - {"default", "ids", "images"}):
        raise ValueError(f"{path} has the keys {', '.join(unknown)}; expected default, ids and images.\n{LAYOUTS}")
    for key in ("ids", "images"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{path}: {key!r} must be a dict, got {content[key]!r:.80}")
    images = {_stem(name): entry for name, entry in content.get("images", {}).items()}
    if missing := sorted(set(images) - set(photos)):
        raise ValueError(f"{path} names {len(missing)} images that are not there: {', '.join(missing[:10])}")
    return _Labels(phrase, content.get("default"), content.get("ids", {}), images)


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _sample(stem: str, photo: Path, of_photo: list[tuple[Path, str]], labels: _Labels) -> Sample:
    if not of_photo:
        raise ValueError("there is no mask for this photo (a mask of zeros says that nothing is in it)")
    width, height = upright_size(photo)
    sample = Sample(stem, "referring", width, height, frames=[os.path.abspath(photo)], source="png_masks")
    targets: dict[str, list[int]] = {}
    ignored = np.zeros((height, width), dtype=bool)
    for path, name in of_photo:
        declared = labels.declares(stem, name)
        ids = (sized_ids if declared else sized_objects)(path, height, width)
        values = [int(value) for value in np.unique(ids) if value != 0]
        for value in _object_values(values, labels, stem, path, declared) or [0]:
            phrases = labels.phrases(stem, name, value)
            for text in phrases or []:
                targets.setdefault(text, []).extend([len(sample.objects)] if value else [])
            if phrases is None:
                ignored |= (ids == value) & (ids != 0)
            elif value:
                rle = masks.encode(ids == value)
                sample.objects.append(Object([rle], [masks.rle_to_box(rle)], phrases[0]))
        if len(values) > 1 and VOID in values and not labels.named(stem, VOID):
            ignored |= ids == VOID
    sample.expressions = [Expression(text, indices) for text, indices in targets.items()]
    if not sample.expressions:
        raise ValueError("labels.json leaves nothing of its masks")
    sample.ignore = [masks.encode(ignored)] if ignored.any() else []
    return sample


def _object_values(values: list[int], labels: _Labels, stem: str, path: Path, declared: bool) -> list[int]:
    """Those values of a mask that are objects. ValueError when that cannot be told."""
    if VOID not in values or len(values) == 1 or labels.named(stem, VOID):
        return values
    if not declared and not mask_pictures.open_mask(path).palette:
        shown = ", ".join(map(str, values))
        raise ValueError(f"mask {path} has the values {shown}: is {VOID} an object, or not to be counted? {ADVICE}")
    return [value for value in values if value != VOID]
