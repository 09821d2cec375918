"""Prepared folders whose files were lost, cut or changed."""

import json
import random

import pytest
from datasets import Dataset

from sa2va_hf.data.prepare.manifest import Manifest
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.prepare.verification import open_folder


@pytest.fixture
def folder(tmp_path):
    prepare("shapes", None, "train", tmp_path / "data", options={"count": 6, "num_frames": 2, "max_objects": 2})
    return tmp_path / "data"


def test_a_sound_folder_opens(folder, tmp_path):
    assert len(open_folder(folder, verify=True)) == len(open_folder(folder)) == Manifest.load(folder).samples
    Dataset.from_dict({"a": [1, 2]}).save_to_disk(tmp_path / "other")
    assert open_folder(tmp_path / "other")["a"][:] == [1, 2]
    with pytest.raises(ValueError, match=r"`verify_data`: .*other has no manifest\.json"):
        open_folder(tmp_path / "other", verify=True)


def test_a_missing_file_is_named(folder):
    (folder / "data-00000.arrow").unlink()
    with pytest.raises(
        ValueError, match=r"data-00000\.arrow: no such file, but .*state\.json lists it; copy it again"
    ):
        open_folder(folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_file_is_named_without_reading_all_of_it(folder, share):
    path = folder / "data-00000.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"data-00000\.arrow is no whole Arrow file: .*; copy it again, or prepare"):
        open_folder(folder)


def test_a_changed_byte_is_found_when_it_is_looked_for(folder):
    path = folder / "data-00000.arrow"
    content = bytearray(path.read_bytes())
    place = random.Random(0).randrange(len(content) // 2, len(content) * 3 // 4)
    content[place] ^= 1
    path.write_bytes(bytes(content))
    open_folder(folder)  # nothing that Arrow itself would see
    with pytest.raises(ValueError, match=r"data-00000\.arrow: not what was prepared .*sha256.*; copy it again"):
        open_folder(folder, verify=True)


def test_an_index_that_is_no_json_is_named(folder):
    (folder / "state.json").write_text(json.dumps({})[:1])
    with pytest.raises(ValueError, match=r"state\.json cannot be read"):
        open_folder(folder)
