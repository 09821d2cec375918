"""The fine-tune json: all forms of masks and texts arrive, bad records are named with all their problems.

Run: pytest tests/data/sources/test_finetune_json.py      (SA2VA_TEST_DATA adds the genuine form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources.finetune_json import finetune_json

SQUARE = [0, 0, 10, 0, 10, 10, 0, 10]
LATER = [12, 0, 22, 0, 22, 10, 12, 10]
MASK = np.zeros((30, 40), dtype=bool)
MASK[:10, :10] = True


def write(root, records, file="annotations.json", images=("a.jpg", "b.jpg", "c.jpg")):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (40, 30)).save(root / "images" / name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(records))
    return root


def record(image="a.jpg", mask=([SQUARE],), text=("a dog",), **more):
    return {"image": image, "mask": list(mask), "text": list(text)} | more


def read(root, split="train", **options):
    records = list(finetune_json(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_objects_phrases_and_absence(tmp_path):
    texts = ["left", ["right", "the second"], "a cat"]
    write(tmp_path, [record(mask=[[SQUARE], [SQUARE, LATER], None], text=texts)])
    (sample,), rejects = read(tmp_path)
    assert not rejects
    assert (sample.id, sample.width, sample.height) == ("a.jpg", 40, 30)
    assert sample.frames == [str(tmp_path / "images" / "a.jpg")]
    assert [masks.area(thing.masks[0]) for thing in sample.objects] == [100, 200]
    assert [(one.text, one.targets) for one in sample.expressions] == [
        ("left", [0]),
        ("right", [1]),
        ("the second", [1]),
        ("a cat", []),
    ]


def test_every_form_of_a_mask_is_the_same_mask(tmp_path):
    ids = MASK * np.uint8(3) + np.roll(MASK, 15, axis=1) * np.uint8(5)
    write(tmp_path, [])
    (tmp_path / "masks").mkdir()
    Image.fromarray(MASK).save(tmp_path / "masks" / "binary.png")
    Image.fromarray(ids).save(tmp_path / "masks" / "ids.png")
    rle = masks.encode(MASK)
    forms = [[SQUARE], SQUARE, rle, [rle], "masks/binary.png", {"png": "masks/ids.png", "id": 3}]
    write(tmp_path, [record(mask=forms, text=["x"] * len(forms))])
    (sample,), rejects = read(tmp_path)
    assert not rejects
    assert [thing.masks[0] for thing in sample.objects] == [rle] * len(forms)


BAD = [
    (record(text=["a", "b"]), "'mask' has 1 entries and 'text' has 2: one of each per object"),
    (record(mask=[], text=[]), "'text' and 'mask' are empty"),
    (record(image="gone.jpg"), "image gone.jpg not found; looked in"),
    (record(image="broken.jpg"), "broken.jpg cannot be read as a picture"),
    (record(mask=[[[1, 1, 5, 5]]]), "object 0: polygon 0 has 2 points: at least 3"),
    (record(mask=[{"size": [30, 40], "counts": "zz"}]), "object 0: RLE garbage"),
    (record(mask=[{"size": [40, 30], "counts": [1200]}]), "the mask is 30 x 40 (width x height) but the picture"),
    (record(mask=[{"size": [30, 40], "counts": [1200]}]), "its mask covers no pixel"),
    (record(mask=[[[0, 0, 500, 0, 500, 10]]]), "spans x = 0 to 500, but the picture is 40 x 30"),
    (record(mask=["gone.png"]), "object 0: image gone.png not found"),
    (record(mask=["small.png"]), "small.png is 5 x 5 (width x height) but its photo is 40 x 30"),
    (record(text=[""]), "its text must be a phrase or a list of phrases, got ''"),
    (record(text=[[]]), "its list of phrases is empty"),
    (record(text=[None]), "its text must be a phrase"),
    (record(mask=[[[1, 1]], [[2, 2]]], text=["a", "b"]), "has 1 points: at least 3 are needed; object 1: polygon 0"),
    ({"image": "a.jpg", "mask": [[SQUARE]]}, "record 1 has no 'text'; it has image, mask"),
    ({"image": ["a.jpg"], "mask": [], "text": []}, "'image' must be str"),
    ("a.jpg", "record 1 must be a dict with image, mask, text, got str"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_record_is_one_reject_and_the_others_remain(tmp_path, bad, message):
    write(tmp_path, [record("b.jpg"), bad, record("c.jpg")])
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no picture")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    samples, (reject,) = read(tmp_path)
    assert [sample.id for sample in samples] == ["b.jpg", "c.jpg"]
    assert message in reject.reason
    assert reject.id.startswith("record 1") and reject.file == str(tmp_path / "annotations.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "annotations.json is not JSON"), ("{}", "must hold a list at its top level, got a dict")],
)
def test_a_bad_file_raises(tmp_path, content, message):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_missing_file_raises_with_the_names_looked_for(tmp_path):
    with pytest.raises(
        ValueError, match="looked for .*train/annotations.json, .*annotations_train.json, .*train.json"
    ):
        read(tmp_path)


# ---------------------------------------------------------------- splits and ids


@pytest.mark.parametrize("file", ["val/annotations.json", "annotations_val.json", "val.json"])
def test_a_file_per_split(tmp_path, file):
    write(tmp_path, [record("a.jpg")])
    write(tmp_path, [record("b.jpg")], file)
    assert [sample.id for sample in read(tmp_path, "val")[0]] == ["b.jpg"]
    assert [sample.id for sample in read(tmp_path, "val", val_fraction=0.5)[0]] == ["b.jpg"]


def test_splits_in_the_records(tmp_path):
    write(tmp_path, [record("a.jpg", split="train"), record("b.jpg", split="val"), record("c.jpg")])
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        samples, (reject,) = read(tmp_path, split, val_fraction=0.5)
        assert [sample.id for sample in samples] == [name]
        assert "record 2 has no 'split'" in reject.reason  # else it might be in both
    with pytest.raises(ValueError, match="no record of .* has the split 'test'"):
        read(tmp_path, "test")


def test_a_share_of_the_pictures_is_held_out_with_all_its_records(tmp_path):
    images = [f"{number}.jpg" for number in range(10)]
    write(tmp_path, [record(name) for name in images * 2], images=images)
    split = {
        name: {sample.frames[0] for sample in read(tmp_path, name, val_fraction=0.3)[0]} for name in ("train", "val")
    }
    assert (len(split["train"]), len(split["val"])) == (7, 3) and not split["train"] & split["val"]
    with pytest.raises(ValueError, match="no split 'val': name the file annotations_val.json, or take"):
        read(tmp_path, "val")


def test_a_named_file_is_the_split_asked_for(tmp_path):
    write(tmp_path, [record("a.jpg")], "special.json")
    assert len(read(tmp_path, "val", annotations="special.json")[0]) == 1
    assert len(read(tmp_path, "val", annotations=tmp_path / "special.json", images=tmp_path / "images")[0]) == 1


def test_ids_are_unique_unless_the_file_gives_them(tmp_path):
    write(tmp_path, [record(), record(), record(id=7), record(id=7)])
    assert [sample.id for sample in read(tmp_path)[0]] == [
        "a.jpg",
        "a.jpg#2",
        "7",
        "7",
    ]  # prepare refuses the second 7


def test_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path, [record("turned.jpg", mask=[[[0, 30, 10, 30, 10, 40, 0, 40]]])])
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "turned.jpg", exif=exif)
    (sample,), _ = read(tmp_path)
    assert (sample.width, sample.height) == (30, 40) and masks.area(sample.objects[0].masks[0]) == 100


def test_genuine_form(shared_data):
    root, images = shared_data / "shaped" / "sa2va_finetune", shared_data / "coco2017_tiny" / "val2017"
    records = json.loads((root / "annotations.json").read_text())
    samples, rejects = read(root, images=images)
    assert not rejects and len(samples) == len(records) == 7
    for sample, one in zip(samples, records, strict=True):
        assert [expression.text for expression in sample.expressions] == one["text"]
        assert len(sample.objects) == len(one["mask"])
    # the masks are polygons of COCO annotations: their areas must be found there
    instances = json.loads((shared_data / "coco2017_tiny/annotations/instances_val2017.json").read_text())
    by_polygons = {json.dumps(a["segmentation"]): a["area"] for a in instances["annotations"]}
    for sample, one in zip(samples, records, strict=True):
        for thing, polygons in zip(sample.objects, one["mask"], strict=True):
            area = by_polygons[json.dumps(polygons)]
            assert abs(masks.area(thing.masks[0]) - area) <= 2 * area**0.5
