"""ReasonSeg: painting order, regions that do not count, both encodings, explanations.

Run: pytest tests/data/sources/test_reason_seg.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, Turn, validate
from sa2va_hf.data.sources.reason_seg import reason_seg


def shape(label, left, top, right, bottom):
    points = [
        [left + 0.7, top + 0.7],
        [right, top],
        [right, bottom],
        [left, bottom],
    ]  # coordinates are cut to integers
    return {"label": label, "points": points, "shape_type": "polygon"}


TARGET = shape("target", 0, 0, 9, 9)  # 10 x 10: the outline belongs to it


def write(root, record, stem="a", encoding="utf-8", split="train"):
    (root / split).mkdir(parents=True, exist_ok=True)
    content = record if isinstance(record, bytes) else json.dumps(record, ensure_ascii=False).encode(encoding)
    (root / split / f"{stem}.json").write_bytes(content)
    Image.new("RGB", (40, 30)).save(root / split / f"{stem}.jpg")


def record(*shapes, text=("the thing",), is_sentence=False):
    return {"text": list(text), "is_sentence": is_sentence, "shapes": list(shapes)}


def read(root, split="train", **options):
    records = list(reason_seg(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_small_polygons_lie_on_top_whatever_their_order(tmp_path):
    shapes = [shape("ignore_1", 2, 2, 5, 5), TARGET, shape("flag", 20, 20, 29, 29), shape("Ignore", 0, 0, 19, 19)]
    write(tmp_path, record(*shapes, text=["Which?", " what "], is_sentence=True))
    (sample,), rejects = read(tmp_path)
    assert not rejects and (sample.id, sample.width, sample.height) == ("a", 40, 30)
    assert masks.area(sample.objects[0].masks[0]) == 100 - 16
    assert masks.area(sample.ignore[0]) == 400 - 100 + 16
    assert [(one.text, one.targets, one.kind) for one in sample.expressions] == [
        ("Which?", [0], "sentence"),
        ("what", [0], "sentence"),
    ]


def test_several_targets_are_one_object(tmp_path):
    write(tmp_path, record(TARGET, shape("target", 20, 20, 24, 24)))
    (sample,), _ = read(tmp_path)
    assert [masks.area(thing.masks[0]) for thing in sample.objects] == [125] and sample.ignore == []
    assert sample.expressions[0].kind == "phrase"


def test_cp1252_is_read(tmp_path):
    write(tmp_path, record(TARGET, text=["the caf\u00e9\u2019s sign"]), encoding="cp1252")
    (sample,), _ = read(tmp_path)
    assert sample.expressions[0].text == "the caf\u00e9\u2019s sign"


def test_an_explanation_is_a_dialogue_of_its_own(tmp_path):
    write(tmp_path, record(TARGET, text=["what barks"]))
    (tmp_path / "explanatory").mkdir()
    rows = [{"image": "a.jpg", "query": "what barks", "outputs": "Dogs bark."}, {"image": "a.jpg"}]
    (tmp_path / "explanatory/train.json").write_text(json.dumps(rows))
    (plain, explained), (reject,) = read(tmp_path)
    assert (explained.id, explained.task, explained.objects) == ("a/explained", "conversation", plain.objects)
    (turn,) = explained.turns
    assert turn.question == "what barks. Please segment it and explain why."
    assert (turn.answer, turn.targets) == ("It is [SEG]. Dogs bark.", [[0]])
    assert "explanation 1 has no 'outputs'" in reject.reason
    assert len(read(tmp_path, explain=False)[0]) == 1
    (told,), _ = read(tmp_path, forms=["told"])
    assert (told.id, told.turns) == ("a/told", [Turn("what barks", "Dogs bark.")])
    assert [one.id for one in read(tmp_path, forms=["told", "phrases"])[0]] == ["a", "a/told"]
    with pytest.raises(ValueError, match="forms: expected some of phrases, explained, told, got"):
        read(tmp_path, forms=["spoken"])


BAD = [
    (b"{", "is not JSON"),
    (b'"\x81"', "is neither UTF-8 nor cp1252 text"),
    ({"text": ["x"], "is_sentence": False}, "has no 'shapes'"),
    (record(TARGET, text=[]), "'text' must be a list of non-empty texts, got []"),
    (record(TARGET, text=["a", "."]), "'text' must be a list of non-empty texts"),
    (record(shape("ignore", 0, 0, 5, 5)), "no pixel is labelled 'target'"),
    (record(TARGET | {"label": "dog"}), "label must be 'target', 'flag' or contain 'ignore', got 'dog'"),
    (record(TARGET | {"points": [[1, 1], [2, 2]]}), "shape 0: polygon 0 has 2 points"),
    (record(TARGET | {"points": [1, "x", 2]}), "shape 0: polygon 0 has 3 values"),
    (record(TARGET | {"points": [1, 1, 5, 1, 5, 5]}), "shape 0: 'points' must be [[x, y], ...]"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_file_is_one_reject(tmp_path, bad, message):
    write(tmp_path, bad, "bad")
    write(tmp_path, record(TARGET), "good")
    (sample,), (reject,) = read(tmp_path)
    assert sample.id == "good" and reject.id == "bad" and reject.file.endswith("bad.json")
    assert message in reject.reason


def test_missing_pictures_and_splits_are_named(tmp_path):
    write(tmp_path, record(TARGET))
    (tmp_path / "train/a.jpg").unlink()
    assert "image a.jpg not found" in read(tmp_path)[1][0].reason
    with pytest.raises(ValueError, match="no annotations found in .*val; expected ROOT/val/X.json beside X.jpg"):
        read(tmp_path, "val")


def test_files_in_the_genuine_form(shared_data):
    root = shared_data / "shaped/reason_seg"
    counts = {}
    for split in ("train", "val", "test"):
        samples, rejects = read(root, split)
        assert not rejects
        counts[split] = len(samples)
        for sample in samples:
            shapes = json.loads((root / "ReasonSeg" / split / f"{sample.id[:8]}.json").read_text("cp1252"))["shapes"]
            if [one["label"] for one in shapes] == ["target"]:
                polygon = masks.from_polygons([shapes[0]["points"]], sample.height, sample.width)
                assert abs(masks.area(sample.objects[0].masks[0]) / masks.area(polygon) - 1) < 0.05
    assert counts == {"train": 3 + 2, "val": 1, "test": 1}
