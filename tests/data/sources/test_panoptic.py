"""COCO panoptic: ids in colours, areas that must be right, things and stuff.

Run: pytest tests/data/sources/test_panoptic.py      (SA2VA_TEST_DATA adds another project's files of this form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Reject, Sample, validate
from sa2va_hf.data.sources.panoptic import panoptic

DOG, BRICK, WALL, SKY = 18, 171, 199, 187
CATEGORIES = [
    {"id": DOG, "name": "dog", "isthing": 1, "supercategory": "animal"},
    {"id": BRICK, "name": "wall-brick", "isthing": 0, "supercategory": "wall"},
    {"id": WALL, "name": "wall-other-merged", "isthing": 0, "supercategory": "wall"},
    {"id": SKY, "name": "sky-other-merged", "isthing": 0, "supercategory": "sky"},
]
IDS = np.array([[0, 7, 7, 7], [300, 300, 70000, 70000], [300, 300, 70000, 255], [9, 9, 9, 9]])
SEGMENTS = {7: DOG, 300: WALL, 70000: DOG, 255: BRICK, 9: SKY}


def segments(**changes):
    """The records of IDS; changes: of segment 7."""
    records = []
    for value, category in SEGMENTS.items():
        y, x = np.nonzero(value == IDS)
        box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
        records.append({"id": value, "category_id": category, "area": len(x), "bbox": box, "iscrowd": 0})
    return [record | (changes if record["id"] == 7 else {}) for record in records]


def write(root, records, ids=IDS, categories=CATEGORIES, size=(4, 4), mode="RGB"):
    for folder in ("annotations/panoptic_val2017", "val2017"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / "val2017/a.jpg")
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).convert(mode).save(root / "annotations/panoptic_val2017/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": records}],
        "categories": categories,
    }
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return root


def read(root, split="val", **options):
    records = list(panoptic(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_things_are_counted_and_stuff_is_one(tmp_path):
    (sample,), rejects = read(write(tmp_path, segments()))
    assert not rejects
    assert (sample.id, sample.task, sample.source) == ("1", "referring", "coco_panoptic")
    assert sample.frames == [str(tmp_path / "val2017/a.jpg")] and (sample.width, sample.height) == (4, 4)
    assert sample.expressions == [
        Expression("every dog", [0, 2], "category"),
        Expression("wall", [1, 3], "category"),  # of bricks and of anything else
        Expression("sky", [4], "category"),
    ]
    for value, thing in zip(SEGMENTS, sample.objects, strict=True):
        assert (masks.decode(thing.masks[0]) == (value == IDS)).all()
        assert thing.boxes == [masks.mask_to_box(value == IDS)]
    assert [thing.category for thing in sample.objects] == ["dog", "wall", "dog", "wall", "sky"]
    assert (masks.decode(sample.ignore[0]) == (IDS == 0)).all()


def test_one_thing_a_crowd_and_phrases(tmp_path):
    one = np.where(IDS == 70000, 300, IDS)
    records = [record for record in segments() if record["id"] != 70000]
    records[1]["area"] = 7
    (sample,), _ = read(write(tmp_path, records, one), one="the {}")
    assert [one.text for one in sample.expressions] == ["the dog", "the wall", "the sky"]
    records[0]["iscrowd"] = 1
    (sample,), _ = read(write(tmp_path, records, one))
    assert sample.expressions[0] == Expression("every dog", [0], "category")
    with pytest.raises(ValueError, match="option one must contain {}"):
        read(tmp_path, one="it")


BAD = [
    ({"area": 4}, "its area is 4, but the PNG has 3 pixels of it"),
    ({"id": 8}, "no pixel of the PNG has the id 8"),
    ({"id": 0}, "no pixel of the PNG has the id 0"),
    ({"id": "7"}, "segments_info[0]: 'id' must be int, got '7'"),
    ({"category_id": 5}, "its category_id 5 is not, or more than once, among the categories"),
    ({"category_id": None}, "segments_info[0]: 'category_id' must be int, got None"),
    ({"area": "3"}, "'area' must be int or float, got '3'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_segment_is_rejected_and_its_pixels_do_not_count(tmp_path, changes, message):
    (sample,), rejects = read(write(tmp_path, segments(**changes)))
    assert message in "; ".join(one.reason for one in rejects)
    assert rejects[0].file == str(tmp_path / "annotations/panoptic_val2017.json")
    assert len(sample.objects) == 4
    ignored = masks.decode(sample.ignore[0])
    assert ignored[0].all() and not ignored[1:].any()


def test_a_segment_given_twice_is_rejected_because_it_is_not_known_which_is_meant(tmp_path):
    (sample,), rejects = read(write(tmp_path, segments()[:-1] + segments()[:1]))
    reasons = ["segment id 7 occurs twice", "4 pixels belong to segment 9, which is not in segments_info"]
    twice = f"{reasons[0]}; so 'dog' is not asked for in this picture"
    assert [one.reason for one in rejects] == [twice, twice, reasons[1]]
    assert not [one for one in sample.expressions if "dog" in one.text]
    assert len(sample.objects) == 3 and masks.area(sample.ignore[0]) == 1 + 3 + 4


def test_pixels_of_a_segment_that_is_not_listed(tmp_path):
    (sample,), (reject,) = read(write(tmp_path, segments()[1:]))
    assert (reject.id, reject.reason) == ("1/segment 7", "3 pixels belong to segment 7, which is not in segments_info")
    assert masks.area(sample.ignore[0]) == 4


def test_a_picture_that_cannot_be_used_is_one_reject(tmp_path):
    (reject,) = read(write(tmp_path, segments(), ids=IDS[:3]))[1]
    assert "a.png is 4 x 3 (width x height) but its photo is 4 x 4" in reject.reason
    (reject,) = read(write(tmp_path, segments(), mode="P"))[1]
    assert "a.png must be a PNG of mode RGB, whose colours are numbers, got a PNG of mode P" in reject.reason
    (tmp_path / "annotations/panoptic_val2017/a.png").unlink()
    assert "image a.png not found; looked in" in read(tmp_path)[1][0].reason
    (tmp_path / "val2017/a.jpg").unlink()
    assert "image a.jpg not found; looked in" in read(tmp_path)[1][0].reason


@pytest.mark.parametrize(("content", "message"), [
    ("[]", "must hold a dict at its top level, got a list"),
    ('{"images": [], "annotations": {}}', "must have a list 'annotations'; it has annotations, images"),
    ('{"images": [{}], "annotations": [], "categories": []}', r"images\[0\] has no 'id'"),
])  # fmt: skip
def test_a_bad_file_raises(tmp_path, content, message):
    write(tmp_path, [])
    (tmp_path / "annotations/panoptic_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    with pytest.raises(ValueError, match="the annotation file not found; looked for .*panoptic_train2017.json"):
        read(tmp_path, "train")


def test_files_of_another_project(shared_data):
    root = shared_data / "datumaro_fixtures/coco_dataset/coco_panoptic"
    (sample,), rejects = read(root, "val")
    stated = json.loads((root / "annotations/panoptic_val.json").read_text())["annotations"][0]["segments_info"]
    areas = {one["id"]: one["area"] for one in stated}
    assert not rejects and [masks.area(thing.masks[0]) for thing in sample.objects] == list(areas.values())
    assert [one.text for one in sample.expressions] == ["a", "b"] and masks.area(sample.ignore[0]) == 10
    samples, (reject,) = read(root, "train")  # its PNG is a square, its picture is not
    assert not samples and "a.png is 5 x 5 (width x height) but its photo is 10 x 5" in reject.reason
