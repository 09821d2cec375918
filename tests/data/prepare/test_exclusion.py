"""Pictures on a list are left out under any of their names, and counted.

Run: pytest tests/data/prepare/test_exclusion.py
"""

import pytest
from records import clip, given, picture, read, sample

from sa2va_hf.data.prepare.exclusion import picture_key
from sa2va_hf.data.prepare.run import prepare


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_train2014_000000460986.jpg", "coco 460986"),
        ("images/train2017/000000460986.jpg", "coco 460986"),
        ("VG_100K/460986.jpg", "460986"),  # Visual Genome's own number
        (r"images\cat.v2.png", "cat.v2"),
        ("sa_000123.jpg", "sa_000123"),
    ],
)
def test_a_picture_has_one_key_in_all_datasets(name, key):
    assert picture_key(name) == key


def test_pictures_on_a_list_are_left_out_and_counted(tmp_path, source):
    names = ["COCO_train2014_000000000009.jpg", "000000000025.jpg", "cat.v2.png", "dog.png"]
    samples = [sample(f"set/x{n}", picture(tmp_path / name)) for n, name in enumerate(names)]
    source(*samples, clip("clip", [picture(tmp_path / "v7" / f"{n}.jpg") for n in range(2)]))
    (tmp_path / "list.txt").write_text("9\n\nCOCO_val2014_000000000025.jpg\n")
    (tmp_path / "list.json").write_text('["folder/cat.v2.png", "v7"]')
    lists = [tmp_path / "list.txt", tmp_path / "list.json"]
    manifest = given(tmp_path, exclude=lists)
    assert [one.id for one in read(tmp_path / "out")] == ["set/x3"]
    assert manifest.excluded == 4 and not manifest.rejects and list(manifest.exclude) == list(map(str, lists))
    assert given(tmp_path, exclude=lists, num_proc=2, overwrite=True) == manifest


def test_a_prepared_folder_is_a_list_too(tmp_path, source):
    frames = [picture(tmp_path / folder / f"00000000000{n}.jpg") for folder in "ab" for n in (1, 2)]
    source(sample("x", frames[0]), sample("set/2", picture(tmp_path / "2.jpg")))
    prepare("given", tmp_path, "train", tmp_path / "val")
    source(sample("set/1", frames[2]), sample("set/2", frames[3]))
    given(tmp_path, exclude=[tmp_path / "val"])
    assert [one.id for one in read(tmp_path / "out")] == ["set/2"]
    with pytest.raises(ValueError, match=r"has no samples in split 'train' \(2 excluded\)"):
        given(tmp_path, exclude=[tmp_path / "val", tmp_path / "out"], overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt cannot be read: "),
        ("a.txt", "\n", "a.txt is empty"),
        ("a.json", "{", "a.json cannot be read: "),
        ("a.json", '{"a": 1}', "a.json must be a JSON list"),
        ("folder", "", "is a folder, but not one that prepare_data.py wrote"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, source, name, content, message):
    source(sample("a", picture(tmp_path / "a.png")))
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        given(tmp_path, exclude=[tmp_path / name])


def test_a_number_on_a_list_is_an_id_of_coco_too_but_a_file_of_that_name_is_not(tmp_path, source):
    coco, genome = picture(tmp_path / "000000000007.jpg"), picture(tmp_path / "7.jpg")
    embedded = sample("set/7", (tmp_path / "7.jpg").read_bytes())
    (tmp_path / "list.txt").write_text("7\n")
    (tmp_path / "names.txt").write_text("000000000007.jpg\n")
    source(sample("a", coco), sample("b", genome), sample("c", picture(tmp_path / "8.jpg")), embedded)
    given(tmp_path, exclude=[tmp_path / "list.txt"])
    assert [one.id for one in read(tmp_path / "out")] == ["c"]
    given(tmp_path, exclude=[tmp_path / "names.txt"], overwrite=True)
    assert [one.id for one in read(tmp_path / "out")] == ["b", "c"]
