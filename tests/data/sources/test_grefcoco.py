"""gRefCOCO and refCLEF: phrases for several things and for none, overlapping splits, masks as lists of RLEs.

Run: pytest tests/data/sources/test_grefcoco.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json
import pickle
from functools import partial

import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources.refcoco import refcoco

grefcoco = partial(refcoco, name="grefcoco")
refclef = partial(refcoco, name="refclef")


def square(left):
    return [left, 0, left + 10, 0, left + 10, 10, left, 10]


def ref(ref_id, ann_id, text="things", split="train", **changes):
    row = {"ref_id": ref_id, "ann_id": ann_id, "category_id": [3], "image_id": 1, "split": split}
    return (
        row | {"file_name": f"1_{ref_id}.jpg", "sentences": [{"raw": text, "sent": text, "sent_id": ref_id}]} | changes
    )


def write(root, refs, annotations, name="grefcoco", file="grefs(unc).json", picture="images/train2014/1.jpg"):
    (root / name).mkdir(parents=True, exist_ok=True)
    content = pickle.dumps(refs, 0) if file.endswith(".p") else json.dumps(refs).encode()
    (root / name / file).write_bytes(content)
    images = [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "dog"}]}
    (root / name / "instances.json").write_text(json.dumps(instances))
    (root / picture).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / picture)
    return root


def annotation(ann_id, **changes):
    return {"id": ann_id, "image_id": 1, "category_id": 3, "segmentation": [square(12 * ann_id)]} | changes


def read(records):
    records = list(records)
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


@pytest.mark.parametrize("file", ["grefs(unc).json", "grefs(unc).p"])
def test_several_targets_one_and_none(tmp_path, file):
    refs = [ref(1, [0, 1], "both"), ref(2, 1, "the right"), ref(3, [-1], "a cat", no_target=True), ref(4, [0, 2], "x")]
    root = write(tmp_path, refs, [annotation(0), annotation(1), annotation(2, iscrowd=1)], file=file)
    (sample,), rejects = read(grefcoco(root, "train"))
    assert not rejects
    assert [(one.text, one.targets) for one in sample.expressions] == [
        ("both", [0, 1]),
        ("the right", [1]),
        ("a cat", []),
        ("x", [0]),  # the crowd beside it does not count
    ]
    assert [masks.area(thing.masks[0]) for thing in sample.objects] == [100, 100]
    assert (sample.id, sample.source) == ("grefcoco/1", "grefcoco")


BAD = [
    ([], "'ann_id' must be a list of at least one int, got []"),
    (["1"], "'ann_id' must be a list of at least one int, got ['1']"),
    ([-1, 0], "says both that nothing matches (-1) and what does: [-1, 0]"),
    ([0, 9], "annotation 9 of the ref is missing in instances.json"),
    ("0", "'ann_id' must be int or list, got '0'"),
]


@pytest.mark.parametrize(("ann_id", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_ref_is_one_reject_and_adds_nothing(tmp_path, ann_id, message):
    root = write(tmp_path, [ref(1, ann_id), ref(2, [1], "good")], [annotation(0), annotation(1)])
    (sample,), (reject,) = read(grefcoco(root, "train"))
    assert message in reject.reason and reject.file.endswith("grefs(unc).json")
    assert [one.text for one in sample.expressions] == ["good"] and len(sample.objects) == 1


def test_refclef_splits_overlap_and_masks_are_lists_of_rles(tmp_path):
    halves = [masks.from_polygons([square(left)], 30, 40) for left in (0, 5)]
    refs = [ref(1, 1, "a", "testAB"), ref(2, 1, "b", "testA"), ref(3, 1, "c", "testC"), ref(4, 1, "d", "val")]
    picture = "images/saiapr_tc-12/02/images/1.jpg"
    root = write(tmp_path, refs, [annotation(1, segmentation=halves)], "refclef", "refs(unc).p", picture)
    texts = {}
    for split in ("testA", "testB", "testC", "testAB", "test", "val"):
        (sample,), rejects = read(refclef(root, split))
        assert not rejects
        texts[split] = "".join(one.text for one in sample.expressions)
    assert texts == {"testA": "ab", "testB": "a", "testC": "c", "testAB": "a", "test": "abc", "val": "d"}
    assert masks.area(sample.objects[0].masks[0]) == 150  # the overlap counts once
    assert sample.frames == [str(tmp_path / picture)]
    with pytest.raises(ValueError, match="has no split 'train'; it has testA, testAB, testC, val"):
        list(refclef(root, "train"))


def test_files_in_the_genuine_form(shared_data):
    root = shared_data / "shaped/grefcoco"
    refs = [row for row in json.loads((root / "grefcoco/grefs(unc).json").read_text()) if row["split"] == "train"]
    samples, rejects = read(grefcoco(root, "train"))
    assert not rejects
    expressions = [one for sample in samples for one in sample.expressions]
    assert len(expressions) == sum(len(row["sentences"]) for row in refs)
    wanted = [0 if row["ann_id"] == [-1] else len(row["ann_id"]) for row in refs for _ in row["sentences"]]
    assert sorted(len(one.targets) for one in expressions) == sorted(wanted) and 0 in wanted and 2 in wanted
    (cat,), rejects = read(refclef(root, "train"))
    assert not rejects and cat.expressions[0].text == "cat" and cat.frames[0].endswith("02/images/269314.jpg")
    assert abs(masks.area(cat.objects[0].masks[0]) / 3400.5 - 1) < 0.03  # the polygon's area in the annotation
