"""Spatial relations as published for box grounding in videos (https://github.com/JasonShen-SH/spatial_mllm).

    ROOT/all_vos2_relative_step2.json           or with absolute, switch: all_vos2_KIND_step2.json, all_vos2_KIND.json
        {"videos": {VIDEO: {"frames": ["00000", ...], "start": 0, "end": 40, "expressions": {"0": EXPRESSION}}}}
    ROOT/mask_to_box/X_bbox.json                {ANNO_ID: [[x0, y0, x1, y1] or null, one per frame]} in pixels
    ROOT/JPEGImages/VIDEO/00000.jpg

    relative    {"exp": "right_3", "target_objs": [{"obj_id", "anno_id"}],
                 "reference_obj": {"ref_obj_id", "ref_anno_id", "ref_box": [x0, y0, x1, y1]}}
    absolute    {"exp": "left_2", "target_objs": [...]}
    switch      {"exp": "leftmost", "switches": [{"start_frame": "00012.jpg", "obj_id", "anno_id"}, ...]}

A null box says that the object is not in the frame: its box is one without area then, (0, 0, 0, 0). The files are not
freely to be had; `vos_relations` makes such phrases from masks.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sa2va_hf import masks
from sa2va_hf.boxes import ABSENT_BOX, ENDS, pixel_box
from sa2va_hf.data.listing import entries
from sa2va_hf.data.relations import absolute_phrase, box_name, extreme_phrase, relative_phrase
from sa2va_hf.data.schema import Expression, Object, Reject, Sample
from sa2va_hf.data.sources.clips import (
    boxed_loader,
    clip_size,
    dict_loader,
    folder_loader,
    given_path,
    named_frames,
    paths,
    read_mask_dict,
)
from sa2va_hf.data.sources.files import annotation_file, expect_keys, keep_split, read_json
from sa2va_hf.listings import listed

FILES = ("all_vos2_{kind}_step2.json", "all_vos2_{kind}.json")
FRAME_FOLDERS = ("JPEGImages", "{split}/JPEGImages", "JPEGImages/480p", "")

Identity = tuple[str, str]  # anno_id (of its boxes and masks), obj_id (its index in palette pictures)


def spatial_relations(
    root: Path | str,
    split: str,
    *,
    kind: str = "relative",
    annotations: Path | str | None = None,
    boxes: Path | str | None = None,
    masks_from: Path | str | None = None,
    frames: Path | str | None = None,
    ends: str = "inclusive",
    val_fraction: float = 0.0,
) -> Iterator[Sample | Reject]:
    """One sample per video, annotated from "start" to "end" (both within), where these are given.

    The object of a "switch" is on each frame the one that is meant there; frames before the first one do not count.
    annotations, boxes, frames: the file of expressions, the file of boxes and the folder of videos, where they lie
    elsewhere. masks_from: a mask_dict by anno_id, or a folder VIDEO/00000.png of palette pictures by obj_id: boxes get
    their masks. ends: of the boxes, see `boxes.ENDS`. val_fraction: see `keep_split`; the files have no splits.
    Raises ValueError when a file is missing or not of this form.
    """
    if ends not in ENDS:
        raise ValueError(f"ends must be {' or '.join(ENDS)}, got {ends!r}")
    root = Path(root)
    path = annotation_file(root, annotations, [root / name.format(kind=kind) for name in FILES])
    videos = read_json(path, dict).get("videos")
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f"{path} must have a dict 'videos' with at least one video, got {videos!r:.80}")
    by_id = read_mask_dict(_box_file(root, boxes))
    place = None if masks_from is None else given_path(root, masks_from, "the masks")
    mask_dict = {} if place is None or place.is_dir() else read_mask_dict(place)
    folders = [Path(frames)] if frames else [root / name.format(split=split) for name in FRAME_FOLDERS]
    chosen = keep_split(videos, split, val_fraction, "the files have none")
    for video, record in videos.items():
        if video not in chosen:
            continue
        name = f"spatial_{kind}/{video}"
        try:
            expect_keys(record, {"frames": list, "expressions": dict}, f"video {video}")
            files = named_frames(sorted(map(str, record["frames"])), video, folders)
            sample = Sample(name, "referring", *clip_size(files), frames=paths(files), source=f"spatial_{kind}")
            sample.annotated = list(_window(record, sample.num_frames))
        except ValueError as error:
            yield Reject(name, str(error), str(path))
            continue
        load = None if place is None else dict_loader(sample, mask_dict)
        if place is not None and place.is_dir():
            load = folder_loader(sample, video, place)
        tracks = _tracks(sample, by_id, ends, load, by_obj_id=place is not None and place.is_dir())
        yield from _fill(sample, record["expressions"], kind, tracks, ends, str(path))
        if sample.expressions:
            yield sample


def _box_file(root: Path, given: Path | str | None) -> Path:
    if given is not None:
        return given_path(root, given, "the boxes")
    found = [path for path in entries(root / "mask_to_box") if path.name.endswith("_bbox.json")]
    if len(found) != 1:
        names = listed(path.name for path in found) or "none"
        raise ValueError(f"one file {root / 'mask_to_box'}/*_bbox.json is expected, there is {names}: give boxes=FILE")
    return found[0]


def _window(record: dict, count: int) -> range:
    """Numbers of the frames in which the relations hold. "end" may also be the number of frames."""
    start, end = record.get("start", 0), record.get("end", count - 1)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (start, end))
    if not whole or not 0 <= start <= end <= count or start == count:
        raise ValueError(f"'start' and 'end' must rise within its {count} frames, got {start!r} and {end!r}")
    return range(start, min(end + 1, count))


def _tracks(
    sample: Sample, by_id: dict[str, Any], ends: str, load: Callable | None, *, by_obj_id: bool
) -> Callable[[Identity], Object]:
    """What gives an identity's object, with an entry for every frame of the clip; each is made once."""
    known: dict[Identity, Object] = {}

    def track(identity: Identity) -> Object:
        if identity not in known:
            anno_id, obj_id = identity
            its_masks = (lambda _: load(obj_id)) if by_obj_id else load
            known[identity] = boxed_loader(sample, by_id, ends, its_masks)(anno_id)
        return known[identity]

    return track


# ---------------------------------------------------------------- expressions


def _fill(sample: Sample, expressions: dict, kind: str, tracks: Callable, ends: str, file: str) -> Iterator[Reject]:
    """Adds expressions and their objects to the sample; yields what was skipped."""
    index_of: dict[tuple[Identity, tuple[Identity | None, ...]], int] = {}
    for key, record in expressions.items():
        try:
            text = _text(sample, record, kind, ends)
            meant = _switched(sample, record) if kind == "switch" else [_target(record)] * len(sample.annotated)
            identities = dict.fromkeys(who for who in meant if who is not None)
            new = {(who, tuple(meant)): None for who in identities if (who, tuple(meant)) not in index_of}
            composed = [_composed(sample, who, meant, tracks) for who, _ in new]
            if not any(_is_there(thing) for thing in composed) and len(new) == len(identities):
                first, last = sample.annotated[0], sample.annotated[-1]
                raise ValueError(f"its target is on none of the frames {first} to {last}")
            index_of |= {key: len(sample.objects) + number for number, key in enumerate(new)}
            sample.objects += composed
            targets = [index_of[who, tuple(meant)] for who in identities]
            sample.expressions.append(Expression(text, targets, kind))
        except ValueError as error:
            yield Reject(f"{sample.id}/expression {key}", str(error), file)
    _drop_unknown_frames(sample)


def _text(sample: Sample, record: Any, kind: str, ends: str) -> str:
    expect_keys(record, {"exp": str}, "the expression")
    form = r"(left|right)most" if kind == "switch" else r"(left|right)_([1-9]\d*)"
    match = re.fullmatch(form, record["exp"])
    if not match:
        wanted = "leftmost or rightmost" if kind == "switch" else "left_N or right_N with N from 1"
        raise ValueError(f"'exp' must be {wanted}, got {record['exp']!r:.80}")
    if kind == "switch":
        return extreme_phrase(match[1])
    if kind == "absolute":
        return absolute_phrase(int(match[2]), match[1])
    expect_keys(record, {"reference_obj": dict}, "the expression")
    expect_keys(record["reference_obj"], {"ref_box": list}, "'reference_obj'")
    try:
        box = pixel_box(record["reference_obj"]["ref_box"], sample.height, sample.width, ends)
    except ValueError as error:
        raise ValueError(f"'ref_box': {error}") from error
    return relative_phrase(int(match[2]), match[1], box_name(box, sample.width, sample.height))


def _target(record: dict) -> Identity:
    targets = record.get("target_objs")
    if not isinstance(targets, list) or len(targets) != 1:
        raise ValueError(f"'target_objs' must be a list of one object, got {targets!r:.80}")
    return _identity(targets[0], "'target_objs'")


def _identity(record: Any, name: str) -> Identity:
    expect_keys(record, {"anno_id": (str, int), "obj_id": (str, int)}, name)
    return str(record["anno_id"]), str(record["obj_id"])


def _switched(sample: Sample, record: dict) -> list[Identity | None]:
    """Who is meant on each annotated frame; None before the first switch."""
    switches = record.get("switches")
    if not isinstance(switches, list) or not switches:
        raise ValueError(f"'switches' must be a non-empty list, got {switches!r:.80}")
    stems = [Path(frame).stem for frame in sample.frames]
    starts: list[int] = []
    for number, switch in enumerate(switches):
        expect_keys(switch, {"start_frame": str}, f"switch {number}")
        if (stem := Path(switch["start_frame"]).stem) not in stems:
            raise ValueError(f"switch {number}: there is no frame {switch['start_frame']!r}")
        starts.append(stems.index(stem))
    if any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"the start frames of 'switches' must rise, they are frames {starts}")
    identities = [_identity(switch, f"switch {number}") for number, switch in enumerate(switches)]
    begun = [sum(start <= frame for start in starts) for frame in sample.annotated]
    return [identities[count - 1] if count else None for count in begun]


def _composed(
    sample: Sample, who: Identity, meant: Sequence[Identity | None], tracks: Callable[[Identity], Object]
) -> Object:
    """An object on the annotated frames on which it is meant; where another one is meant it counts as absent."""
    track, empty = tracks(who), masks.empty(sample.height, sample.width)
    absent = (ABSENT_BOX, None if all(rle is None for rle in track.masks) else empty)
    known = [
        (None, None) if one is None else (track.boxes[frame], track.masks[frame]) if one == who else absent
        for one, frame in zip(meant, sample.annotated, strict=True)
    ]
    return Object([rle for _, rle in known], [box for box, _ in known])


def _is_there(thing: Object) -> bool:
    return any(box is not None and box != ABSENT_BOX for box in thing.boxes)


def _drop_unknown_frames(sample: Sample) -> None:
    """Leaves out annotated frames on which nothing is known of any object."""
    kept = [
        at for at in range(len(sample.annotated)) if any(instance.boxes[at] is not None for instance in sample.objects)
    ]
    sample.annotated = [sample.annotated[at] for at in kept]
    for instance in sample.objects:
        instance.masks, instance.boxes = [instance.masks[at] for at in kept], [instance.boxes[at] for at in kept]
