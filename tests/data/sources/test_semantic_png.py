"""Maps of classes: which value is which name in each dataset, what does not count, what is refused.

Run: pytest tests/data/sources/test_semantic_png.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources.semantic_png import semantic_png

LAYOUTS = {  # name: (folder of the maps, of the photos, file of the names, its content, values -> names)
    "cocostuff": (
        "cocostuff/train2017",
        "coco/train2017",
        "cocostuff_classes.txt",
        "0: unlabeled\n1: person\n2: window-other\n3: sky\n",
        {0: "person", 1: None, 2: "sky", 255: None},
    ),
    "ade20k": (
        "ade20k/annotations/training",
        "ade20k/images/training",
        "ade20k/objectInfo150.txt",
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t11\t1\twall\n2\t0.1\t10\t1\tairplane, aeroplane, plane\n",
        {0: None, 1: "wall", 2: "airplane"},
    ),
    "mapillary": (
        "training/v2.0/labels",
        "training/images",
        "config_v2.0.json",
        json.dumps({"labels": [{"readable": "Bird"}, {"readable": "Car"}, {"readable": "Unlabeled"}]}),
        {0: "bird", 1: "car", 2: None, 255: None},
    ),
}


def write(root, name, ids, stem="a", size=(6, 4)):
    maps, photos, file, content, _ = LAYOUTS[name]
    for folder in (maps, photos):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content)
    Image.new("RGB", size).save(root / photos / f"{stem}.jpg")
    picture = Image.fromarray(np.asarray(ids, dtype=np.uint8))
    if name == "mapillary":
        picture.putpalette([7 * value % 256 for value in range(768)])  # the index counts, not the colour
    picture.save(root / maps / f"{stem}.png")


def read(root, name, split="train", **options):
    records = list(semantic_png(root, split, name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_value_is_its_class_or_does_not_count(tmp_path, name):
    meaning = LAYOUTS[name][-1]
    ids = np.resize([value for value in meaning for _ in range(3)], (4, 6))
    write(tmp_path, name, ids)
    (sample,), rejects = read(tmp_path, name)
    assert not rejects and (sample.id, sample.source, sample.width, sample.height) == ("a", name, 6, 4)
    named = {value: text for value, text in meaning.items() if text}
    assert [(one.text, one.targets) for one in sample.expressions] == [(t, [i]) for i, t in enumerate(named.values())]
    for value, thing in zip(named, sample.objects, strict=True):
        assert (masks.decode(thing.masks[0]) == (ids == value)).all()
    void = np.isin(ids, [value for value, text in meaning.items() if text is None])
    assert (masks.decode(sample.ignore[0]) == void).all()


BAD = [
    (np.full((4, 6), 77), {}, "value 77 is no class: there are"),
    (np.full((4, 6), 255), {}, "none of its pixels has a class"),
    (np.zeros((6, 4)), {}, "is 4 x 6 (width x height) but its photo is 6 x 4"),
    (np.zeros((5, 5)), {}, "is 5 x 5 (width x height) but its photo is 6 x 4"),
]


@pytest.mark.parametrize(("ids", "options", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_bad_map_is_one_reject(tmp_path, ids, options, message):
    write(tmp_path, "cocostuff", np.zeros((4, 6)), "good")
    write(tmp_path, "cocostuff", ids, "bad")
    (sample,), (reject,) = read(tmp_path, "cocostuff")
    assert (sample.id, reject.id) == ("good", "bad") and message in reject.reason


def test_missing_files_are_named(tmp_path):
    write(tmp_path, "ade20k", np.ones((4, 6)))
    (tmp_path / "ade20k/images/training/a.jpg").unlink()
    assert "there is no photo a.jpg; looked in" in read(tmp_path, "ade20k")[1][0].reason
    with pytest.raises(ValueError, match="the maps of ade20k not found; looked for .*there is no split 'test'"):
        read(tmp_path, "ade20k", "test")
    (tmp_path / "ade20k/objectInfo150.txt").unlink()
    with pytest.raises(ValueError, match="the names of the classes of ade20k not found"):
        read(tmp_path, "ade20k")


def test_files_in_the_genuine_form(shared_data):
    root = shared_data / "shaped/semantic"
    samples, rejects = read(root, "cocostuff")
    assert len(samples) == 2 and not rejects
    for sample in samples:
        covered = sum(masks.area(thing.masks[0]) for thing in sample.objects)
        covered += sum(masks.area(mask) for mask in sample.ignore)
        assert covered == sample.width * sample.height
    root = shared_data / "datumaro_fixtures/mapillary_vistas_dataset"
    for version in ("v1.2", "v2.0"):
        for split, count in (("train", 1), ("val", 2)):
            samples, rejects = read(root, "mapillary", split, version=version)
            assert (len(samples), len(rejects)) == (count, 0)
            assert {one.text for sample in samples for one in sample.expressions} <= {"bird", "separator", "bicycle"}
