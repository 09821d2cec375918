"""Describe Anything: captions of regions, pictures unpacked or within tars.

Run: pytest tests/data/sources/test_describe_anything.py
"""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.media import load_image
from sa2va_hf.data.prepare.exclusion import sample_keys
from sa2va_hf.data.prompts.templates import REGION_QUESTIONS
from sa2va_hf.data.schema import Object, Reject, Sample, Turn, validate
from sa2va_hf.data.sources.describe_anything import describe_anything


def rle(x0, x1):
    mask = np.zeros((48, 64), bool)
    mask[:, x0:x1] = True
    return masks.encode(mask)


def region(caption, x0=0, x1=32, **changes):
    own = {"ann_id": 5, "img_id": 9, "image": "train2017/000000000009.jpg", "tar_file": "0.tar"}
    return own | {"caption": caption, "mask_rle": rle(x0, x1)} | changes


def jpeg(grey=0):
    data = io.BytesIO()
    Image.new("L", (64, 48), grey).save(data, "jpeg")
    return data.getvalue()


def write(root, annotations, tars=None, split="COCOStuff"):
    """tars: contents by name of member, by name of tar; None: one unpacked picture."""
    folder = root / split / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (root / split / "annotations.json").write_text(json.dumps(annotations))
    if tars is None:
        (folder / "000000000009.jpg").write_bytes(jpeg())
    for name, members in (tars or {}).items():
        with tarfile.open(folder / name, "w") as tar:
            for member, data in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return root


def read(root, split="COCOStuff", **options):
    records = list(describe_anything(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_the_exact_sample(tmp_path):
    write(tmp_path, {"000000000009": [region("A plate.", 0, 32), region("A <cup>.", 32, 64)]})
    (sample,), rejects = read(tmp_path)
    questions = [turn.question for turn in sample.turns]
    for number, question in enumerate(questions, start=1):
        assert question in [one.replace("{n}", str(number)) for one in REGION_QUESTIONS]
    assert not rejects and sample == Sample(
        id="COCOStuff/000000000009",
        task="region_caption",
        width=64,
        height=48,
        frames=[str(tmp_path / "COCOStuff/images/000000000009.jpg")],
        objects=[
            Object([rle(0, 32)], [(0.0, 0.0, 32.0, 48.0)]),
            Object([rle(32, 64)], [(32.0, 0.0, 64.0, 48.0)]),
        ],
        turns=[Turn(questions[0], "A plate."), Turn(questions[1], "A cup.")],
        regions=[0, 1],
        source="describe_anything",
    )


def test_a_region_need_not_be_in_a_list_and_many_regions_make_many_samples(tmp_path):
    write(tmp_path, {"000000000009": [region(f"Thing {n}.") for n in range(5)]})
    samples, _ = read(tmp_path, max_regions=2)
    assert [one.id for one in samples] == [
        "COCOStuff/000000000009",
        "COCOStuff#2/000000000009",
        "COCOStuff#3/000000000009",
    ]
    assert [turn.answer for one in samples for turn in one.turns] == [f"Thing {n}." for n in range(5)]
    write(tmp_path, {"000000000009": region("A plate.")})
    assert [turn.answer for turn in read(tmp_path)[0][0].turns] == ["A plate."]
    with pytest.raises(ValueError, match="max_regions and min_cells must be whole numbers from 1 on, got 0 and 4"):
        read(tmp_path, max_regions=0)


def test_pictures_within_tars_come_as_their_bytes(tmp_path):
    tars = {
        "0.tar": {"000000000009.jpg": jpeg(10), "000000000009.pickle": b"x"},
        "1.tar": {"a/12.2.jpg": jpeg(40), "a/12.0.jpg": jpeg(30), "a/12.1.jpg": jpeg(50), "77.jpg": jpeg(60)},
    }
    write(tmp_path, {"000000000009": region("A."), "12": [region("B.")], "0077": region("C.")}, tars)
    samples, rejects = read(tmp_path)
    assert not rejects and [one.frames for one in samples] == [[jpeg(10)], [jpeg(30)], [jpeg(60)]]
    assert load_image(samples[1].frames[0]).getpixel((5, 5))[0] == pytest.approx(30, abs=1), "of a clip the first"
    assert "coco 9" in sample_keys(samples[0]), "a picture without a path is excluded by its id"


BAD = [
    (region(" "), "its caption is empty"),
    (region(None), "the region: 'caption' must be str, got None"),
    (region("A.", mask_rle=[rle(0, 9)]), "the region: 'mask_rle' must be dict, got ["),
    (region("A.", mask_rle={"size": [48, 64], "counts": "zz"}), "RLE garbage"),
    (region("A.", mask_rle=masks.empty(48, 64)), "it covers 0 of the 16 x 16 cells"),
    ("A plate.", "the region must be a dict with caption, mask_rle, got str"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_region_is_a_reject_and_the_others_remain(tmp_path, bad, message):
    write(tmp_path, {"000000000009": [region("A plate."), bad]})
    (sample,), (reject,) = read(tmp_path)
    assert len(sample.regions) == 1 and reject.id == "COCOStuff/000000000009/region 1"
    assert message in reject.reason and reject.file == str(tmp_path / "COCOStuff" / "annotations.json")


def test_a_bad_record_is_a_reject(tmp_path):
    small = region("A.", mask_rle=masks.encode(np.ones((8, 8), bool)))
    write(tmp_path, {"000000000009": [region("A."), small], "000000000008": region("A.")})
    samples, rejects = read(tmp_path)
    assert not samples
    assert rejects[0].reason == "its masks are of different sizes (height, width): [(8, 8), (48, 64)]"
    assert rejects[1].reason == ("there is no picture 000000000008.jpg or 000000000008.0.jpg among the 1 pictures")


def test_bad_files_raise(tmp_path):
    write(tmp_path, {}, {})
    with pytest.raises(ValueError, match="there are no pictures in .*images, and none in tars there"):
        read(tmp_path)
    with pytest.raises(ValueError, match="the split 'SAV' not found; looked for"):
        read(tmp_path, "SAV")
    write(tmp_path, {}, {"0.tar": {"9.jpg": jpeg()}})
    tar = tmp_path / "COCOStuff" / "images" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match="0.tar cannot be read as an uncompressed tar"):
        read(tmp_path)
    write(tmp_path, [])
    with pytest.raises(ValueError, match="annotations.json must hold a dict at its top level"):
        read(tmp_path)
