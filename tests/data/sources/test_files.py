"""Shared parts of the sources: files are found or their absence is explained, splits do not overlap.

Run: pytest tests/data/sources/test_files.py
"""

import hashlib

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.data.sources.files import (
    annotation_file,
    find_picture,
    keep_split,
    read_annotation,
    read_json,
    recorded_hashes,
    sized_ids,
    upright_size,
)


def test_reading_records_the_hash_of_what_was_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    with recorded_hashes() as hashes:
        assert read_json(path, dict) == {"a": 1}
    assert hashes == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    read_annotation(path)  # outside of recording: nothing is kept
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "is not JSON: .*line 1"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1]", "must hold a dict .* got a list"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json {message}"):
        read_json(path, dict)


def test_missing_files_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(ValueError, match="annotation file .*b.json cannot be read: No such file"):
        read_json(tmp_path / "b.json", dict)
    with pytest.raises(ValueError, match="looked for .*x.json, .*y.json. Name it with --option annotations=FILE"):
        annotation_file(tmp_path, None, [tmp_path / "x.json", tmp_path / "y.json"])
    with pytest.raises(ValueError, match=f"image a.jpg not found; looked in {tmp_path}"):
        find_picture("a.jpg", [tmp_path])


def test_a_named_annotation_file_wins(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "y.json").write_text("[]")
    assert annotation_file(tmp_path, "y.json", [tmp_path / "x.json"]) == tmp_path / "y.json"
    assert annotation_file(tmp_path, None, [tmp_path / "x.json"]) == tmp_path / "x.json"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_turns_as_the_orientation_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert upright_size(tmp_path / "a.jpg") == ((30, 20) if orientation < 5 else (20, 30))


def test_a_mask_must_have_the_size_of_its_photo(tmp_path):
    Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(tmp_path / "m.png")
    assert sized_ids(tmp_path / "m.png", 20, 30).sum() == 20
    with pytest.raises(ValueError, match="m.png is 30 x 20 .* its photo is 31 x 20$"):
        sized_ids(tmp_path / "m.png", 20, 31)
    with pytest.raises(ValueError, match="its photo is 20 x 30; the photo is turned by its EXIF"):
        sized_ids(tmp_path / "m.png", 30, 20)


def test_held_out_pictures_are_the_same_whatever_the_order_and_share_nothing_with_training():
    keys = [f"{number}.jpg" for number in range(100)]
    train = keep_split(keys, "train", 0.2, "")
    val = keep_split(reversed(keys), "val", 0.2, "")
    assert len(val) == 20 and train | val == set(keys) and not train & val
    assert val == keep_split(keys, "val", 0.2, "")
    assert keep_split(keys, "train", 0, "") == keep_split(keys, "all", 0.2, "") == set(keys)
    assert len(keep_split(["a", "b"], "val", 0.01, "")) == len(keep_split(["a", "b"], "val", 0.99, "")) == 1


@pytest.mark.parametrize(
    ("keys", "split", "fraction", "message"),
    [
        (["a", "b"], "val", 0, "there is no split 'val': ADVICE, or take 'train' and 'val' with val_fraction=0.1"),
        (["a", "b"], "test", 0.5, "there is no split 'test'"),
        (["a"], "val", 0.5, "needs at least 2 pictures to split, there are 1"),
        (["a", "b"], "val", 1.0, r"val_fraction must be in \[0, 1\), got 1.0"),
    ],
)
def test_splits_that_cannot_be_made(keys, split, fraction, message):
    with pytest.raises(ValueError, match=message):
        keep_split(keys, split, fraction, "ADVICE")
