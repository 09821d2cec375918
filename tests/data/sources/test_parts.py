"""PACO-LVIS and PASCAL-Part: parts are spoken of as parts, and a phrase means all of its kind.

Run: pytest tests/data/sources/test_parts.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.parts import parts

NAMES = {1: "dog", 2: "dog:head", 3: "mouse_(computer_equipment):scroll_wheel", 4: "cup:handle_(part)", 5: "cup"}
FILES = {  # name: (json, picture on disk, file_name)
    "paco_lvis": ("annotations/paco_lvis_v1_train.json", "coco/train2017/09.jpg", "train2017/09.jpg"),
    "pascal_part": ("train.json", "VOCdevkit/VOC2010/JPEGImages/2008_000001.jpg", "2008_000001.jpg"),
}  # fmt: skip


def pixels(number):
    mask = np.zeros((8, 12), bool)
    mask[1:4, 2 * number : 2 * number + 2] = True
    return mask


def annotation(number, category_id, **changes):
    """As in PACO: an RLE, and no iscrowd."""
    own = {"id": number, "image_id": 9, "category_id": category_id, "segmentation": masks.encode(pixels(number))}
    return own | {"bbox": [2 * number, 1, 2, 3], "area": 6, "obj_ann_id": 0, "attribute_ids": []} | changes


def write(root, name, annotations, names=NAMES, file=None, **changes):
    usual, at, file_name = FILES[name]
    picture = {"id": 9, "width": 12, "height": 8, "file_name": file_name} | changes
    content = {"images": [picture], "annotations": annotations, "attributes": []}
    content["categories"] = [{"id": key, "name": one} for key, one in names.items()]
    path = root / (file or usual)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    where = path.parent / at if name == "pascal_part" else root / at
    where.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(where)
    return root


def read(root, name, split="train", **options):
    records = list(parts(root, split, name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


@pytest.mark.parametrize("name", FILES)
def test_the_exact_sample(tmp_path, name):
    write(tmp_path, name, [annotation(0, 1), annotation(1, 2), annotation(2, 3), annotation(3, 4), annotation(4, 2)])
    samples, rejects = read(tmp_path, name)
    expected = Sample("9", "referring", 12, 8, [str(tmp_path / FILES[name][1])], source=name)
    categories = ["dog", "dog:head", "mouse:scroll wheel", "cup:handle", "dog:head"]
    expected.objects = [
        Object([masks.encode(pixels(n))], [(2.0 * n, 1.0, 2.0 * n + 2, 4.0)], one) for n, one in enumerate(categories)
    ]
    expected.expressions = [
        Expression("dog", [0], "category"),
        Expression("head of the dog", [1, 4], "part"),  # both of them
        Expression("scroll wheel of the mouse", [2], "part"),
        Expression("handle of the cup", [3], "part"),
    ]
    assert samples == [expected] and not rejects


def test_phrases_are_options(tmp_path):
    write(tmp_path, "paco_lvis", [annotation(0, 1), annotation(1, 2)])
    (sample,), _ = read(tmp_path, "paco_lvis", part="{object} {part}", whole="every {object}")
    assert [one.text for one in sample.expressions] == ["every dog", "dog head"]
    with pytest.raises(ValueError, match="option part must contain {part} and {object}, got '{part}'"):
        read(tmp_path, "paco_lvis", part="{part}")
    with pytest.raises(ValueError, match="option whole must contain {object}, got 'it'"):
        read(tmp_path, "paco_lvis", whole="it")


def test_a_category_drawn_in_part_has_no_phrase(tmp_path):
    unfinished = {"not_exhaustive_category_ids": [1, 1077]}  # the second is of LVIS and not in this file
    write(tmp_path, "paco_lvis", [annotation(0, 1), annotation(1, 2)], **unfinished)
    (sample,), rejects = read(tmp_path, "paco_lvis")
    assert not rejects and len(sample.objects) == 2
    assert sample.expressions == [Expression("head of the dog", [1], "part")]


@pytest.mark.parametrize(("name", "file"), [
    ("paco_lvis", "vlpart/paco/annotations/paco_lvis_v1_train.json"),
    ("paco_lvis", "paco_lvis_v1_train.json"),
    ("pascal_part", "vlpart/pascal_part/train.json"),
])  # fmt: skip
def test_where_lisa_keeps_them(tmp_path, name, file):
    write(tmp_path, name, [annotation(0, 2)], file=file)
    (sample,), rejects = read(tmp_path, name)
    assert not rejects and sample.expressions[0].text == "head of the dog"


BAD = [
    (annotation(5, 77), "its category_id 77 has no name among the categories"),
    (annotation(5, 6), "its category_id 6 has no name among the categories"),  # "dog:"
    (annotation(5, 2, segmentation=masks.empty(8, 12)), "annotation 5 has a segmentation that covers no pixel"),
    (annotation(5, 2, segmentation=masks.empty(12, 8)), "annotation 5: the mask is 8 x 12"),
    (annotation(5, 2, segmentation={"size": [8, 12], "counts": "1"}), "annotation 5: RLE garbage"),
    (annotation(5, 2, image_id=3), "its image_id 3 is not among the images"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_annotation_is_one_reject_and_the_rest_remains(tmp_path, bad, message):
    write(tmp_path, "paco_lvis", [annotation(0, 1), bad], NAMES | {6: "dog:"})
    (sample,), (reject,) = read(tmp_path, "paco_lvis")
    assert len(sample.objects) == 1 and message in reject.reason


def test_a_bad_picture_is_a_reject_and_a_missing_file_raises(tmp_path):
    write(tmp_path, "paco_lvis", [annotation(0, 1)], not_exhaustive_category_ids=1)
    assert "'not_exhaustive_category_ids' must be list, got 1" in read(tmp_path, "paco_lvis")[1][0].reason
    (tmp_path / FILES["paco_lvis"][1]).unlink()
    assert "image train2017/09.jpg not found" in read(tmp_path, "paco_lvis")[1][0].reason
    with pytest.raises(ValueError, match="the annotation file not found; looked for .*paco_lvis_v1_val.json"):
        read(tmp_path, "paco_lvis", "val")


def test_files_in_the_genuine_form(shared_data):
    root, coco = shared_data / "shaped/semantic", shared_data / "coco2017_tiny"
    for name, file, images in (
        ("paco_lvis", root / "paco_lvis/annotations/paco_lvis_v1_train.json", coco),
        ("pascal_part", root / "pascal_part/train.json", None),
    ):
        content = json.loads(file.read_text())
        samples, rejects = read(root, name, images=images)
        assert not rejects and len(samples) == len(content["images"])
        areas = {str(one["image_id"]): 0 for one in content["annotations"]}
        for one in content["annotations"]:
            areas[str(one["image_id"])] += sum(masks.decode(one["segmentation"]).ravel())
        for sample in samples:
            assert sum(masks.area(thing.masks[0]) for thing in sample.objects) == areas[sample.id]
    assert [one.text for one in samples[0].expressions] == ["head of the dog", "torso of the dog"]
