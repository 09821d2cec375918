"""COCO instances: categories become phrases, every annotation becomes pixels or a reject.

Run: pytest tests/data/sources/test_coco_json.py      (SA2VA_TEST_DATA adds genuine COCO files)
"""

import json
import logging
import re

import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources.coco_json import coco_json

SQUARE = [0, 0, 10, 0, 10, 10, 0, 10]


def annotation(number, image_id=1, category_id=3, **changes):
    shifted = [value + 2 * number for value in SQUARE]
    return {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": [shifted]} | changes


def write(root, annotations, file="annotations/instances_train.json", images="train", count=2, **tables):
    (root / images).mkdir(parents=True, exist_ok=True)
    pictures = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 50} for n in range(1, count + 1)]
    for picture in pictures:
        Image.new("RGB", (60, 50)).save(root / images / picture["file_name"])
    categories = [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}]
    content = {"images": pictures, "annotations": annotations, "categories": categories} | tables
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


def read(root, split="train", **options):
    records = list(coco_json(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_one_expression_per_category_and_several_objects_are_meant_together(tmp_path):
    write(tmp_path, [annotation(1), annotation(2, category_id=90), annotation(3), annotation(4, image_id=2)])
    (first, second), rejects = read(tmp_path)
    assert not rejects
    assert [(one.text, one.targets, one.kind) for one in first.expressions] == [
        ("every dog", [0, 2], "category"),
        ("cat", [1], "category"),
    ]
    assert [thing.category for thing in first.objects] == ["dog", "cat", "dog"]
    assert [masks.area(thing.masks[0]) for thing in first.objects] == [100] * 3
    assert [(one.text, one.targets) for one in second.expressions] == [("dog", [0])]


def test_phrases_are_options(tmp_path):
    write(tmp_path, [annotation(1), annotation(2), annotation(3, category_id=90)])
    (sample,), _ = read(tmp_path, one="a {}", several="all {}s")
    assert [one.text for one in sample.expressions] == ["all dogs", "a cat"]
    for wrong in ("all", {}):  # {} is what YAML makes of an unquoted {}
        with pytest.raises(ValueError, match="option several must contain {}"):
            read(tmp_path, several=wrong)


BRUSH = {"iscrowd": 1, "segmentation": {"size": [50, 60], "counts": [0, 500, 2500]}}


def test_a_crowd_belongs_to_every(tmp_path, caplog):
    """A file of an annotation tool may mean something else, so the option is named."""
    write(tmp_path, [annotation(1, **BRUSH), annotation(2, category_id=90)])
    with caplog.at_level(logging.INFO):
        (sample,), _ = read(tmp_path)
    assert "1 annotations have iscrowd 1 and are read as groups" in caplog.text and "crowd=single" in caplog.text
    assert [one.text for one in sample.expressions] == ["every dog", "cat"]
    assert masks.area(sample.objects[0].masks[0]) == 500


@pytest.mark.parametrize(("crowd", "phrase"), [("auto", "dog"), ("single", "dog"), ("group", "every dog")])
def test_where_every_annotation_is_a_crowd_it_says_how_the_mask_was_made(tmp_path, crowd, phrase):
    """CVAT gives iscrowd 1 to all masks that were painted with a brush."""
    write(tmp_path, [annotation(1, **BRUSH), annotation(2, category_id=90, image_id=2, **BRUSH)])
    first, _ = read(tmp_path, crowd=crowd)[0]
    assert [one.text for one in first.expressions] == [phrase]
    with pytest.raises(ValueError, match="option crowd must be one of auto, group, single, got 'no'"):
        read(tmp_path, crowd="no")


BAD = [
    (annotation(5, segmentation=[[1, 1, 5, 5]]), "annotation 5: polygon 0 has 2 points"),
    (annotation(5, segmentation=[]), "annotation 5 has no segmentation (a box alone is not enough)"),
    (annotation(5, segmentation=[[1, 1, 1.01, 1, 1, 1.01]]), "covers no pixel"),
    (annotation(5, segmentation={"size": [50, 60], "counts": "zz"}), "annotation 5: RLE garbage"),
    (annotation(5, segmentation={"size": [60, 50], "counts": [3000]}), "the mask is 50 x 60"),
    (annotation(5, category_id=4), "its category_id 4 has no name among the categories"),
    (annotation(5, image_id=77), "its image_id 77 is not among the images"),
    (annotation(5, image_id=[1]), "its image_id [1] is not among the images"),
    (annotation(5, category_id=[3]), "its category_id [3] has no name among the categories"),
    ("x", "annotations[1] must be a dict"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_annotation_is_one_reject_and_the_rest_remains(tmp_path, bad, message):
    write(tmp_path, [annotation(1), bad, annotation(2), annotation(3, category_id=90)])
    (sample,), (reject,) = read(tmp_path)
    assert len(sample.objects) == 3 and message in reject.reason
    assert reject.file == str(tmp_path / "annotations" / "instances_train.json")


@pytest.mark.parametrize("bad", [
    {"segmentation": []}, {"segmentation": [SQUARE, [32.0, 24.0]]}, {"segmentation": {"size": [50, 60], "counts": ""}},
])  # fmt: skip
def test_what_a_phrase_claims_is_whole_or_it_is_not_asked_for(tmp_path, bad):
    """One dog of two cannot be used: neither "dog" nor "every dog" is true of the other one. The cat is."""
    write(tmp_path, [annotation(1), annotation(2, **bad), annotation(3, category_id=90), annotation(4, image_id=2)])
    (first, second), (reject,) = read(tmp_path)
    assert [(one.text, one.targets) for one in first.expressions] == [("cat", [1])]
    assert [(one.text, one.targets) for one in second.expressions] == [("dog", [0])]
    assert reject.id == "1/annotation 2" and "so 'dog' is not asked for in this picture" in reject.reason


def test_ids_that_come_twice(tmp_path):
    """Of annotations they do not matter, unless it is the same annotation; of categories and pictures they do."""
    write(tmp_path, [annotation(1), annotation(2), annotation(2), annotation(2, image_id=2)])
    samples, rejects = read(tmp_path)
    assert not rejects and [len(sample.objects) for sample in samples] == [2, 1]
    write(tmp_path, [annotation(1)], categories=[{"id": 3, "name": 7}])
    assert "its category_id 3 has no name" in read(tmp_path)[1][0].reason
    picture = {"id": 1, "file_name": "1.jpg", "width": 60, "height": 50}
    write(tmp_path, [annotation(1)], categories=[{"id": 3, "name": "dog"}] * 2)
    assert "its category_id 3 has no name" in read(tmp_path)[1][0].reason
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [picture, picture]}))
    assert "image id 1 occurs twice" in read(tmp_path)[1][0].reason


@pytest.mark.parametrize(
    "changes", [{"id": "0001"}, {"id": 1.0}, {"width": 60.0, "height": "50"}, {"file_name": "x\\1.jpg"}]
)
def test_numbers_and_names_as_tools_write_them(tmp_path, changes):
    picture = {"id": 1, "file_name": "1.jpg", "width": 60, "height": 50} | changes
    write(tmp_path, [annotation(1, image_id=picture["id"])], images="train/x", count=1)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [picture]}))
    if "file_name" not in changes:
        (tmp_path / "train/x/1.jpg").rename(tmp_path / "train/1.jpg")
    (sample,), rejects = read(tmp_path)
    assert (
        not rejects
        and (sample.width, sample.height) == (60, 50)
        and sample.id == str(changes.get("id", 1)).removesuffix(".0")
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("C:\\data\\1.jpg", "also as C:/data/1.jpg: its name is written with backslashes"),
        (
            "../../label-studio/media/1.jpg",
            "there is .*train/1.jpg: if that is the picture, write its path from .*",
        ),
        ("D:\\9.jpg", r"on Windows\)$"),
    ],
)
def test_a_path_of_another_machine_gets_a_hint(tmp_path, name, hint):
    """Not the picture of that name: two folders of the other machine may have one each."""
    picture = {"id": 1, "file_name": name, "width": 60, "height": 50}
    write(tmp_path, [annotation(1)])
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [picture]}))
    assert re.search(hint, read(tmp_path)[1][0].reason)


def test_a_missing_picture_is_a_reject(tmp_path):
    write(tmp_path, [annotation(1), annotation(2, image_id=2)])
    (tmp_path / "train" / "1.jpg").unlink()
    (sample,), (reject,) = read(tmp_path)
    assert sample.id == "2" and f"image 1.jpg not found; looked in {tmp_path}/train" in reject.reason


@pytest.mark.parametrize(("file", "images"), [
    ("annotations/instances_val.json", "val"),
    ("annotations/instances_val2017.json", "val2017"),
    ("annotations/val.json", "images/val"),
    ("val.json", "images"),
    ("val/_annotations.coco.json", "val"),
    ("valid/_annotations.coco.json", "valid"),
    ("annotations/instances_Validation.json", "images/Validation"),
])  # fmt: skip
def test_the_usual_layouts(tmp_path, file, images):
    write(tmp_path, [annotation(1)], file, images)
    (sample,), rejects = read(tmp_path, "val", val_fraction=0.5)  # it has splits: nothing more is held out
    assert not rejects and sample.frames == [str(tmp_path / images / "1.jpg")]


def test_a_file_without_splits_is_split_by_share(tmp_path):
    write(tmp_path, [annotation(n, image_id=n) for n in range(1, 11)], "annotations.json", "images", count=10)
    assert len(read(tmp_path, "train")[0]) == 10
    train, val = ({one.id for one in read(tmp_path, split, val_fraction=0.2)[0]} for split in ("train", "val"))
    assert len(val) == 2 and len(train) == 8 and not train & val
    with pytest.raises(ValueError, match="no split 'val': name it in ROOT/annotations/instances_val.json"):
        read(tmp_path, "val")
    named = {"annotations": "annotations.json", "images": tmp_path / "images"}
    assert len(read(tmp_path, "val", **named)[0]) == 10
    assert len(read(tmp_path, "val", val_fraction=0.2, **named)[0]) == 2


@pytest.mark.parametrize(("file", "images"), [
    ("annotations.json", "JPEGImages"), ("annotations/instances_default.json", "images/default"),
    ("result.json", "images"), ("labels.json", "data"), ("my own name.json", "images"),
])  # fmt: skip
def test_files_of_tools_that_know_no_splits(tmp_path, file, images):
    write(tmp_path, [annotation(1)], file, images)
    (tmp_path / "other.json").write_text('{"images": []}')
    (sample,), rejects = read(tmp_path)
    assert not rejects and sample.frames == [str(tmp_path / images / "1.jpg")]


@pytest.mark.parametrize(("content", "message"), [
    ("[]", "must hold a dict at its top level, got a list"),
    ("{", "instances_train.json is not JSON"),
    ('{"images": []}', "must have a list 'annotations'; it has images"),
])  # fmt: skip
def test_a_bad_file_raises(tmp_path, content, message):
    write(tmp_path, [])
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_genuine_coco(shared_data):
    root = shared_data / "coco2017_tiny"
    instances = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    samples, rejects = read(root, "val")
    assert not rejects
    assert len(samples) == 33 and sum(len(sample.objects) for sample in samples) == 372
    for sample in samples:
        own = [one for one in instances["annotations"] if str(one["image_id"]) == sample.id]
        for thing, one in zip(sample.objects, own, strict=True):
            pixels = masks.area(thing.masks[0])
            if one["iscrowd"]:  # the stored area is of the polygons it was drawn with; the RLE's own counts decide
                assert pixels == sum(one["segmentation"]["counts"][1::2])
            else:
                assert abs(pixels - one["area"]) <= 2 * one["area"] ** 0.5
        names = {thing.category for thing in sample.objects}
        assert len(sample.expressions) == len(names)
        assert sorted(index for one in sample.expressions for index in one.targets) == list(range(len(own)))
