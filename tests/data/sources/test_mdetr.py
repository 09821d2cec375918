"""Phrases of captions and their boxes: every phrase means all of its boxes, every caption is joined by its id.

Run: pytest tests/data/sources/test_mdetr.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import pytest
from PIL import Image

from sa2va_hf.data.prepare.exclusion import sample_keys
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.mdetr import mdetr

CAPTION = "Two men in red hats, and a dog."
MEN, HATS, DOG = [0, 7], [11, 19], [25, 30]
FILES = {
    "flickr30k": ("final_flickr_separateGT_train.json", "flickr30k-images/100.jpg"),
    "gqa_grounding": ("final_mixed_train.json", "GQA/images/100.jpg"),
}


def annotation(number, spans, bbox, image_id=7, **changes):
    own = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 1.5, "bbox": bbox}
    return own | {"tokens_positive": spans} | changes


def image(number, caption, **changes):
    own = {"file_name": "100.jpg", "height": 30, "width": 40, "id": number, "caption": caption, "original_img_id": 100}
    return own | {"dataset_name": "flickr", "tokens_negative": [[0, len(caption)]], "sentence_id": number} | changes


def write(root, name, images, annotations):
    file, at = FILES[name]
    content = {"info": [], "licenses": [], "images": images, "annotations": annotations}
    content["categories"] = [{"supercategory": "object", "id": 1, "name": "object"}]
    (root / file).write_text(json.dumps(content))
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / at)
    return root


def read(root, name="flickr30k", split="train", **options):
    records = list(mdetr(root, split, name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


@pytest.mark.parametrize("name", FILES)
def test_the_exact_samples(tmp_path, name):
    # ids are neither the places in the list nor in its order: the join must be by id
    images = [image(7, CAPTION), image(3, "No box here."), image(1, "a cat")]
    annotations = [
        annotation(1, [MEN], [2, 3, 10, 20]),
        annotation(2, [[0, 5]], [0, 0, 5, 5], image_id=1),
        annotation(3, [MEN], [20, 3, 10, 20]),
        annotation(4, [[11, 14], [15, 19]], [-0.5, 3, 10.5, 2]),
        annotation(5, [DOG], [2, 3, 10, 20]),
    ]
    write(tmp_path, name, images, annotations)
    samples, rejects = read(tmp_path, name)
    assert not rejects
    frames = [str(tmp_path / FILES[name][1])]
    first = Sample(
        id=f"{name}/100#7",
        task="referring",
        width=40,
        height=30,
        frames=frames,
        objects=[
            Object([None], [(2.0, 3.0, 12.0, 23.0)]),
            Object([None], [(20.0, 3.0, 30.0, 23.0)]),
            Object([None], [(0.0, 3.0, 10.0, 5.0)]),
        ],
        expressions=[
            Expression("Two men", [0, 1], "phrase"),
            Expression("red hats", [2], "phrase"),
            Expression("a dog", [0], "phrase"),  # the box of the first man: one object
        ],
        source=name,
    )
    second = Sample(
        id=f"{name}/100#1",
        task="referring",
        width=40,
        height=30,
        frames=frames,
        objects=[Object([None], [(0.0, 0.0, 5.0, 5.0)])],
        expressions=[Expression("a cat", [0], "phrase")],
        source=name,
    )
    assert samples == [first, second]
    assert sample_keys(samples[1]) == {"100"}, "the caption's number is no number of a COCO picture"


def test_a_phrase_that_comes_twice_means_both(tmp_path):
    caption = "a dog beside a dog"
    boxes = [annotation(1, [[0, 5]], [0, 0, 5, 5]), annotation(2, [[13, 18]], [9, 9, 5, 5])]
    write(tmp_path, "flickr30k", [image(7, caption)], boxes)
    (sample,), _ = read(tmp_path)
    assert [(one.text, one.targets) for one in sample.expressions] == [("a dog", [0, 1])]


BAD = [
    (annotation(5, [[30, 40]], [2, 3, 4, 5]), "holds no word of the caption"),
    (annotation(5, [[31, 40]], [2, 3, 4, 5]), "the span [31, 40] is none of the caption of 31 characters"),
    (annotation(5, [[7, 2]], [2, 3, 4, 5]), "the span [7, 2] is none of the caption"),
    (annotation(5, [], [2, 3, 4, 5]), "'tokens_positive' must be a list of [start, end]"),
    (annotation(5, [3], [2, 3, 4, 5]), "a span must be [start, end] in characters, got 3"),
    (annotation(5, [MEN], [2, 3, 4, 0]), "its box [2, 3, 4, 0] (xywh) is 4 x 0 pixels"),
    (annotation(5, [MEN], [2, 3, 4, 5], image_id=8), "its image_id 8 is not among the images"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
@pytest.mark.parametrize("name", FILES)
def test_a_bad_annotation_is_one_reject_and_the_rest_remains(tmp_path, name, bad, message):
    write(tmp_path, name, [image(7, CAPTION)], [annotation(1, [DOG], [2, 3, 10, 20]), bad])
    (sample,), (reject,) = read(tmp_path, name)
    assert len(sample.objects) == 1 and message in reject.reason
    assert reject.file == str(tmp_path / FILES[name][0])


def test_a_bad_caption_is_a_reject(tmp_path):
    images = [image(7, CAPTION) | {"caption": None}, image(8, CAPTION, file_name="101.jpg"), image(9, CAPTION)]
    write(tmp_path, "flickr30k", images, [annotation(n, [DOG], [2, 3, 10, 20], n) for n in (7, 8, 9)])
    (sample,), rejects = read(tmp_path)
    assert sample.id == "flickr30k/100#9"
    assert [one.id for one in rejects] == ["flickr30k/7", "flickr30k/8"]
    assert "image 7: 'caption' must be str, got None" in rejects[0].reason
    assert "image 101.jpg not found; looked in" in rejects[1].reason


def test_other_files_of_the_form(tmp_path):
    write(
        tmp_path,
        "gqa_grounding",
        [image(7, "left man", dataset_name="refcoco")],
        [annotation(1, [[0, 8]], [2, 3, 9, 9])],
    )
    (tmp_path / "final_mixed_train.json").rename(tmp_path / "finetune_refcoco_train.json")
    with pytest.raises(ValueError, match="annotation file not found; looked for .*final_mixed_train.json"):
        read(tmp_path, "gqa_grounding")
    (sample,), _ = read(tmp_path, "gqa_grounding", annotations="finetune_refcoco_train.json")
    assert [(one.text, one.targets) for one in sample.expressions] == [("left man", [0])]


@pytest.mark.parametrize(("name", "file"), [
    ("flickr30k", "final_flickr_separateGT_train.json"),
    ("gqa_grounding", "final_mixed_train_no_coco.json"),
])  # fmt: skip
def test_files_in_the_genuine_form(shared_data, name, file):
    root, images = shared_data / "shaped" / "mdetr", shared_data / "coco2017_tiny" / "val2017"
    content = json.loads((root / file).read_text())
    samples, rejects = read(root, name, images=images)
    assert not rejects and sum(len(sample.objects) for sample in samples) == len(content["annotations"])
    captions = {one["id"]: one["caption"] for one in content["images"]}
    for sample in samples:
        for one in sample.expressions:
            assert one.text in captions[int(sample.id.split("#")[1])]
    assert [(one.text, one.targets) for one in samples[0].expressions] == [("motorcycle", [0]), ("man", [1])]
