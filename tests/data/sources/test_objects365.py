"""Objects365: boxes become objects without masks, synonyms become phrases of their own.

Run: pytest tests/data/sources/test_objects365.py      (SA2VA_TEST_DATA adds records of the genuine file)
"""

import json
import shutil

import pytest
from PIL import Image

from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.objects365 import objects365

NAMES = {1: "Person", 38: "Moniter/TV", 49: "Barrel/bucket", 7: "Bottle"}
V2 = ("annotations/zhiyuan_objv2_train.json", "images/v2/patch50/objects365_v2_02278994.jpg")
V1 = ("objects365_train.json", "obj365_train_000000000010.jpg")


def annotation(number, category_id, bbox, **changes):
    own = {"id": number, "iscrowd": 0, "isfake": 0, "isreflected": 0, "image_id": 9, "category_id": category_id}
    return own | {"area": 1.5, "bbox": bbox} | changes


def write(root, annotations, form=V2, at="train/patch50/objects365_v2_02278994.jpg"):
    file, file_name = form
    picture = {"id": 9, "width": 40, "height": 30, "file_name": file_name, "license": 5, "url": ""}
    content = {"images": [picture], "annotations": annotations}
    content["categories"] = [{"id": key, "name": name} for key, name in NAMES.items()]
    for path in (root / file, root / at):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    Image.new("RGB", (40, 30)).save(root / at)
    return root


def read(root, split="train", **options):
    records = list(objects365(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_the_exact_sample(tmp_path):
    write(
        tmp_path,
        [
            annotation(1, 1, [2.5, 3, 10, 20]),
            annotation(2, 38, [-0.25, -0.5, 8.25, 4.5]),
            annotation(3, 1, [30, 10, 10.2, 20.3], isfake=1),
        ],
    )
    samples, rejects = read(tmp_path)
    assert not rejects
    assert samples == [
        Sample(
            id="9",
            task="referring",
            width=40,
            height=30,
            frames=[str(tmp_path / "train/patch50/objects365_v2_02278994.jpg")],
            objects=[
                Object([None], [(2.5, 3.0, 12.5, 23.0)], "Person"),
                Object([None], [(0.0, 0.0, 8.0, 4.0)], "Moniter/TV"),
                Object([None], [(30.0, 10.0, 40.0, 30.0)], "Person"),
            ],
            expressions=[
                Expression("every person", [0, 2], "category"),
                Expression("moniter", [1], "category"),
                Expression("tv", [1], "category"),
            ],
            source="objects365",
        )
    ]


def test_a_crowd_is_many_and_phrases_are_options(tmp_path):
    write(tmp_path, [annotation(1, 49, [2, 3, 10, 20], iscrowd=1), annotation(2, 7, [2, 3, 10, 20])])
    (sample,), _ = read(tmp_path, one="a {}", several="all {}s")
    assert [one.text for one in sample.expressions] == ["all barrels", "all buckets", "a bottle"]
    with pytest.raises(ValueError, match="option one must contain {}"):
        read(tmp_path, one="it")


@pytest.mark.parametrize(("form", "at"), [
    (V2, "images/train/patch50/objects365_v2_02278994.jpg"),
    (V2, "images/v2/patch50/objects365_v2_02278994.jpg"),
    (V2, "train/objects365_v2_02278994.jpg"),
    (V1, "train/obj365_train_000000000010.jpg"),
])  # fmt: skip
def test_the_places_of_pictures(tmp_path, form, at):
    write(tmp_path, [annotation(1, 1, [2, 3, 10, 20])], form, at)
    (sample,), rejects = read(tmp_path)
    assert not rejects and sample.frames == [str(tmp_path / at)]


BAD = [
    (annotation(5, 1, [2, 3, 0, 20]), "its box [2, 3, 0, 20] (xywh) is 0 x 20 pixels: no object"),
    (annotation(5, 1, [35, 3, 30, 20]), "is mostly out of its picture of 40 x 30"),
    (annotation(5, 1, [2, 3, 10]), "its box must be 4 numbers (xywh), got [2, 3, 10]"),
    (annotation(5, 1, [2, 3, float("nan"), 4]), "its box must be 4 numbers"),
    (annotation(5, 366, [2, 3, 4, 5]), "its category_id 366 has no name among the categories"),
    (annotation(5, 1, [2, 3, 4, 5], image_id=10), "its image_id 10 is not among the images"),
    ({"image_id": 9}, "its category_id None has no name among the categories"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_annotation_is_one_reject_and_the_rest_remains(tmp_path, bad, message):
    write(tmp_path, [annotation(1, 1, [2, 3, 10, 20]), bad, annotation(7, 7, [2, 3, 10, 20])])
    (sample,), (reject,) = read(tmp_path)
    assert len(sample.objects) == 2 and message in reject.reason
    assert reject.file == str(tmp_path / V2[0])


def test_a_missing_picture_is_a_reject(tmp_path):
    write(tmp_path, [annotation(1, 1, [2, 3, 10, 20])])
    shutil.rmtree(tmp_path / "train")
    samples, (reject,) = read(tmp_path)
    assert not samples and "image patch50/objects365_v2_02278994.jpg not found; looked in" in reject.reason


def test_a_bad_file_raises(tmp_path):
    with pytest.raises(ValueError, match="annotation file not found; looked for .*zhiyuan_objv2_val.json"):
        read(tmp_path, "val")
    write(tmp_path, [])
    (tmp_path / V2[0]).write_text("[]")
    with pytest.raises(ValueError, match="must hold a dict at its top level"):
        read(tmp_path)


def test_genuine_records(shared_data, tmp_path):
    file = shared_data / "shaped" / "objects365" / "annotations" / "zhiyuan_objv2_train.json"
    content = json.loads(file.read_text())
    for picture in content["images"]:
        path = tmp_path / "train" / "patch50" / picture["file_name"].split("/")[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (picture["width"], picture["height"])).save(path)
    samples, rejects = read(tmp_path, annotations=file)
    assert not rejects and [len(sample.objects) for sample in samples] == [4, 2]
    assert [(one.text, one.targets) for one in samples[0].expressions] == [
        ("barrel", [0]),
        ("bucket", [0]),
        ("every person", [1, 2]),
        ("moniter", [3]),
        ("tv", [3]),
    ]
    assert samples[0].objects[0].boxes == [(96.361145, 280.1018066506, 96.361145 + 149.09033205, 373.7610473608)]
