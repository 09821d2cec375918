"""Ref-SAV: long phrases for the objects of SA-V's training videos (https://github.com/bytedance/Sa2VA).

    ROOT/Ref-SAV.json       {"sav_000001": {"video_path": "sav_000/sav_train/sav_000/sav_000001.mp4",
                             "anno_path": "sav_000/sav_train/sav_000/sav_000001_manual.json",
                             "objects": {"0": {"obj_id": 0, "formated": TEXT}}}}
    ROOT/sav_train/sav_000/sav_000001.mp4, sav_000001_manual.json, ...      SA-V itself, see `sav`

"formated" is how the file spells it. Its paths have a leading "sav_000/" that SA-V's own folders have not: both are
looked for. The masks belong to every 4th frame of the video; `sav` holds the rule. The evaluation part of Ref-SAV has
another form: the source "ref_sav_eval".
"""

from collections.abc import Iterator
from pathlib import Path

from sa2va_hf.data.schema import Expression, Reject, Sample
from sa2va_hf.data.sources.files import annotation_file, expect_keys, first_existing, keep_split, read_json
from sa2va_hf.data.sources.sav import read_masklets

ADVICE = "take 'train'; the evaluation part is the source ref_sav_eval"


def ref_sav(
    root: Path | str,
    split: str,
    *,
    annotations: Path | str | None = None,
    frames: Path | str | None = None,
    val_fraction: float = 0.0,
) -> Iterator[Sample | Reject]:
    """One sample per video with the objects that have a phrase.

    annotations: the file, where it is elsewhere. frames: see `sav`. val_fraction: share of the videos that is split
    "val" (see `keep_split`). Raises ValueError when the file is missing or not of this form.
    """
    root = Path(root)
    path = annotation_file(root, annotations, [root / "Ref-SAV.json"])
    videos = read_json(path, dict)
    chosen = keep_split(videos, split, val_fraction, ADVICE)
    for video, record in videos.items():
        if video not in chosen:
            continue
        try:
            expect_keys(record, {"anno_path": str, "objects": dict}, f"video {video}")
            places = [root / record["anno_path"], root / record["anno_path"].partition("/")[2]]
            file = first_existing(places, "its masklets", "anno_path is relative to ROOT")
            clip, problems = read_masklets(file, None if frames is None else Path(frames))
        except ValueError as error:
            yield Reject(f"ref_sav/{video}", str(error), str(path))
            continue
        instances, clip.objects = clip.objects, []
        clip.id, clip.source = f"ref_sav/{video}", "ref_sav"
        for key, entry in record["objects"].items():
            try:
                expect_keys(entry, {"obj_id": int, "formated": str}, f"object {key}")
                number, text = entry["obj_id"], entry["formated"].strip()
                if not text.strip(" ."):
                    raise ValueError(f"'formated' must be a non-empty text, got {text!r}")
                if not 0 <= number < len(instances):
                    raise ValueError(f"obj_id {number} is not among the {len(instances)} masklets of {file}")
                if instances[number] is None:
                    raise ValueError(f"masklet {number} of {file}: {problems[number]}")
                clip.expressions.append(Expression(text, [len(clip.objects)]))
                clip.objects.append(instances[number])
            except ValueError as error:
                yield Reject(f"{clip.id}/object {key}", str(error), str(path))
        if clip.expressions:
            yield clip
