"""HC-STVG and VidSTG: which frames a tube has, whichever way the clip is stored, and whose box is on which frame.

The laws of every source hold for them too (test_every_source.py). Run: pytest tests/data/sources/test_video_tubes.py
"""

import json

import numpy as np
import pytest
from on_disk import change
from PIL import Image

from sa2va_hf.boxes import ABSENT_BOX
from sa2va_hf.data.schema import Expression, Reject
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 16, 12


def draw_frames(folder, count, first=0, size=(WIDTH, HEIGHT)):
    """FOLDER/00000.jpg, ..., counted from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (10 * number,) * 3).save(folder / f"{first + number:05d}.jpg")


def person(start=2, count=3, frames=6, **changes):
    """A record of HC-STVG: the box moves a pixel to the right per frame."""
    boxes = [[number, 1, 4, 5] for number in range(count)]
    sizes = {"width": WIDTH, "height": HEIGHT, "img_num": frames}
    return {"bbox": boxes, "st_frame": start, "st_time": 0.1, "ed_time": 1.0, "caption": "He runs."} | sizes | changes


def write_hc_stvg(root, videos, file="train.json"):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(videos))


def segment(video="7", first=0, last=5, begin=1, end=4, frames=6, **changes):
    """A record of VidSTG about what `write_vidor` writes."""
    spans = {"used_segment": {"begin_fid": first, "end_fid": last}}
    spans["temporal_gt"] = {"begin_fid": begin, "end_fid": end}
    said = {"captions": [{"description": "A child waves.", "type": "person", "target_id": 2}]}
    said["questions"] = [{"description": "what does it hold?", "type": "object", "target_id": 0}]
    sizes = {"width": WIDTH, "height": HEIGHT, "frame_count": frames, "fps": 25}
    return {"vid": video, "subject/objects": [{"tid": 0, "category": "cup"}]} | spans | said | sizes | changes


def write_vidor(root, video="7", frames=6):
    """Object 0 keeps its place, object 2 moves a pixel to the right per frame."""

    def entry(tid, x):
        corners = {"xmin": x, "ymin": 1, "xmax": x + 4, "ymax": 6}
        return {"tid": tid, "bbox": corners, "generated": 0, "tracker": "none"}

    file = root / f"vidor/training/0000/{video}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [[entry(2, number), entry(0, 8)] for number in range(frames)]
    file.write_text(json.dumps({"video_id": video, "frame_count": frames, "trajectories": rows}))


def write_vidstg(root, *records, file="train_annotations.json"):
    (root / file).write_text(json.dumps(records))


def moving(*numbers, count):
    """Boxes of `count` frames, where frame n has the box that is n pixels to the right for each of these numbers."""
    found = [ABSENT_BOX] * count
    for place, x in numbers:
        found[place] = (float(x), 1.0, x + 4.0, 6.0)
    return found


def only(name, root, **options):
    (found,) = SOURCES[name](root, "train", **options)
    assert not isinstance(found, Reject), found
    return found


@pytest.mark.parametrize("first", [0, 1])  # ffmpeg counts from 1
def test_st_frame_counts_from_one_whatever_the_pictures_count_from(tmp_path, first):
    write_hc_stvg(tmp_path, {"a.mp4": person(start=2, count=3)})
    draw_frames(tmp_path / "frames/a", 6, first)
    sample = only("hc_stvg", tmp_path, frames="frames")
    assert sample.objects[0].boxes == moving((1, 0), (2, 1), (3, 2), count=6)
    assert sample.annotated == list(range(6)) and sample.expressions == [Expression("He runs.", [0])]


def test_every_second_frame_was_saved(tmp_path):
    write_hc_stvg(tmp_path, {"a.mp4": person(start=2, count=4)})
    draw_frames(tmp_path / "frames/a", 3, first=1)
    sample = only("hc_stvg", tmp_path, frames="frames", step=2)  # frames 0, 2 and 4 of the video
    assert sample.objects[0].boxes == moving((1, 1), (2, 3), count=3)


def test_the_second_version_has_other_names(tmp_path):
    record = person(img_size=[HEIGHT, WIDTH], English="She sits.", Chinese="-")
    for key in ("caption", "width", "height"):
        del record[key]
    write_hc_stvg(tmp_path, {"a.mkv": record}, "anno_v2/train_v2.json")
    draw_frames(tmp_path / "frames/a", 6)
    sample = only("hc_stvg", tmp_path, frames="frames", version=2)
    assert (sample.width, sample.height, sample.expressions[0].text) == (WIDTH, HEIGHT, "She sits.")
    with pytest.raises(ValueError, match="version must be 1 or 2"):
        list(SOURCES["hc_stvg"](tmp_path, "train", version=3))


def test_a_segment_ends_with_its_last_frame_and_a_tube_before_it(tmp_path):
    write_vidor(tmp_path)
    write_vidstg(tmp_path, segment(first=1, last=4, begin=2, end=4))
    draw_frames(tmp_path / "frames/7", 6)
    sample = only("vidstg", tmp_path, frames="frames")
    child, cup = (one.boxes for one in sample.objects)
    assert child == moving((1, 2), (2, 3), count=4)  # frames 2 and 3 of the video, on a clip of frames 1 to 4
    assert cup == moving((1, 8), (2, 8), count=4)
    assert [np.asarray(Image.open(frame))[0, 0, 0] // 10 for frame in sample.frames] == [1, 2, 3, 4]
    assert sample.expressions == [
        Expression("A child waves.", [0], "declarative"),
        Expression("what does it hold?", [1], "interrogative"),
    ]


def test_a_sentence_about_what_has_no_box_is_refused_alone(tmp_path):
    write_vidor(tmp_path)
    write_vidstg(tmp_path, segment(end=5), segment(begin=4, end=5))
    change(tmp_path / "vidor/training/0000/7.json", lambda content: content["trajectories"][2].pop(0))
    draw_frames(tmp_path / "frames/7", 6)
    found = list(SOURCES["vidstg"](tmp_path, "train", frames="frames"))
    reject = next(one for one in found if isinstance(one, Reject))
    first, second = (one for one in found if one is not reject)
    assert [one.text for one in first.expressions] == ["what does it hold?"] and len(second.expressions) == 2
    assert reject.id == "vidstg/7/0/captions 0" and "no box of its target 2 on frame 2" in reject.reason
