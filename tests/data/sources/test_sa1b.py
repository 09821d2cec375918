"""SA-1B: a json per picture, an object per annotation.

Run: pytest tests/data/sources/test_sa1b.py      (SA2VA_TEST_DATA adds a fixture in the true form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 8, 6
sa1b = SOURCES["sa1b"]


def square(x):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1:3, x : x + 2] = True
    return masks.encode(mask)


def write(root, stem, *annotations, folders=("", ""), **image):
    photos, jsons = (root / folder for folder in folders)
    photos.mkdir(parents=True, exist_ok=True)
    jsons.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(photos / f"{stem}.jpg")
    picture = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{stem}.jpg"} | image
    (jsons / f"{stem}.json").write_text(json.dumps({"image": picture, "annotations": annotations}))


def annotation(number, rle):
    return {"id": number, "segmentation": rle, "bbox": [0, 1, 1, 1], "area": 4, "predicted_iou": 0.9}


@pytest.mark.parametrize("folders", [("", ""), ("sa_000000", "sa_000000"), ("img", "js")])
def test_a_picture_becomes_exactly_this_sample(tmp_path, folders):
    write(tmp_path, "sa_1", annotation(7, square(0)), annotation(8, square(5)), folders=folders)
    assert list(sa1b(tmp_path, "train")) == [
        Sample(
            "sa_1",
            "referring",
            WIDTH,
            HEIGHT,
            frames=[str(tmp_path / folders[0] / "sa_1.jpg")],
            num_frames=1,
            annotated=[0],
            objects=[Object([square(0)], [(0, 1, 2, 3)]), Object([square(5)], [(5, 1, 7, 3)])],
            source="sa1b",
        )
    ]


def test_what_cannot_be_used_is_rejected(tmp_path):
    write(tmp_path, "sa_1", annotation(7, square(0)), annotation(8, {"size": [6, 8], "counts": "!"}), {"area": 1})
    write(tmp_path, "sa_2", annotation(7, masks.empty(HEIGHT, WIDTH)))
    write(tmp_path, "sa_3", annotation(7, square(0)), file_name="gone.jpg")
    write(tmp_path, "sa_4", annotation(7, square(0)), width="8")
    (tmp_path / "sa_5.json").write_text("[]")
    records = list(sa1b(tmp_path, "train"))
    (sample,) = [record for record in records if isinstance(record, Sample)]
    validate(sample)
    assert sample.objects == [Object([square(0)], [(0, 1, 2, 3)])]
    reasons = [record.reason for record in records if isinstance(record, Reject)]
    wanted = ["RLE garbage", "has no 'id'", "covers no pixel", "gone.jpg not found", "'width' must be int", "a dict"]
    assert [part in reason for part, reason in zip(wanted, reasons, strict=True)] == [True] * len(wanted)


def test_a_folder_without_json_files_and_a_split_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there are no json files below"):
        list(sa1b(tmp_path, "train"))
    write(tmp_path, "sa_1", annotation(7, square(0)))
    with pytest.raises(ValueError, match="there is no split 'val'"):
        list(sa1b(tmp_path, "val"))


def test_areas_of_the_fixture_are_those_of_its_annotations(shared_data):
    root = shared_data / "datumaro_fixtures/segment_anything_dataset"
    sample, reject = sa1b(root, "train")
    truth = json.loads((root / "a.json").read_text())["annotations"]
    assert [masks.area(thing.masks[0]) for thing in sample.objects] == [one["area"] for one in truth]
    assert "the mask is 10 x 5 (width x height) but the picture is 5 x 10" in reject.reason  # it is wrong in the file
