"""VidSTG (https://github.com/Guaranteer/VidSTG-Dataset): sentences and questions about relations in VidOR's videos.

    ROOT/test_annotations.json              train, val, test; also in annotations/ or sent_annos/
        [{"vid": "10712559773", "frame_count": 596, "width": 640, "height": 360,
          "used_segment": {"begin_fid": 496, "end_fid": 595}, "temporal_gt": {"begin_fid": 510, "end_fid": 556},
          "captions": [{"description": TEXT, "target_id": 2}], "questions": [{"description": TEXT, "target_id": 2}]}]
    ROOT/.../10712559773.json               VidOR's annotation, anywhere below ROOT
        {"trajectories": [[{"tid": 2, "bbox": {"xmin", "ymin", "xmax", "ymax"}}, ...], one list per frame]}
    ROOT/.../10712559773.mp4                likewise, or frames

Frames count from 0. A segment of a video, to its "end_fid" and with it, is a clip; the tube ends before its "end_fid".
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.clips import given_path
from sa2va_hf.data.sources.files import annotation_file, expect_keys, read_json
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.data.sources.video_tubes import ClipPlaces, Footage, check_size, check_step, open_footage, tube

FILES = ("{split}_annotations.json", "annotations/{split}_annotations.json", "sent_annos/{split}_annotations.json")
KINDS = {"captions": "declarative", "questions": "interrogative"}  # which are scored apart
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@in_portions
def vidstg(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    vidor: Path | str | None = None,
    videos: Path | str | None = None,
    frames: Path | str | None = None,
    step: int = 1,
) -> Iterator[Sample | Reject | Portion]:
    """One sample per segment, with its sentences (kind "declarative") and its questions ("interrogative"). Outside of
    the time that they are about, what they mean counts as absent.

    A segment that is a part of its video needs `frames`. annotations, vidor, videos: the file, the folder of VidOR's
    annotations and that of its videos, where they lie elsewhere. frames, step: see `hc_stvg`. Raises ValueError when
    the file is missing or not of this form.
    """
    check_step(step)
    root = Path(root)
    path = annotation_file(root, annotations, [root / name.format(split=split) for name in FILES])
    folder = root if vidor is None else given_path(root, vidor, "the folder of VidOR's annotations")
    trajectories = {file.stem: file for file in files_below(folder, "*.json")}
    places = ClipPlaces(root, videos, frames)
    by_video: dict[str, list[tuple[str, dict]]] = {}
    for number, record in enumerate(read_json(path, list)):
        name = f"vidstg/record {number}"
        try:
            expect_keys(record, {"vid": str}, "it")
            by_video.setdefault(record["vid"], []).append((f"vidstg/{record['vid']}/{number}", record))
        except ValueError as error:
            yield Reject(name, str(error), str(path))
    for video, records in by_video.items():
        try:
            if video not in trajectories:
                raise ValueError(
                    f"VidOR's annotation {video}.json was not found below {folder}: name it with vidor=DIR"
                )
            yield partial(_of_video, records, places.find(video), trajectories[video], step, str(path))
        except ValueError as error:
            yield from (Reject(name, str(error), str(path)) for name, _ in records)


def _of_video(
    records: list[tuple[str, dict]], place: Path, trajectories: Path, step: int, path: str
) -> Iterator[Sample | Reject]:
    """The samples of the segments of one video."""
    try:
        footage = open_footage(place, step)
        content = read_json(trajectories, dict)
        expect_keys(content, {"trajectories": list}, str(trajectories))
    except ValueError as error:
        yield from (Reject(name, str(error), path) for name, _ in records)
        return
    for name, record in records:
        try:
            sample, rejects = _segment(name, record, footage, content["trajectories"], path)
        except ValueError as error:
            yield Reject(name, str(error), path)
            continue
        yield from rejects
        if sample.expressions:
            yield sample


def _segment(name: str, record: dict, footage: Footage, trajectories: list, path: str) -> tuple[Sample, list[Reject]]:
    """A sample with those expressions that can be used, and rejects of the others."""
    keys = {"width": int, "height": int, "frame_count": int, "used_segment": dict, "temporal_gt": dict}
    expect_keys(record, keys | dict.fromkeys(KINDS, list), "it")
    check_size(footage, record["width"], record["height"])
    first, last = _span(record, "used_segment")
    begin, end = _span(record, "temporal_gt")
    if not first <= begin < end <= last + 1 <= record["frame_count"] + 1:
        raise ValueError(
            f"'temporal_gt', {begin} to {end}, must lie in 'used_segment', {first} to {last}, and that in the "
            f"{record['frame_count']} frames of its video"
        )
    if last + 1 >= record["frame_count"]:  # to the end, whose number decoders do not agree about
        last = max(last, footage.numbers[-1])
    sample, rejects, objects = footage.sample(name, "vidstg", first, last), [], {}
    for kind, number, entry in _sentences(record):
        try:
            expect_keys(entry, {"description": str, "target_id": int}, "it")
            if not (text := entry["description"].strip()).strip(" .?"):
                raise ValueError(f"'description' must be a non-empty text, got {entry['description']!r}")
            target = entry["target_id"]
            if target not in objects:
                boxes = _boxes(trajectories, target, begin, end)
                sample.objects.append(tube(footage, first, last, boxes, "xyxy"))
                objects[target] = len(objects)
            sample.expressions.append(Expression(text, [objects[target]], KINDS[kind]))
        except ValueError as error:
            rejects.append(Reject(f"{name}/{kind} {number}", str(error), path))
    return sample, rejects


def _sentences(record: dict) -> Iterator[tuple[str, int, Any]]:
    for kind in KINDS:
        for number, entry in enumerate(record[kind]):
            yield kind, number, entry


def _span(record: dict, key: str) -> tuple[int, int]:
    expect_keys(record[key], {"begin_fid": int, "end_fid": int}, f"{key!r}")
    return record[key]["begin_fid"], record[key]["end_fid"]


def _boxes(trajectories: list, target: int, begin: int, end: int) -> dict[int, list]:
    """The boxes of an object on the frames from `begin` up to `end`. ValueError when a frame has none."""
    if end > len(trajectories):
        raise ValueError(f"'temporal_gt' ends at frame {end}, but VidOR has boxes of {len(trajectories)} frames")
    found = {}
    for number in range(begin, end):
        entries = trajectories[number]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"frame {number} of VidOR's 'trajectories' must be a list of dicts, got {entries!r:.80}")
        box = next((entry.get("bbox") for entry in entries if entry.get("tid") == target), None)
        if not isinstance(box, dict):
            raise ValueError(f"VidOR has no box of its target {target} on frame {number}, which 'temporal_gt' has")
        found[number] = [box.get(corner) for corner in CORNERS]
    return found
