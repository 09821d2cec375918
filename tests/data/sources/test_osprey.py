"""Osprey: every region is a prompt, every answer stands to its question, small regions are rejected.

Run: pytest tests/data/sources/test_osprey.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.prompts.templates import REGION_QUESTIONS
from sa2va_hf.data.schema import Object, Reject, Sample, Turn, validate
from sa2va_hf.data.sources.dialogue import covered_cells, read_turns
from sa2va_hf.data.sources.osprey import FILES, SHORTLY, TASK, osprey

POLYGON = [[0, 0, 16, 0, 16, 16, 0, 16]]
TALK = [
    {"from": "human", "value": "What is <region1> doing?"},
    {"from": "gpt", "value": "<region1> follows <region2>. "},
    {"from": "human", "value": "How many are there?"},
    {"from": "gpt", "value": "Two."},
]


def rle(x0, x1, y0=0, y1=48):
    mask = np.zeros((48, 64), bool)
    mask[y0:y1, x0:x1] = True
    return masks.encode(mask)


def record(segmentations, **changes):
    own = {"id": 9, "file_name": "000000000009.jpg", "height": 48, "width": 64}
    return own | {"annotation": [{"bbox": [0, 0, 9, 9], "segmentation": one} for one in segmentations]} | changes


def write(root, name, records, at="coco/train2017/000000000009.jpg"):
    path = root / "Osprey-724K" / FILES[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records))
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / at)
    return path


def read(root, name, split="train", **options):
    records = list(osprey(root, split, name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def expected(root, name, turns, things):
    return Sample(
        id=f"{name}/000000000009",
        task=TASK.get(name, "question"),
        width=64,
        height=48,
        frames=[str(root / "coco/train2017/000000000009.jpg")],
        objects=[Object([one], [masks.rle_to_box(one)]) for one in things],
        turns=turns,
        regions=list(range(len(things))),
        source=name,
    )


def test_the_exact_sample_of_a_conversation(tmp_path):
    uncompressed = {"size": [48, 64], "counts": [48 * 32, 48 * 32]}
    write(tmp_path, "osprey_conversation", [record([POLYGON, uncompressed], conversations=TALK)])
    (sample,), rejects = read(tmp_path, "osprey_conversation")
    turns = [
        Turn("What is region1 doing?", "region1 follows region2."),
        Turn("How many are there?", "Two."),
    ]
    things = [masks.from_polygons(POLYGON, 48, 64), rle(32, 64)]
    assert not rejects and sample == expected(tmp_path, "osprey_conversation", turns, things)


@pytest.mark.parametrize("name", ["osprey_short", "osprey_part", "osprey_positive_neg"])
def test_the_exact_sample_of_few_words(tmp_path, name):
    talk = [dict(one) for one in TALK]
    talk[2]["value"] += SHORTLY  # it says so already: not twice
    write(tmp_path, name, [record([rle(0, 32), rle(32, 64)], conversations=talk)])
    (sample,), rejects = read(tmp_path, name)
    turns = [
        Turn(f"What is region1 doing?{SHORTLY}", "region1 follows region2."),
        Turn(f"How many are there?{SHORTLY}", "Two."),
    ]
    assert not rejects and sample == expected(tmp_path, name, turns, [rle(0, 32), rle(32, 64)])


@pytest.mark.parametrize("key", ["description", "descriptions"])
def test_the_exact_sample_of_descriptions(tmp_path, key):
    texts = {key: ["A <b> dog.", "A cat."]}
    write(tmp_path, "osprey_detail", [record([rle(0, 32), rle(32, 64)], **texts)])
    (sample,), rejects = read(tmp_path, "osprey_detail")
    for number, turn in enumerate(sample.turns, start=1):
        assert turn.question in [one.replace("{n}", str(number)) for one in REGION_QUESTIONS]
    questions = [turn.question for turn in sample.turns]
    turns = [Turn(questions[0], "A b dog."), Turn(questions[1], "A cat.")]
    assert not rejects and sample == expected(tmp_path, "osprey_detail", turns, [rle(0, 32), rle(32, 64)])
    assert [turn.question for turn in read(tmp_path, "osprey_detail")[0][0].turns] == questions


def test_records_of_one_picture_have_ids_of_their_own(tmp_path):
    write(tmp_path, "osprey_conversation", [record([rle(0, 32)], conversations=TALK)] * 3)
    samples, _ = read(tmp_path, "osprey_conversation")
    assert [one.id.rpartition("/")[2] for one in samples] == ["000000000009", "000000000009#2", "000000000009#3"]


BAD = [
    ({"annotation": []}, "'annotation' is empty: a region is needed"),
    ({"annotation": [{"bbox": [0, 0, 9, 9]}]}, "region1: its annotation has no 'segmentation'"),
    ({"annotation": [{"segmentation": [[1, 1, 5, 5]]}]}, "region1: polygon 0 has 2 points"),
    ({"annotation": [{"segmentation": rle(0, 32)}, {"segmentation": rle(0, 9, 0, 3)}]},
     "region2: it covers 3 of the 16 x 16 cells that regions are seen in, 4 are needed"),
    ({"annotation": [{"segmentation": masks.empty(48, 60)}]}, "region1: the mask is 60 x 48"),
    ({"conversations": []}, "'conversations' must be a list of messages, got []"),
    ({"conversations": TALK[1:2]}, "no question of the 1 messages is answered"),
    ({"conversations": [TALK[0], TALK[1], TALK[1]]}, "message 2 is an answer that follows an answer"),
    ({"conversations": [{"from": "system", "value": "x"}]}, "message 0: 'from' must be human or gpt, got 'system'"),
    ({"conversations": [{"from": "human"}]}, "message 0 has no 'value'; it has from"),
    ({"conversations": [{"from": "human", "value": " "}]}, "message 0 of human is empty"),
    ({"file_name": "8.jpg"}, "image 8.jpg not found; looked in"),
    ({"height": "48"}, "record 1: 'height' must be int, got '48'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
@pytest.mark.parametrize("name", [name for name in FILES if name != "osprey_detail"])
def test_a_bad_record_is_a_reject_and_the_others_remain(tmp_path, name, changes, message):
    good = record([rle(0, 32), rle(32, 64)], conversations=TALK)
    path = write(tmp_path, name, [good, good | changes])
    (sample,), (reject,) = read(tmp_path, name)
    assert sample.id == f"{name}/000000000009"
    assert message in reject.reason and reject.file == str(path) and reject.id.startswith("record 1 (")


@pytest.mark.parametrize(("texts", "message"), [
    ({}, "'description' must be a list of texts, got None"),
    ({"description": ["A dog."]}, "'description' has 1 texts for 2 regions"),
    ({"description": ["A dog.", ""]}, "'description' must be a list of texts"),
])  # fmt: skip
def test_bad_descriptions(tmp_path, texts, message):
    write(tmp_path, "osprey_detail", [record([rle(0, 32), rle(32, 64)], **texts)])
    samples, (reject,) = read(tmp_path, "osprey_detail")
    assert not samples and message in reject.reason


@pytest.mark.parametrize("at", ["train2014/COCO_train2014_000000000009.jpg", "VG_100K_2/000000000009.jpg"])
def test_the_places_of_pictures(tmp_path, at):
    write(tmp_path, "osprey_conversation", [record([rle(0, 32)], conversations=TALK)], at)
    (sample,), _ = read(tmp_path, "osprey_conversation")
    assert sample.frames == [str(tmp_path / at)]
    folders = [tmp_path / "none", tmp_path / at.split("/")[0]]
    assert read(tmp_path, "osprey_conversation", images=folders)[0] == [sample]


def test_options_and_splits(tmp_path):
    write(tmp_path, "osprey_conversation", [record([rle(0, 9, 0, 3)], conversations=TALK)])
    assert len(read(tmp_path, "osprey_conversation", min_cells=3)[0]) == 1
    with pytest.raises(ValueError, match="option min_cells must be a whole number from 1 on, got 0"):
        read(tmp_path, "osprey_conversation", min_cells=0)
    with pytest.raises(ValueError, match="osprey_conversation has no split 'val'"):
        read(tmp_path, "osprey_conversation", "val")


def test_cells_are_those_of_the_models_grid():
    rng = np.random.default_rng(0)
    for height, width in ((48, 64), (37, 101), (16, 16), (5, 300)):
        mask = rng.random((height, width)) < 0.3
        cells = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=(16, 16))
        assert covered_cells(masks.encode(mask)) == int(cells.sum())


def test_messages_that_belong_to_no_pair_are_counted():
    pairs, left_out = read_turns([TALK[1], TALK[0], TALK[2], TALK[3], TALK[2]])
    assert pairs == [("What is <region1> doing?\nHow many are there?", "Two.")] and left_out == 2


@pytest.mark.parametrize(("name", "regions", "turns"), [
    ("osprey_conversation", 2, 2), ("osprey_detail", 2, 2), ("osprey_short", 1, 1)
])  # fmt: skip
def test_files_in_the_genuine_form(shared_data, name, regions, turns):
    root, images = shared_data / "shaped" / "osprey", shared_data / "coco2017_tiny" / "val2017"
    (sample,), rejects = read(root, name, images=images, min_cells=3)
    assert not rejects and (len(sample.regions), len(sample.turns)) == (regions, turns)
    if name == "osprey_conversation":
        assert "region2: it covers 3 of the 16 x 16 cells" in read(root, name, images=images)[1][0].reason
    if name == "osprey_short":
        assert sample.turns == [Turn(f"What is region1?{SHORTLY}", "elephant")]
