"""Phrases for objects of videos: MeViS, ReVOS, Ref-YouTube-VOS, Ref-DAVIS17, and the evaluation part of Ref-SAV.

    MeViS       ROOT/train/meta_expressions.json, mask_dict.json, JPEGImages/VIDEO/00000.jpg; the second version is
                meta_expressions_v2.json beside it (option `version`), in which some expressions mean nothing
    ReVOS       ROOT/meta_expressions_train_.json, mask_dict.json; videos are named by their path (TAO/frames/...)
    Ref-YT-VOS  ROOT/meta_expressions/train/meta_expressions.json, ROOT/train/JPEGImages/VIDEO/00000.jpg, and the masks
                as ROOT/mask_dict.pkl or as ROOT/train/Annotations/VIDEO/00000.png (the palette's index is the obj_id)
    Ref-DAVIS17 the same for valid, or DAVIS itself with ROOT/davis_text_annotations/Davis17_annot1.txt, ...
    Ref-SAV     ROOT/meta_expressions_valid.json, mask_dict.json, videos/VIDEO/00000.jpg

    meta_expressions.json   {"videos": {VIDEO: {"frames": ["00000", ...], "expressions": {"0": {"exp": TEXT,
                             "anno_id": [0, 1], "obj_id": [0, 1], "type_id": 0}}}}}
    mask_dict               {"0": [RLE or null, one per frame], ...}, null where the object is not in the frame

An anno_id is a key of mask_dict. Ref-YouTube-VOS and Ref-DAVIS17 have none: there the expressions themselves are
numbered through, by the sorted names of the videos and, within one, by the keys of its expressions sorted as text
("10" before "2"); see the option `numbering`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa2va_hf.boxes import ENDS
from sa2va_hf.data.listing import entries
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.clips import (
    boxed_loader,
    clip_size,
    dict_loader,
    folder_loader,
    frame_number,
    given_path,
    named_frames,
    paths,
    read_mask_dict,
    read_names,
)
from sa2va_hf.data.sources.files import (
    annotation_file,
    expect_keys,
    first_existing,
    read_annotation,
    read_json,
)

EXPRESSION_FILES = (
    "{split}/meta_expressions.json",
    "meta_expressions/{split}/meta_expressions.json",
    "meta_expressions_{split}_.json",  # ReVOS's name, underscore and all
    "meta_expressions_{split}.json",
)
EXPRESSION_FILES_OF_V2 = ("{split}/meta_expressions_v2.json", "{split}/meta_expressions_v2_release.json")
MASK_FILES = ("{split}/mask_dict.json", "{split}/mask_dict.pkl", "mask_dict.json", "mask_dict.pkl")
MASK_FOLDERS = (
    "{split}/Annotations",
    "Annotations/480p",
    "DAVIS/Annotations/480p",
    "Annotations",
)  # palette pictures
FRAME_FOLDERS = (
    "{split}/JPEGImages",
    "JPEGImages/480p",
    "DAVIS/JPEGImages/480p",
    "JPEGImages",
    "videos",
    "{split}/videos",
    "",
)
DAVIS_LISTS = ("ImageSets/2017/{split}.txt", "DAVIS/ImageSets/2017/{split}.txt")
DAVIS_SPLITS = {"valid": "val"}
DAVIS_TEXTS = "davis_text_annotations"

TYPES = {  # what type_id means, by source: ReVOS's kinds of questions, Ref-SAV's lengths (tools/eval of Sa2VA)
    "revos": {0: "referring", 1: "reasoning", 2: "no_target"},
    "ref_sav_eval": {0: "long", 1: "short"},
}
DAVIS_ANNOTATORS = ("first_frame_1", "full_video_1", "first_frame_2", "full_video_2")  # of each object, in this order

NUMBERINGS = ("sorted", "file")


@dataclass
class _Masks:
    """Where masks come from: a dict by annotation id, or (when `folder`) palette pictures, one per frame."""

    by_id: dict[str, Any]
    folder: Path | None = None
    numbers: dict[tuple[str, str], str] | None = None  # (video, expression) -> annotation id, where the file has none
    boxes: dict[str, Any] | None = None  # by annotation id too


def video_referring(
    root: Path | str,
    split: str,
    *,
    name: str = "mevis",
    annotations: Path | str | None = None,
    masks_from: Path | str | None = None,
    frames: Path | str | None = None,
    numbering: str = "sorted",
    boxes: Path | str | None = None,
    ends: str = "inclusive",
    verbatim: bool = False,
    version: int | str = 1,
) -> Iterator[Sample | Reject]:
    """One sample per video with all its objects and expressions; every frame listed is annotated.

    Expressions with several anno_ids mean them together; with none (ReVOS type 2) they match nothing. kind: what
    `TYPES` says of ReVOS and Ref-SAV; for Ref-DAVIS17 the annotator, where each object has the published four.

    annotations, masks_from, frames: the file of expressions, the mask_dict or the folder of palette pictures, and the
    folder of videos, where they are elsewhere. numbering: how expressions without anno_id are numbered into mask_dict:
    "sorted" (as published) or "file" (in the order of the file). Wrong numbers are found: their count must be that
    of the masks, and expressions of one object must have the same masks. boxes: a file of boxes by anno_id, see
    `spatial_relations`; with it masks may be missing. ends: of these boxes, see `boxes.ENDS`. verbatim: spaces and
    full stops around an expression stay (what evaluations ask). version: 1, or 2 of MeViS. Raises ValueError when a
    file is missing, not of this form, or of a split whose masks were never published.
    """
    if ends not in ENDS:
        raise ValueError(f"ends must be {' or '.join(ENDS)}, got {ends!r}")
    if numbering not in NUMBERINGS:
        raise ValueError(f"numbering must be one of {', '.join(NUMBERINGS)}, got {numbering!r}")
    root = Path(root)
    usual = [root / place.format(split=split) for place in expression_files(version)]
    if annotations is None and (root / DAVIS_TEXTS).is_dir() and not any(path.exists() for path in usual):
        path, videos = root / DAVIS_TEXTS, _davis_texts(root, split)
    else:
        path = annotation_file(root, annotations, usual)
        videos = read_json(path, dict).get("videos")
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f"{path} must have a dict 'videos' with at least one video, got {videos!r:.80}")
    by_id = None if boxes is None else read_mask_dict(given_path(root, boxes, "the boxes"))
    source = _find_masks(root, split, masks_from, videos, path, numbering, by_id)
    folders = [Path(frames)] if frames else [root / place.format(split=split) for place in FRAME_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()] or folders
    for video, record in videos.items():
        try:
            expect_keys(record, {"frames": list, "expressions": dict}, f"video {video}")
            files = named_frames(sorted(map(str, record["frames"])), video, folders)
            width, height = clip_size(files)
        except ValueError as error:
            yield Reject(f"{name}/{video}", str(error), str(path))
            continue
        sample = Sample(f"{name}/{video}", "referring", width, height, frames=paths(files), source=name)
        load = _loader(sample, video, source, ends)
        yield from _fill(sample, video, record["expressions"], source, load, str(path), verbatim)
        if sample.expressions:
            yield sample


def expression_files(version: int | str) -> tuple[str, ...]:
    """Where the expressions of a split are. Raises: ValueError for a version that there is not."""
    found = {"1": EXPRESSION_FILES, "2": EXPRESSION_FILES_OF_V2}.get(str(version))
    if found is None:
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    return found


def _fill(
    sample: Sample,
    video: str,
    expressions: dict,
    source: _Masks,
    load: Callable[[str], Object],
    file: str,
    verbatim: bool,
) -> Iterator[Reject]:
    """Adds objects and expressions of a video to the sample; yields what was skipped."""
    index_of: dict[str, int] = {}  # annotation -> object
    kinds = _annotators(expressions) if sample.source == "ref_davis17" else {}
    for key, expression in expressions.items():
        try:
            expect_keys(expression, {"exp": str}, f"expression {key}")
            if not (text := expression["exp"].strip(" .")):
                raise ValueError(f"'exp' must be a non-empty text, got {expression['exp']!r}")
            targets = []
            for annotation, own in _annotations(video, key, expression, source):
                if own not in index_of:
                    instance = load(annotation)
                    index_of[own] = len(sample.objects)
                    sample.objects.append(instance)
                elif source.numbers is not None and load(annotation) != sample.objects[index_of[own]]:
                    raise ValueError(
                        f"mask {annotation} is not the one that another expression of object {own} has: "
                        f"the masks seem to be numbered in another way; try the option numbering"
                    )
                targets += [index_of[own]] if index_of[own] not in targets else []
            kind = kinds.get(key, "")
            if "type_id" in expression:
                expect_keys(expression, {"type_id": int}, f"expression {key}")
                kind = TYPES.get(sample.source, {}).get(expression["type_id"], "")
            sample.expressions.append(Expression(expression["exp"] if verbatim else text, targets, kind))
        except ValueError as error:
            yield Reject(f"{sample.id}/expression {key}", str(error), file)


def _annotations(video: str, key: str, expression: dict, source: _Masks) -> list[tuple[str, str]]:
    """(where its mask is, which object that is) of each target of an expression."""
    if source.folder or source.numbers is not None:
        own = expression.get("obj_id")
        if not isinstance(own, str | int) or isinstance(own, bool):
            raise ValueError(f"'obj_id' must be the number of one object, got {own!r:.80}")
        return [(str(own) if source.folder else source.numbers[video, key], str(own))]
    if not isinstance(ids := expression.get("anno_id"), list):
        raise ValueError(f"'anno_id' must be a list of keys of the masks, got {ids!r:.80}")
    return [(str(number), str(number)) for number in ids]


def _annotators(expressions: dict) -> dict[str, str]:
    """Which annotator wrote which expression of Ref-DAVIS17; empty when there are not four per object, in a row."""
    keys = list(expressions)
    owners = [one.get("obj_id") if isinstance(one, dict) else None for one in expressions.values()]
    count = len(DAVIS_ANNOTATORS)
    whole = len(keys) % count == 0 and all(
        len(set(map(str, owners[first : first + count]))) == 1 for first in range(0, len(keys), count)
    )
    if not whole or len(set(map(str, owners))) * count != len(keys):
        return {}
    return {key: DAVIS_ANNOTATORS[number % count] for number, key in enumerate(keys)}


# ---------------------------------------------------------------- masks


def _loader(sample: Sample, video: str, source: _Masks, ends: str) -> Callable[[str], Object]:
    if source.folder:
        return folder_loader(sample, video, source.folder)
    if source.boxes is None:
        return dict_loader(sample, source.by_id)
    return boxed_loader(sample, source.boxes, ends, dict_loader(sample, source.by_id) if source.by_id else None)


def _find_masks(
    root: Path,
    split: str,
    given: Path | str | None,
    videos: dict,
    file: Path,
    numbering: str,
    boxes: dict[str, Any] | None,
) -> _Masks:
    expressions = [
        (video, key, one)
        for video, record in videos.items()
        if isinstance(record, dict) and isinstance(record.get("expressions"), dict)
        for key, one in record["expressions"].items()
    ]
    named = any(isinstance(one, dict) and "anno_id" in one for _, _, one in expressions)
    if not named and not any(isinstance(one, dict) and "obj_id" in one for _, _, one in expressions):
        raise ValueError(
            f"none of the {len(expressions)} expressions of {file} has an anno_id or obj_id: the masks of this split "
            "were not published, so that it can be neither learnt from nor scored here"
        )
    if boxes is not None and not named:
        raise ValueError(f"boxes are told apart by their anno_id, which the expressions of {file} do not have")
    places = MASK_FILES + (() if named else MASK_FOLDERS)
    places = [root / place.format(split=split) for place in places]
    if given is not None:
        places = [Path(given), root / given]
    elif boxes is not None and not any(place.exists() for place in places):
        return _Masks({}, boxes=boxes)
    place = first_existing(places, "the masks (mask_dict)", "Name them with --option masks_from=FILE")
    if place.is_dir():
        if boxes is not None:
            raise ValueError(f"boxes go with a mask_dict (both by anno_id), the masks are the folder {place}")
        return _Masks({}, place)
    by_id = read_mask_dict(place)
    if named:
        return _Masks(by_id, boxes=boxes)
    if len(by_id) != len(expressions):
        raise ValueError(
            f"{place} has {len(by_id)} masks but {file} has {len(expressions)} expressions without anno_id: "
            "they are numbered through, so there must be one mask for each"
        )
    order = sorted((video, key) for video, key, _ in expressions)
    order = order if numbering == "sorted" else [(video, key) for video, key, _ in expressions]
    return _Masks(by_id, None, {pair: str(number) for number, pair in enumerate(order)})


# ---------------------------------------------------------------- Ref-DAVIS17's own texts


def _davis_texts(root: Path, split: str) -> dict[str, dict]:
    """`videos` of a meta_expressions file, from davis_text_annotations/*.txt with lines: VIDEO OBJECT "TEXT"."""
    split = DAVIS_SPLITS.get(split, split)
    listed = [root / place.format(split=split) for place in DAVIS_LISTS]
    chosen = set(read_names(first_existing(listed, f"the list of the split {split}", "It comes with DAVIS-2017")))
    texts: dict[tuple[str, str], list[str]] = {}
    files = [path for path in entries(root / DAVIS_TEXTS) if path.suffix == ".txt"]
    for path in sorted(files, key=lambda one: one.stem):
        data = read_annotation(path)
        try:
            lines = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            lines = data.decode("cp1252")
        for number, line in enumerate(lines.splitlines(), start=1):
            match = re.fullmatch(r'\s*(\S+)\s+(\d+)\s+"?(.*?)"?\s*', line)
            if match and match[1] in chosen:
                texts.setdefault((match[1], match[2]), []).append(match[3])
            elif line.strip() and not match:
                raise ValueError(f'{path}, line {number} must be VIDEO OBJECT "TEXT", got {line!r:.80}')
    frame_folders = [root / place for place in FRAME_FOLDERS if "{" not in place and place]
    videos: dict[str, dict] = {}
    for (video, own), of_object in sorted(texts.items(), key=lambda item: (item[0][0], int(item[0][1]))):
        folder = next((base / video for base in frame_folders if (base / video).is_dir()), None)
        pictures = [path for path in entries(folder) if path.suffix == ".jpg"] if folder else []
        names = [path.stem for path in sorted(pictures, key=frame_number)]
        expressions = videos.setdefault(video, {"frames": names, "expressions": {}})["expressions"]
        for text in of_object:
            expressions[str(len(expressions))] = {"exp": text, "obj_id": own}
    return videos
