"""Spatio-temporal grounding: clips as video files, and as folders of frames."""

import json

import test_video_tubes as tubes
from fixtures_of_clips import write_video
from on_disk import Fixture, cut, drop, put, said, text, with_options

from sa2va_hf.data.schema import Object, Sample

SIZE = (tubes.WIDTH, tubes.HEIGHT)


def of_boxes(*boxes):
    """An object with these boxes and no masks."""
    return Object([None] * len(boxes), list(boxes))


def hc_stvg():
    file, videos = "train.json", ("55_a.mp4", "14_b.mp4")

    def make(root):
        records = (tubes.person(), tubes.person(start=1, count=6, caption=" The man sits down. "))
        tubes.write_hc_stvg(root, dict(zip(videos, records, strict=True)))
        for number, video in enumerate(videos):
            (root / f"v1_video/{number}").mkdir(parents=True)
            write_video(root / f"v1_video/{number}/{video}", SIZE, 6)

    def expected(root):
        first, second = (
            tubes.moving((1, 0), (2, 1), (3, 2), count=6),
            tubes.moving(*((n, n) for n in range(6)), count=6),
        )
        samples = []
        for number, (video, track, words) in enumerate(
            ((videos[0], first, "He runs."), (videos[1], second, "The man sits down."))
        ):
            place = {"video": str(root / f"v1_video/{number}/{video}"), "num_frames": 6}
            about = {"objects": [of_boxes(*track)], "expressions": said((words, 0)), "source": "hc_stvg"}
            samples.append(Sample(f"hc_stvg/{video.removesuffix('.mp4')}", "referring", *SIZE, **place, **about))
        return samples

    at = videos[0]
    return Fixture(
        make,
        expected,
        {
            "has no 'st_frame'": cut(file, at, "st_frame"),
            "frame 2: its box must be 4 numbers (xywh)": put(file, at, "bbox", 1, [1, 2, 3]),
            "its 3 boxes from frame 5 on are not within the 6 frames": put(file, at, "st_frame", 5),
            "'caption' must be a non-empty text": put(file, at, "caption", " ."),
            "its boxes are of a video of 16 x 720": put(file, at, "height", 720),
            "the video 55_a was not found below": drop("v1_video/0/55_a.mp4"),
        },
        {
            "train.json is not JSON": text(file, "{"),
            "the annotation file not found": drop(file),
            "option step must be a whole number": with_options(step=0),
        },
    )


def vidstg():
    file, trajectories = "train_annotations.json", "vidor/training/0000/7.json"

    def make(root):
        for video in ("7", "8"):
            tubes.write_vidor(root, video)
            tubes.draw_frames(root / "frames" / video, 6)
        second = tubes.segment("8", 2, 5, 2, 6, questions=[])
        tubes.write_vidstg(root, tubes.segment(), second)

    def sample(root, name, numbers, tracks, texts):
        frames = [str(root / f"frames/{name.split('/')[1]}/{number:05d}.jpg") for number in numbers]
        about = {"objects": [of_boxes(*track) for track in tracks], "expressions": texts, "source": "vidstg"}
        return Sample(name, "referring", *SIZE, frames=frames, **about)

    def expected(root):
        waves = said(("A child waves.", 0), kind="declarative")
        holds = said(("what does it hold?", 1), kind="interrogative")
        child, cup = (tubes.moving(*((n, x or n) for n in (1, 2, 3)), count=6) for x in (0, 8))
        alone = tubes.moving(*((n, n + 2) for n in range(4)), count=4)
        return [
            sample(root, "vidstg/7/0", range(6), [child, cup], waves + holds),
            sample(root, "vidstg/8/1", range(2, 6), [alone], waves),
        ]

    return Fixture(
        make,
        expected,
        {
            "VidOR has no box of its target 5 on frame 1": put(file, 0, "captions", 0, "target_id", 5),
            "frame 1: its box must be 4 numbers (xyxy)": put(trajectories, "trajectories", 1, 0, "bbox", "xmin", None),
            "'temporal_gt', 1 to 9, must lie in 'used_segment', 0 to 5": put(file, 0, "temporal_gt", "end_fid", 9),
            "it has no 'vid'": cut(file, 0, "vid"),
            "VidOR's annotation 7.json was not found below": drop(trajectories),
            "the folder of its frames was not found": drop("frames/7"),
        },
        {"the annotation file not found": drop(file), "must hold a list": text(file, json.dumps({"videos": []}))},
        options={"frames": "frames"},
    )


TUBES = {"hc_stvg": hc_stvg(), "vidstg": vidstg()}
