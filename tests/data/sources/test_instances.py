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
    annotations = [
        note(1, 7),
        note(2, 8),
        note(3, 7),
        {"image_id": 7},
        note(4, "7"),
        note(3, 3),
        note(5, True),
        note(3, 7),
    ]
    annotations += [note(2**70, 7), note(6, 2**70), 5, note(7, 3)]
    of_image, rejects = read(write(tmp_path, annotations, PICTURES + [PICTURES[0]], [{"id": 1, "name": "a"}, {}]))
    assert of_image == {7: [note(1, 7)], 3: [note(7, 3)]}
    assert [(reject.id, reject.reason) for reject in rejects] == [
        ("annotations[3]", "annotations[3] has no 'id'; it has image_id"),
        ("annotations[8]", f"annotations[8]: 'id' must be an integer of 64 bits, got {2**70}"),
        ("annotations[10]", "annotations[10] must be a dict with id, got int"),
        ("categories[1]", "categories[1] has no 'id'; it has "),
        ("annotation 2", "its image_id 8 is not among the images"),
        ("annotation 3", "annotation id 3 occurs twice"),
        ("annotation 4", "its image_id '7' is not among the images"),
        ("annotation 5", "its image_id True is not among the images"),
        ("annotation 6", f"its image_id {2**70} is not among the images"),
    ]


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
