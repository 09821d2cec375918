"""Boxes in JSON, in each of the forms of the table of `box_json`.

Run: pytest tests/data/sources/test_box_json.py      (SA2VA_TEST_DATA adds genuine COCO results)
"""

import json

import pytest
from PIL import Image

from sa2va_hf.boxes import from_numbers
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.box_json import box_json

BOX = (4.0, 3.0, 14.0, 23.0)  # in a picture of 40 x 30
WRITTEN = {
    "xywh": [4, 3, 10, 20],
    "xyxy": [4, 3, 14, 23],
    "xyxy_normalized": [0.1, 0.1, 0.35, 23 / 30],
    "xxyy_normalized": [0.1, 0.35, 0.1, 23 / 30],
}
INSTANCES = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}],
    "annotations": [],
    "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}],
}


def of_form(form, box, second):
    """Two dogs as each form of file has them; the file's name, and the options needed to read it."""
    options = {}
    if form == "coco":
        boxes = [{"id": n, "image_id": 7, "category_id": 3, "bbox": one} for n, one in enumerate((box, second))]
        return "annotations.json", INSTANCES | {"annotations": boxes}, options
    if form == "records":
        return "boxes.json", [{"image": "a.jpg", "boxes": [box, second], "text": ["every dog"] * 2}], options
    named = [{"category": "dog", "bbox": one} for one in (box, second)]
    if form == "caps_boxes":
        return "boxes.jsonl", [{"id": 7, "image": "a.jpg", "captions": ["Dogs."], "instances": named}], options
    if form == "image2bboxes":
        return "image2bboxes.json", {"a.jpg": named}, options
    results = [{"image_id": 7, "category_id": 3, "bbox": one, "score": 0.9} for one in (box, second)]
    return "boxes.json", results, {"instances": "instances.json"}


FORMS = ("coco", "records", "caps_boxes", "image2bboxes", "results")


def write(root, file, content):
    lines = file.endswith(".jsonl")
    (root / file).write_text("\n".join(map(json.dumps, content)) + "\n" if lines else json.dumps(content))
    (root / "instances.json").write_text(json.dumps(INSTANCES))
    (root / "images").mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (40, 30)).save(root / "images" / f"{name}.jpg")
    return root


def read(root, split="train", **options):
    records = list(box_json(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


@pytest.mark.parametrize("boxes", WRITTEN)
@pytest.mark.parametrize("form", FORMS)
def test_the_exact_sample(tmp_path, form, boxes):
    file, content, options = of_form(form, WRITTEN[boxes], WRITTEN[boxes])
    write(tmp_path, file, content)
    (sample,), rejects = read(tmp_path, boxes=boxes, **options)
    assert not rejects
    for thing in sample.objects:
        assert thing.boxes[0] == pytest.approx(BOX)
        thing.boxes = [BOX]
    category = None if form == "records" else "dog"
    assert sample == Sample(
        id="7" if form in ("coco", "results") else "a.jpg",
        task="referring",
        width=40,
        height=30,
        frames=[str(tmp_path / "images" / "a.jpg")],
        objects=[Object([None], [BOX], category)] * 2,
        expressions=[Expression("every dog", [0, 1], "phrase" if form == "records" else "category")],
        source="box_json",
    )


def test_the_numbers_of_a_category_are_named_by_instances(tmp_path):
    write(tmp_path, "image2bboxes.json", {"a.jpg": [{"category_id": 4, "bbox": WRITTEN["xywh"]}]})
    (sample,), _ = read(tmp_path, instances="instances.json")
    assert [one.text for one in sample.expressions] == ["cat"]
    samples, (reject,) = read(tmp_path)
    assert not samples
    assert reject.reason == ("the box has no 'category', and its category_id 4 is not among those of `instances`")


def test_low_scores_are_left_out(tmp_path, caplog):
    _, content, options = of_form("results", WRITTEN["xywh"], WRITTEN["xywh"])
    content[0]["score"] = 0.3
    write(tmp_path, "boxes.json", content)
    caplog.set_level("INFO")
    (sample,), rejects = read(tmp_path, **options)
    assert len(sample.objects) == 1 and not rejects
    assert "1 boxes have a score below 0.5 and are skipped" in caplog.text
    assert len(read(tmp_path, min_score=0.1, **options)[0][0].objects) == 2


def test_pictures_are_split_and_none_straddles(tmp_path):
    records = [{"image": f"{name}.jpg", "boxes": [WRITTEN["xywh"]], "text": ["dog"]} for name in "abab"]
    write(tmp_path, "boxes.json", records)
    train, val = ([one.id for one in read(tmp_path, split, val_fraction=0.5)[0]] for split in ("train", "val"))
    assert sorted(train + val) == ["a.jpg", "a.jpg#2", "b.jpg", "b.jpg#2"]
    assert {name[0] for name in train}.isdisjoint(name[0] for name in val) and len(train) == 2
    with pytest.raises(ValueError, match="no split 'val': name the file boxes_val.json"):
        read(tmp_path, "val")


BAD = [
    ({"image": "a.jpg", "boxes": [], "text": ["dog"]}, "'boxes' has 0 entries and 'text' has 1"),
    ({"image": "a.jpg"}, "the record has no 'instances'"),
    ({"boxes": []}, "record 1 has no 'image'"),
    ({"image": "c.jpg", "boxes": [WRITTEN["xywh"]], "text": ["dog"]}, "image c.jpg not found"),
    ({"image": "a.jpg", "boxes": [[4, 3, 10]], "text": ["dog"]}, "its box must be 4 numbers (xywh)"),
    ({"image": "a.jpg", "boxes": [[30, 20, 38, 28]], "text": ["dog"]}, "is mostly out of its picture of 40 x 30"),
    ({"image": "a.jpg", "boxes": [WRITTEN["xywh"]], "text": [" "]}, "its text must be a phrase, got ' '"),
    ({"image": "a.jpg", "instances": ["dog"]}, "the box must be a dict with bbox, got str"),
    (7, "record 1 must be a dict with image, got int"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_record_is_a_reject_and_the_others_remain(tmp_path, bad, message):
    good = {"image": "b.jpg", "boxes": [WRITTEN["xywh"]], "text": ["dog"]}
    write(tmp_path, "boxes.json", [good, bad])
    (sample,), (reject,) = read(tmp_path)
    assert sample.id == "b.jpg" and message in reject.reason and reject.file == str(tmp_path / "boxes.json")


def test_a_bad_file_or_option_raises(tmp_path):
    write(tmp_path, "boxes.jsonl", [])
    (tmp_path / "boxes.jsonl").write_text('{"image": "a.jpg"}\n{')
    with pytest.raises(ValueError, match="boxes.jsonl is not JSON in line 2"):
        read(tmp_path)
    write(tmp_path, "boxes.json", 7)
    with pytest.raises(ValueError, match="must hold a dict or a list at its top level, got a int"):
        read(tmp_path)
    write(tmp_path, "boxes.json", of_form("results", WRITTEN["xywh"], WRITTEN["xywh"])[1])
    with pytest.raises(ValueError, match="holds results by image_id: name a COCO json with their images"):
        read(tmp_path)
    with pytest.raises(ValueError, match="option boxes must be one of xywh, xyxy, .*got 'yxyx'"):
        read(tmp_path, boxes="yxyx")


def test_boxes_are_cut_at_the_edge_and_never_turned_around():
    assert from_numbers([-2, -1, 10, 40], "xywh", 30, 40) == (0.0, 0.0, 8.0, 30.0)
    for box in ([20, 3, 10, 20], [4, 23, 14, 3]):
        with pytest.raises(ValueError, match="pixels: no object"):
            from_numbers(box, "xyxy", 30, 40)


def test_genuine_results(shared_data, tmp_path):
    results = json.loads((shared_data / "cocoapi_results" / "instances_val2014_fakebbox100_results.json").read_text())
    ids, kinds = ({one[key] for one in results} for key in ("image_id", "category_id"))
    pictures = [{"id": one, "file_name": f"{one}.png", "width": 700, "height": 700} for one in ids]
    categories = [{"id": one, "name": f"kind {one}"} for one in kinds]
    tables = {"images": pictures, "annotations": [], "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(tables))
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    (tmp_path / "images").mkdir()
    for picture in pictures:
        Image.new("1", (700, 700)).save(tmp_path / "images" / picture["file_name"])
    samples, rejects = read(tmp_path, instances="instances.json")
    high = [one for one in results if one["score"] >= 0.5]
    thin = [one for one in high if min(one["bbox"][2:]) < 1]
    assert len(rejects) == len(thin) and sum(len(sample.objects) for sample in samples) == len(high) - len(thin)
