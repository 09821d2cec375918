"""YouTube-VOS (https://youtube-vos.org): objects of videos with their categories, each from where it first appears.

    ROOT/train/meta.json        {"videos": {VIDEO: {"objects": {"1": {"category": "ape", "frames": ["00005"]}}}}}
    ROOT/train/JPEGImages/VIDEO/00000.jpg, ROOT/train/Annotations/VIDEO/00000.png (a palette's index is the object)

An object's "frames" are those on which it was annotated; on the others nobody looked for it. Its own Ref-YouTube-VOS
has sentences (`ref_youtube_vos`); here a phrase is a category: "giant panda", or "every giant panda" of several.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sa2va_hf import masks
from sa2va_hf.data.listing import subfolders
from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.clips import frame_number
from sa2va_hf.data.sources.files import expect_keys, first_existing, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.vos_folders import find_folders, read_clip

NO_CATEGORY = "others"  # a class of its own in YouTube-VOS, which says nothing


@in_portions
def youtube_vos(
    root: Path | str,
    split: str,
    *,
    meta: Path | str | None = None,
    frames: Path | str | None = None,
    annotations: Path | str | None = None,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per video of meta.json with an expression per category.

    meta, frames, annotations: that file and the two folders of videos, where they are elsewhere. Raises ValueError
    when one is missing or the file is not of this form.
    """
    root = Path(root)
    usual = [root / split / "meta.json", root / "meta.json"] if meta is None else [Path(meta), root / meta]
    path = first_existing(usual, "meta.json", "Name it with --option meta=FILE")
    videos = read_json(path, dict).get("videos")
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f"{path} must have a dict 'videos' with at least one video, got {videos!r:.80}")
    frame_base, mask_base = find_folders(root, split, frames, annotations)
    unlisted = [one.name for one in subfolders(mask_base) if one.name not in videos]
    for video in unlisted:
        yield Reject(video, "it has a folder of masks but is not in meta.json", str(path))
    for video, record in videos.items():
        yield partial(_records, video, record, frame_base / video, mask_base / video, str(path))


def _records(video: str, record: dict, frames: Path, masks_of_frames: Path, file: str) -> Iterator[Sample | Reject]:
    try:
        expect_keys(record, {"objects": dict}, f"video {video}")
        sample, names, problems = read_clip(video, frames, masks_of_frames)
    except ValueError as error:
        yield Reject(video, str(error), file)
        return
    sample.source = "youtube_vos"
    yield from problems
    yield from _name(sample, names, record["objects"], file)
    if sample.objects:
        yield sample


def _name(sample: Sample, names: list[str], records: dict, file: str) -> Iterator[Reject]:
    """Gives the objects their categories and the sample its expressions; yields what was skipped."""
    instances = {str(int(name)): instance for name, instance in zip(names, sample.objects, strict=True)}
    sample.objects = []
    for key in instances:
        if key not in records:
            yield Reject(f"{sample.id}/object {key}", "it has pixels but is not in meta.json", file)
    of_category: dict[str, list[int]] = {}
    for key, record in records.items():
        try:
            expect_keys(record, {"category": str, "frames": list}, f"object {key}")
            if not all(isinstance(name, str) and name.isdigit() for name in record["frames"]):
                raise ValueError(f"'frames' must be numbers as text, got {record['frames']!r:.80}")
            if (instance := instances.get(key)) is None:
                raise ValueError("it has no pixels on any frame")
        except ValueError as error:
            yield Reject(f"{sample.id}/object {key}", str(error), file)
            continue
        looked = {int(name) for name in record["frames"]}
        numbers = [frame_number(Path(sample.frames[at])) for at in sample.annotated]
        instance.masks = [
            rle if number in looked or masks.area(rle) else None
            for number, rle in zip(numbers, instance.masks, strict=True)
        ]
        category = record["category"].replace("_", " ").strip()
        if category and category != NO_CATEGORY:
            instance.category = category
            of_category.setdefault(category, []).append(len(sample.objects))
        sample.objects.append(instance)
    for category, targets in of_category.items():
        text = category if len(targets) == 1 else f"every {category}"
        sample.expressions.append(Expression(text, targets, "category"))
