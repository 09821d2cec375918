"""Instances files: what is kept, what is read when it is needed, and what belongs nowhere.

Run: pytest tests/data/sources/test_instances.py
"""

import hashlib
import json
import random
import re

import pytest

from sa2va_hf.data.sources.files import recorded_hashes
from sa2va_hf.data.sources.instances import index_instances, read_instances

PICTURES = [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 3, -1, 2**40)]
CATEGORIES = [{"id": 1, "name": "dög"}, {"id": 2, "name": " "}, {"id": 3}]


def note(number, picture, **fields):
    return {"id": number, "image_id": picture, "text": "ä" * (number % 5), **fields}


def write(
    tmp_path, annotations, pictures=PICTURES, categories=CATEGORIES, order=("images", "annotations", "categories")
):
    tables = {"images": pictures, "annotations": annotations, "categories": categories}
    path = tmp_path / "instances.json"
    content = {"info": {"year": [2017]}} | {name: tables[name] for name in order} | {"licenses": []}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def read(path):
    found = read_instances(path)
    return {key: list(annotations) for key, annotations in found.of_image.items()}, found.rejects


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("annotations", "categories", "images")])
def test_annotations_come_by_picture_in_the_order_of_the_file(tmp_path, order):
    rng = random.Random(0)
    annotations = [note(n, rng.choice(PICTURES)["id"], bbox=[n, 1.5]) for n in rng.sample(range(-50, 1000), 200)]
    path = write(tmp_path, annotations, order=order)
    with recorded_hashes() as hashes:
        of_image, rejects = read(path)
    expected = {}
    for one in annotations:
        expected.setdefault(one["image_id"], []).append(one)
    assert not rejects and of_image == expected and list(of_image) == list(expected)
    assert hashes == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    found = read_instances(path)
    assert found.pictures == {one["id"]: one for one in PICTURES}
    assert found.categories == {1: "dög", 2: None, 3: None}
    assert len(found.of_image[7]) == len(expected[7]) and found.of_image[7][-1] == expected[7][-1]
    assert index_instances(path)[:3] == (found.pictures, {one["id"]: one for one in annotations}, found.categories)


def test_what_belongs_nowhere_is_a_reject(tmp_path):
    annotations = [note(1, 7), note(2, 8), {"image_id": 3}, note(5, True), note(6, 2**70), 5, {"image_id": 9}]
    of_image, rejects = read(write(tmp_path, annotations, categories=[{"id": 1, "name": "a"}, {}]))
    assert of_image == {7: [note(1, 7)], 3: [{"image_id": 3}]}
    assert [(reject.id, reject.reason) for reject in rejects] == [
        ("annotation 5", "its image_id True is not among the images"),
        ("annotations[5]", "annotations[5] must be a dict, got int"),
        ("categories[1]", "categories[1] has no 'id'; it has "),
        ("annotation 2", "its image_id 8 is not among the images"),
        ("annotation 6", f"its image_id {2**70} is not among the images"),
        ("annotations[6]", "its image_id 9 is not among the images"),
    ]


IDS = {
    "numbers": ([7, 8], [7, 8, 7]),
    "texts": (["0007", "a/8"], ["0007", "a/8", "0007"]),
    "numbers with a point": ([7.0, 8.0], [7, 8.0, 7]),
    "texts that mean numbers": ([7, 8], ["7", "8", 7]),
    "numbers that mean texts": (["7", "8"], [7, 8, "7"]),
}


@pytest.mark.parametrize("ids", IDS)
def test_ids_of_pictures_are_any_value_that_matches(tmp_path, ids):
    own, named = IDS[ids]
    pictures = [{"id": one, "file_name": f"{n}.jpg"} for n, one in enumerate(own)]
    of_image, rejects = read(write(tmp_path, [{"image_id": one, "n": n} for n, one in enumerate(named)], pictures))
    assert not rejects and [[one["n"] for one in notes] for notes in of_image.values()] == [[0, 2], [1]]


def test_ids_of_annotations_may_lack_and_may_start_anew_in_every_picture(tmp_path):
    annotations = [note(1, 7), note(1, 3), {"image_id": 7}, {"id": "0001", "image_id": 7}, {"id": 1.0, "image_id": 3}]
    of_image, rejects = read(write(tmp_path, annotations))
    assert not rejects and {key: len(notes) for key, notes in of_image.items()} == {7: 3, 3: 2}


def test_whether_all_annotations_are_of_crowds(tmp_path):
    for flags, expected in (([1, 1], True), ([1, 0], False), ([0], False), ([], False)):
        path = write(tmp_path, [note(n, 7, iscrowd=flag) for n, flag in enumerate(flags)])
        assert read_instances(path).crowds_only is expected


def test_without_annotations_nothing_is_wrong(tmp_path):
    assert read(write(tmp_path, [])) == ({}, [])


@pytest.mark.parametrize(("content", "message"), [
    ('{"images": [], "annotations": 5, "categories": []}', "must have a list 'annotations'; it has annotations,"),
    ('{"images": [], "images": [], "annotations": [], "categories": []}', "has 'images' twice"),
    ('{"images": [], "annotations": [{"id": 1}, {"id": 2, "s', "is not JSON: Unterminated string starting at byte 52"),
    ("[]", "must hold a dict at its top level, got a list"),
])  # fmt: skip
def test_another_form_is_an_error(tmp_path, content, message):
    path = tmp_path / "instances.json"
    path.write_text(content)
    for reader in (read_instances, index_instances):
        with pytest.raises(ValueError, match=f"instances.json {re.escape(message)}"):
            reader(path)


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path):
    path = write(tmp_path, [note(1, 7)])
    found = read_instances(path)
    with path.open("r+b") as file:
        file.write(b" " * path.stat().st_size)
    with pytest.raises(ValueError, match="instances.json was changed while it was read"):
        list(found.of_image[7])


def test_the_keys_of_another_file_are_listed_in_bounded_numbers(tmp_path):
    """Exports keyed by image have thousands of keys at their top level."""
    (tmp_path / "annotations.json").write_text(json.dumps({f"image_{i}.jpg": {} for i in range(5000)}))
    with pytest.raises(ValueError, match=r"\(5000 in total\)") as error:
        read_instances(tmp_path / "annotations.json")
    assert len(str(error.value)) < 1000
