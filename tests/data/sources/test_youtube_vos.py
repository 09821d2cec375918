"""YouTube-VOS: a category per object, and masks only from where the object was looked for.

Run: pytest tests/data/sources/test_youtube_vos.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 12, 6
FRAMES = ["00000", "00005", "00010"]
ABSENT = masks.empty(HEIGHT, WIDTH)
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]


def ids(*spots):
    picture = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for value, x in spots:
        picture[2:4, x : x + 2] = value
    return picture


def square(x):
    return masks.encode(ids((1, x)) == 1)


def thing(category, *frames):
    return {"category": category, "frames": [FRAMES[at] for at in frames]}


def write(root, objects, pictures, video="zoo", split="train"):
    """pictures: of each frame, None where there is no mask picture."""
    base = root / split
    for folder in ("JPEGImages", "Annotations"):
        (base / folder / video).mkdir(parents=True, exist_ok=True)
    for name, picture in zip(FRAMES, pictures, strict=True):
        Image.new("RGB", (WIDTH, HEIGHT)).save(base / f"JPEGImages/{video}/{name}.jpg")
        if picture is not None:
            image = Image.fromarray(picture, "P")
            image.putpalette(PALETTE)
            image.save(base / f"Annotations/{video}/{name}.png")
    file = base / "meta.json"
    content = json.loads(file.read_text()) if file.is_file() else {"videos": {}}
    content["videos"][video] = {"objects": objects} if isinstance(objects, dict) else objects
    file.write_text(json.dumps(content))
    return root


def read(root, split="train", **options):
    records = list(SOURCES["youtube_vos"](root, split, **options))
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


PICTURES = [ids((1, 0)), ids((1, 1), (2, 5)), ids((2, 6), (3, 9))]


def test_a_video_becomes_exactly_this_sample(tmp_path):
    objects = {"1": thing("giant_panda", 0, 1, 2), "2": thing("giant_panda", 1, 2), "3": thing("ape", 2)}
    (sample,), rejects = read(write(tmp_path, objects, PICTURES))
    assert not rejects
    assert sample == Sample(
        "zoo",
        "referring",
        WIDTH,
        HEIGHT,
        frames=[str(tmp_path / f"train/JPEGImages/zoo/{name}.jpg") for name in FRAMES],
        num_frames=3,
        annotated=[0, 1, 2],
        objects=[
            Object([square(0), square(1), ABSENT], [None] * 3, "giant panda"),  # looked for on 00010, and not there
            Object([None, square(5), square(6)], [None] * 3, "giant panda"),  # appears later: nobody looked before
            Object([None, None, square(9)], [None] * 3, "ape"),
        ],
        expressions=[Expression("every giant panda", [0, 1], "category"), Expression("ape", [2], "category")],
        source="youtube_vos",
    )


def test_valid_has_a_picture_where_an_object_first_appears(tmp_path):
    objects = {"1": thing("ape", 0, 1, 2), "2": thing("others", 1, 2)}
    root = write(tmp_path, objects, [ids((1, 0)), ids((2, 5)), None], split="valid")
    (sample,), rejects = read(root, "valid")
    assert not rejects and sample.num_frames == 3 and sample.annotated == [0, 1]
    assert [one.category for one in sample.objects] == ["ape", None]  # "others" says nothing
    assert sample.expressions == [Expression("ape", [0], "category")]


@pytest.mark.parametrize(
    ("objects", "where", "reason"),
    [
        ({"1": thing("ape", 0), "2": {"category": "ape"}}, "zoo/object 2", "object 2 has no 'frames'"),
        ({"1": thing("ape", 0), "2": {"category": 3, "frames": []}}, "zoo/object 2", "'category' must be str, got 3"),
        ({"1": thing("ape", 0), "2": thing("ape") | {"frames": ["a"]}}, "zoo/object 2", "'frames' must be numbers"),
        ({"1": thing("ape", 0), "2": thing("ape", 1), "9": thing("ape", 1)}, "zoo/object 9", "has no pixels on any"),
        ({"1": thing("ape", 0)}, "zoo/object 2", "it has pixels but is not in meta.json"),
    ],
)
def test_a_bad_object_is_rejected_and_the_others_stay(tmp_path, objects, where, reason):
    (sample,), (reject,) = read(write(tmp_path, objects, [ids((1, 0)), ids((1, 1), (2, 5)), None]))
    assert sample.objects[0].masks[0] == square(0)
    assert reject.id == where and reason in reject.reason


def test_a_bad_video_is_rejected_and_the_others_stay(tmp_path):
    objects = {"1": thing("ape", 0)}
    root = write(tmp_path, objects, [ids((1, 0)), None, None])
    write(root, ["not a dict"], [ids((1, 0)), None, None], video="listed")
    write(root, objects, [None, None, None], video="unmasked")
    (root / "train/Annotations/unknown").mkdir()
    samples, rejects = read(root)
    assert [sample.id for sample in samples] == ["zoo"]
    reasons = {reject.id: reject.reason for reject in rejects}
    assert reasons.pop("unknown") == "it has a folder of masks but is not in meta.json"
    assert "video listed must be a dict with objects, got list" in reasons.pop("listed")
    assert "there are no frames in" in reasons.pop("unmasked") and not reasons


def test_missing_or_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="meta.json not found; looked for .*train/meta.json"):
        read(tmp_path)
    (tmp_path / "meta.json").write_text('{"videos": {}}')
    with pytest.raises(ValueError, match="must have a dict 'videos' with at least one video"):
        read(tmp_path)
    (tmp_path / "meta.json").write_text('{"videos": {"zoo": {}}}')
    with pytest.raises(ValueError, match="no folders of frames and of masks"):
        read(tmp_path)


def test_the_shaped_meta_file_fits_its_masks(shared_data):
    options = {
        "frames": shared_data / "davis/JPEGImages/480p",
        "meta": shared_data / "shaped/ref_ytvos/train/meta.json",
    }
    options["annotations"] = shared_data / "shaped/davis17_like/Annotations/480p"
    samples, rejects = read(shared_data / "shaped/ref_ytvos", **options)
    videos = json.loads(options["meta"].read_text())["videos"]
    rejected = {reject.id.split("/")[0] for reject in rejects}
    assert samples and {sample.id for sample in samples} | rejected == {*videos, *rejected}
    for sample in samples:
        assert len(sample.objects) == len(videos[sample.id]["objects"])
