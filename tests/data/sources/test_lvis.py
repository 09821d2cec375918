"""LVIS: what was looked for and not found, what was not drawn to the end, and where each version has its pictures.

Run: pytest tests/data/sources/test_lvis.py      (SA2VA_TEST_DATA adds a genuine LVIS file)
"""

import json
import math

import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.lvis import lvis

NAMES = {1: "bat_(animal)", 2: "dog", 3: "cup", 4: "bow_(weapon)", 5: "tea_bag"}


def annotation(number, category_id=2, image_id=9, **changes):
    x = 2 * number
    square = [x, 0, x + 2, 0, x + 2, 3, x, 3]
    own = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": [square], "area": 6.0}
    return own | {"bbox": [x, 0, 2, 3]} | changes


def write(root, annotations, file="annotations/lvis_v1_train.json", at="train2017/000000000009.jpg", **changes):
    """One picture, 12 x 8. changes: of its record; None takes a key away."""
    picture = {
        "id": 9,
        "width": 12,
        "height": 8,
        "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
    }
    picture |= {"neg_category_ids": [], "not_exhaustive_category_ids": []} | changes
    picture = {key: value for key, value in picture.items() if value is not None}
    categories = [{"id": key, "name": name, "frequency": "r"} for key, name in NAMES.items()]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps({"images": [picture], "annotations": annotations, "categories": categories}))
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(root / at)
    return root


def read(root, split="train", **options):
    records = list(lvis(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def square(number):
    return masks.from_polygons([[2 * number, 0, 2 * number + 2, 0, 2 * number + 2, 3, 2 * number, 3]], 8, 12)


def test_the_exact_sample(tmp_path):
    annotations = [annotation(0), annotation(1, 1), annotation(2), annotation(3, 3)]
    write(tmp_path, annotations, not_exhaustive_category_ids=[3], neg_category_ids=[4, 5])
    samples, rejects = read(tmp_path)
    things = [("dog", 0), ("bat (animal)", 1), ("dog", 2), ("cup", 3)]
    expected = Sample("9", "referring", 12, 8, [str(tmp_path / "train2017/000000000009.jpg")], source="lvis")
    expected.objects = [Object([square(n)], [(2.0 * n, 0.0, 2.0 * n + 2, 3.0)], name) for name, n in things]
    expected.expressions = [Expression("every dog", [0, 2], "category"), Expression("bat (animal)", [1], "category")]
    assert samples == [expected] and not rejects  # more cups may be there than are drawn: no phrase


def test_absent_categories_are_phrases_without_a_target(tmp_path):
    write(tmp_path, [annotation(0)], neg_category_ids=[1, 4, 5])
    (one,), _ = read(tmp_path, negatives=1)
    (all_three,), _ = read(tmp_path, negatives=9, one="a {}")
    assert [expression.targets for expression in all_three.expressions] == [[0], [], [], []]
    texts = [expression.text for expression in all_three.expressions]
    assert texts[0] == "a dog" and sorted(texts[1:]) == ["a bat (animal)", "a bow (weapon)", "a tea bag"]
    assert "a " + one.expressions[1].text == texts[1] and len(one.expressions) == 2
    with pytest.raises(ValueError, match="option negatives must be 0 or more, got -1"):
        read(tmp_path, negatives=-1)


def test_which_absent_ones_depends_on_the_picture(tmp_path):
    drawn = set()
    for image_id in range(20):
        write(tmp_path, [], id=image_id, neg_category_ids=[5, 4, 1])
        (sample,), _ = read(tmp_path, negatives=1)
        drawn.add(sample.expressions[0].text)
    assert drawn == {"bat (animal)", "bow (weapon)", "tea bag"}


def test_a_picture_that_nothing_can_be_said_of_is_left_out(tmp_path):
    write(tmp_path, [annotation(0)], not_exhaustive_category_ids=[2], neg_category_ids=[5])
    assert read(tmp_path) == ([], [])
    (sample,), _ = read(tmp_path, negatives=1)
    assert len(sample.objects) == 1 and [one.text for one in sample.expressions] == ["tea bag"]


@pytest.mark.parametrize(("file", "at", "changes"), [
    ("annotations/lvis_v1_train.json", "coco/train2017/000000000009.jpg", {}),
    ("lvis_v1_train.json", "images/train2017/000000000009.jpg", {}),
    ("annotations/lvis_v0.5_train.json", "train2017/000000000009.jpg", {"file_name": "COCO_train2014_09.jpg"}),
    ("lvis_v0.5_train.json", "train2014/x.jpg", {"file_name": "train2014/x.jpg", "coco_url": None}),
    ("lvis/lvis_v1_train.json", "000000000009.jpg", {}),
])  # fmt: skip
def test_the_layouts_of_both_versions(tmp_path, file, at, changes):
    write(tmp_path, [annotation(0)], file, at, **changes)
    (sample,), rejects = read(tmp_path)
    assert not rejects and sample.frames == [str(tmp_path / at)]


def test_a_folder_of_pictures_elsewhere(tmp_path):
    write(tmp_path, [annotation(0)], at="else/where/000000000009.jpg")
    assert "image train2017/000000000009.jpg not found; looked in" in read(tmp_path)[1][0].reason
    assert len(read(tmp_path, images=tmp_path / "else/where")[0]) == 1


BAD = [
    ({"coco_url": None}, "image 9 has no 'file_name'"),
    ({"neg_category_ids": [2]}, "neg_category_ids says that there is no dog, but annotations show it"),
    ({"neg_category_ids": [77]}, "image 9: neg_category_ids names [77], which are not among the categories"),
    ({"not_exhaustive_category_ids": 3}, "image 9: 'not_exhaustive_category_ids' must be list, got 3"),
    ({"height": "tall"}, "image 9: 'height' must be int, got 'tall'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_picture_is_a_reject(tmp_path, changes, message):
    samples, (reject,) = read(write(tmp_path, [annotation(0)], **changes))
    assert not samples and message in reject.reason
    assert (reject.id, reject.file) == ("9", str(tmp_path / "annotations/lvis_v1_train.json"))


def test_a_bad_annotation_is_a_reject_and_the_rest_remains(tmp_path):
    bad = [annotation(1, 99), annotation(2, segmentation=[[1, 1]]), annotation(3, image_id=8)]
    samples, rejects = read(write(tmp_path, [annotation(0), *bad]))
    assert not samples and len(rejects) == 3  # the other object of the category cannot be used: nothing is asked for
    assert "its image_id 8 is not among the images" in rejects[0].reason


def edges(polygon):
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    return zip(points, points[1:] + points[:1], strict=True)


def test_a_genuine_file(shared_data, tmp_path):
    """Its pictures are not there: blank ones of their size take their place."""
    file = shared_data / "lvis/lvis_val_100.json"
    content = json.loads(file.read_text())
    (tmp_path / "val2017").mkdir()
    for picture in content["images"]:
        path = tmp_path / "val2017" / picture["coco_url"].split("/")[-1]
        Image.new("1", (picture["width"], picture["height"])).save(path, "PNG")
    samples, rejects = read(tmp_path, "val", annotations=file, negatives=2)
    assert not rejects and len(samples) == len({one["image_id"] for one in content["annotations"]} | {
        one["id"] for one in content["images"] if one["neg_category_ids"]})  # fmt: skip
    assert sum(len(sample.objects) for sample in samples) == len(content["annotations"]) == 977
    pictures = {str(one["id"]): one for one in content["images"]}
    for sample in samples:
        own = [one for one in content["annotations"] if str(one["image_id"]) == sample.id]
        for thing, one in zip(sample.objects, own, strict=True):
            outline = sum(math.dist(a, b) for part in one["segmentation"] for a, b in edges(part))
            assert abs(masks.area(thing.masks[0]) - one["area"]) <= 0.35 * (outline + 1)
        absent = [one for one in sample.expressions if not one.targets]
        assert len(absent) == min(2, len(pictures[sample.id]["neg_category_ids"]))
        meant = {index for one in sample.expressions for index in one.targets}
        unfinished = pictures[sample.id]["not_exhaustive_category_ids"]
        assert meant == {index for index, one in enumerate(own) if one["category_id"] not in unfinished}
