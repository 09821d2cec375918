"""ADE20K in full: classes in colours, parts of what they lie on, the names of both releases.

Run: pytest tests/data/sources/test_ade20k_full.py      (SA2VA_TEST_DATA adds another project's files of this form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.ade20k_full import ade20k_full

CAR, PERSON, WHEEL, RIM = 401, 1831, 2860, 2122
THINGS = np.zeros((4, 6, 2), int)  # class, instance
THINGS[:, :2] = CAR, 40
THINGS[:, 2:4] = CAR, 80
THINGS[0, 4:] = PERSON, 120
PARTS = np.zeros((4, 6, 2), int)
PARTS[2:, 0] = WHEEL, 30
PARTS[2:, 3:5] = WHEEL, 60  # half of it beside the car
PARTS[2, 2] = WHEEL, 60
RIMS = np.zeros((4, 6, 2), int)
RIMS[3, 0] = RIM, 255
TEXTS = {CAR: "car, auto", PERSON: "person, individual, someone", WHEEL: "wheel", RIM: "rim"}
ROWS = """001 # 0 # 0 # car, auto # car # "parked"
002 # 0 # 1 # car, auto # caf\xe9 car # ""
003 # 0 # 0 # person, individual, someone # man # ""
001 # 1 # 0 # wheel # wheel # ""
002 # 1 # 0 # wheel # wheel # ""
001 # 2 # 0 # rim # rim # ""
"""


def colours(segments):
    labels, instances = segments[..., 0], segments[..., 1]
    return Image.fromarray(np.stack([labels // 256 * 10, labels % 256, instances], axis=-1).astype(np.uint8))


def write(root, release, maps=(THINGS, PARTS, RIMS), texts=TEXTS, rows=ROWS, size=(6, 4)):
    folder = root / {"2017": "images/training/s/street", "2021": "images/ADE/training/urban/street"}[release]
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / "ADE_1.jpg")
    for name, segments in zip(("seg", "parts_1", "parts_2"), maps, strict=False):
        colours(segments).save(folder / f"ADE_1_{name}.png")
    if release == "2017":
        (folder / "ADE_1_atr.txt").write_bytes(rows.encode("latin-1"))
    else:
        objects = [{"id": n, "name": text, "name_ndx": label, "raw_name": "caf\xe9", "parts": {"ispartof": []}}
                   for n, (label, text) in enumerate(texts.items())]  # fmt: skip
        content = {"annotation": {"filename": "ADE_1.jpg", "object": objects if len(objects) > 1 else objects[0]}}
        (folder / "ADE_1.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("latin-1"))
    return folder


def read(root, split="train", **options):
    records = list(ade20k_full(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def thing(segments, label, instance, category):
    mask = (segments == (label, instance)).all(-1)
    return Object([masks.encode(mask)], [masks.mask_to_box(mask)], category)


@pytest.mark.parametrize(("release", "name"), [("2017", "s/street/ADE_1"), ("2021", "urban/street/ADE_1")])
def test_the_exact_sample(tmp_path, release, name):
    folder = write(tmp_path, release)
    samples, rejects = read(tmp_path)
    expected = Sample(name, "referring", 6, 4, [str(folder / "ADE_1.jpg")], source="ade20k_full")
    expected.objects = [
        thing(THINGS, CAR, 40, "car"),
        thing(THINGS, CAR, 80, "car"),
        thing(THINGS, PERSON, 120, "person"),
        thing(PARTS, WHEEL, 30, "car:wheel"),
        thing(PARTS, WHEEL, 60, "car:wheel"),
        thing(RIMS, RIM, 255, "wheel:rim"),
    ]
    expected.expressions = [
        Expression("car", [0, 1], "category"),
        Expression("person", [2], "category"),
        Expression("wheel of the car", [3, 4], "part"),
        Expression("rim of the wheel", [5], "part"),
    ]
    expected.ignore = [masks.encode(THINGS[..., 0] == 0)]
    assert samples == [expected] and not rejects


def test_a_part_on_nothing_and_the_phrase(tmp_path):
    lonely = np.zeros((4, 6, 2), int)
    lonely[3, 4:] = WHEEL, 5
    write(tmp_path, "2021", (THINGS, lonely))
    assert read(tmp_path)[0][0].expressions[-1] == Expression("wheel", [3], "category")
    write(tmp_path, "2021")
    assert read(tmp_path, part="{object} {part}")[0][0].expressions[-1].text == "wheel rim"
    with pytest.raises(ValueError, match="option part must contain {part} and {object}"):
        read(tmp_path, part="its {part}")


def test_a_part_of_a_part_whose_level_is_empty_there_belongs_to_the_thing(tmp_path):
    rims = np.zeros((4, 6, 2), int)
    rims[0, 0] = RIM, 9  # on a car, on no wheel
    write(tmp_path, "2021", (THINGS, PARTS, rims))
    assert read(tmp_path)[0][0].expressions[-1].text == "rim of the car"


@pytest.mark.parametrize("instances", [(1, 2, 3), (40, 80, 120), (3, 5, 200)])
def test_2017_counts_instances_itself_or_by_the_order_of_their_values(tmp_path, instances):
    segments = THINGS.copy()
    for old, new in zip((40, 80, 120), instances, strict=True):
        segments[..., 1][THINGS[..., 1] == old] = new
    write(tmp_path, "2017", (segments,))
    (sample,), _ = read(tmp_path)
    assert [(one.text, one.targets) for one in sample.expressions] == [("car", [0, 1]), ("person", [2])]


def test_2017_the_wrong_one_of_two_ways_to_count_gives_a_class_two_names(tmp_path):
    """Values 1, 3, 4 of which all are numbers, while by their order 3 would be the person."""
    segments = THINGS.copy()
    for old, new in zip((40, 80, 120), (1, 3, 4), strict=True):
        segments[..., 1][THINGS[..., 1] == old] = new
    rows = "".join(
        f'00{n} # 0 # 0 # {name} # x # ""\n' for n, name in enumerate(("car", "person", "car", "person"), 1)
    )
    write(tmp_path, "2017", (segments,), rows=rows)
    assert [one.text for one in read(tmp_path)[0][0].expressions] == ["car", "person"]


BAD = [
    ("2017", {"rows": ROWS.replace("003", "xyz")}, "ADE_1_atr.txt line 3 must be 'INSTANCE # LEVEL"),
    ("2017", {"rows": ROWS.replace("wheel # wheel", " , # x")}, "ADE_1_atr.txt has the empty name ','"),
    ("2017", {"rows": ROWS[:80]}, "the instances [40, 80, 120] of _seg.png do not fit those of level 0"),
    ("2017", {"rows": ROWS.split("001 # 2")[0]}, "the instances [255] of _parts_2.png do not fit those of level 2"),
    ("2021", {"texts": {CAR: "car"}}, "class 1831 of its PNGs is no name_ndx of ADE_1.json, which has [401]"),
    ("2021", {"texts": TEXTS | {7: None}}, "ADE_1.json: object 4: 'name' must be str, got None"),
    ("2021", {"maps": (THINGS * 0,)}, "none of its pixels has a class"),
    ("2021", {"size": (6, 5)}, "ADE_1_seg.png is 6 x 4 (width x height) but its photo is 6 x 5"),
]


@pytest.mark.parametrize(("release", "changes", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_a_bad_picture_is_a_reject(tmp_path, release, changes, message):
    folder = write(tmp_path, release, **changes)
    samples, (reject,) = read(tmp_path)
    assert not samples and message in reject.reason
    assert reject.file == str(folder / "ADE_1_seg.png")


def test_missing_files_are_named(tmp_path):
    folder = write(tmp_path, "2021")
    (folder / "ADE_1.json").write_text("{")
    assert "ADE_1.json is not JSON" in read(tmp_path)[1][0].reason
    (folder / "ADE_1.json").unlink()
    assert "there is neither ADE_1_atr.txt (2017) nor ADE_1.json" in read(tmp_path)[1][0].reason
    (folder / "ADE_1.jpg").unlink()
    assert "image ADE_1.jpg not found" in read(tmp_path)[1][0].reason
    with pytest.raises(ValueError, match="the pictures of ADE20K not found; looked for .*There is no split 'test'"):
        read(tmp_path, "test")
    (tmp_path / "images/ADE/validation").mkdir()
    with pytest.raises(ValueError, match="there are no files X_seg.png in or below"):
        read(tmp_path, "val")


def test_files_of_another_project(shared_data):
    root = shared_data / "datumaro_fixtures"
    (sample,), rejects = read(root / "ade20k2020_dataset/dataset", "val")
    assert [(one.text, one.targets) for one in sample.expressions] == [
        ("car", [0]), ("person", [1]), ("door of the car", [2]), ("rim of the door", [3])]  # fmt: skip
    assert [masks.area(one.masks[0]) for one in sample.objects] == [15, 5, 10, 5] and not rejects
    (sample,), rejects = read(root / "ade20k2017_dataset/dataset", "train")
    assert sample.expressions[0] == Expression("sky", [0], "category") and not rejects  # its second class is 0, none
