"""Folders of frames and mask pictures: every index of the palette is an object, on the frame its number says.

Run: pytest tests/data/sources/test_vos_folders.py      (SA2VA_TEST_DATA adds DAVIS)
"""

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 10, 6


def ids(*spots):
    """Indices (H, W) with a 2 x 2 square of each value at its column."""
    picture = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for value, x in spots:
        picture[2:4, x : x + 2] = value
    return picture


def square(x):
    return masks.encode(ids((1, x)) == 1)


ABSENT = masks.empty(HEIGHT, WIDTH)


def draw_frames(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number:05d}.jpg")


def save(path, picture, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture, mode)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + 756 * [0])  # fewer colours: fewer bits, no 255
    image.save(path)


def split_up(records):
    records = list(records)
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_palette_folders_become_exactly_this_sample(tmp_path):
    draw_frames(tmp_path / "train/JPEGImages/zoo")
    save(tmp_path / "train/Annotations/zoo/00000000.png", ids((1, 0), (3, 4), (255, 8)))  # 8 digits for frame 00000
    save(tmp_path / "train/Annotations/zoo/00000002.png", ids((3, 5)))
    (sample,), rejects = split_up(SOURCES["vos_folders"](tmp_path, "train"))
    assert not rejects
    assert sample == Sample(
        "zoo",
        "referring",
        WIDTH,
        HEIGHT,
        frames=[str(tmp_path / f"train/JPEGImages/zoo/0000{number}.jpg") for number in range(3)],
        num_frames=3,
        annotated=[0, 2],  # frame 1 has no mask picture: nobody looked
        objects=[Object([square(0), ABSENT], [None] * 2), Object([square(4), square(5)], [None] * 2)],
        ignore=[square(8), None],  # 255 beside indices is void
        source="vos_folders",
    )


@pytest.mark.parametrize(
    ("frames", "annotations", "videos", "digits"),
    [
        ("JPEGImages/480p", "Annotations/480p", "ImageSets/2017/train.txt", 5),  # DAVIS-2017
        ("DAVIS/JPEGImages/480p", "DAVIS/Annotations/480p", "DAVIS/ImageSets/2017/train.txt", 5),
        ("train/JPEGImages", "train/Annotations", None, 5),  # MOSE, YouTube-VOS
        ("train/JPEGImages", "train/Annotations", None, 8),  # LVOS: 00000001.jpg
        ("sav_train/JPEGImages_24fps", "sav_train/Annotations_6fps", "sav_train/sav_train.txt", 5),
    ],
)
def test_the_layouts_of_the_datasets(tmp_path, frames, annotations, videos, digits):
    names = ["zoo", "other"]
    for name in names:
        (tmp_path / frames / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / frames / name / f"{number:0{digits}d}.jpg")
        save(tmp_path / annotations / name / f"{1:0{digits}d}.png", ids((2, 3)))
    if videos:
        (tmp_path / videos).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / videos).write_text("zoo\n")
    samples, rejects = split_up(SOURCES["vos_folders"](tmp_path, "train"))
    assert not rejects and [sample.id for sample in samples] == (["zoo"] if videos else sorted(names))
    assert all(sample.annotated == [1] and sample.num_frames == 3 for sample in samples)
    assert all(sample.objects == [Object([square(3)], [None])] for sample in samples)


def test_mose_lists_name_their_videos(tmp_path, shared_data):
    file = next(path for path in sorted((shared_data / "mose_lists").iterdir()) if "train" in path.name)
    listed = file.read_text().split()[:2]
    for name in (*listed, "unlisted"):
        draw_frames(tmp_path / f"train/JPEGImages/{name}", 1)
        save(tmp_path / f"train/Annotations/{name}/00000.png", ids((1, 0)))
    samples, rejects = split_up(SOURCES["vos_folders"](tmp_path, "train", videos=file))
    assert [sample.id for sample in samples] == listed
    assert len(rejects) == len(file.read_text().split()) - 2  # those that were not downloaded are named


def test_grey_masks_of_255_are_one_object(tmp_path):
    draw_frames(tmp_path / "JPEGImages/480p/zoo")
    save(tmp_path / "Annotations/480p/zoo/00001.png", ids((255, 3)), "L")
    (sample,), rejects = split_up(SOURCES["vos_folders"](tmp_path, "val"))
    assert not rejects and not sample.ignore and sample.annotated == [1]
    assert sample.objects == [Object([square(3)], [None])]


def test_a_folder_per_object_as_in_sav_val(tmp_path):
    draw_frames(tmp_path / "sav_val/JPEGImages_24fps/v1", 9)
    draw_frames(tmp_path / "sav_val/JPEGImages_24fps/unlisted", 1)
    masks_of = tmp_path / "sav_val/Annotations_6fps"
    save(masks_of / "v1/000/00000.png", ids((255, 0)), "L")
    save(masks_of / "v1/000/00008.png", ids((255, 1)), "L")
    save(masks_of / "v1/001/00004.png", ids((255, 6)), "L")
    save(masks_of / "unlisted/000/00000.png", ids((255, 0)), "L")
    (tmp_path / "sav_val/sav_val.txt").write_text("v1\n")
    (sample,), rejects = split_up(SOURCES["vos_folders"](tmp_path, "val"))
    assert not rejects and sample.annotated == [0, 4, 8] and sample.num_frames == 9
    expected = [[square(0), ABSENT, square(1)], [ABSENT, square(6), ABSENT]]  # no file of its own: absent
    assert [thing.masks for thing in sample.objects] == expected


def test_lists_say_which_videos(tmp_path):
    for name in ("a", "b", "c"):
        draw_frames(tmp_path / f"JPEGImages/480p/{name}", 1)
        save(tmp_path / f"Annotations/480p/{name}/00000.png", ids((1, 0)))
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/train.txt").write_text("c\na\n\n")
    (tmp_path / "mine.txt").write_text("a\nb\n")
    options = [{}, {"exclude": tmp_path / "mine.txt"}, {"videos": tmp_path / "mine.txt"}]
    found = [[one.id for one in SOURCES["vos_folders"](tmp_path, "train", **each)] for each in options]
    assert found == [["c", "a"], ["c"], ["a", "b"]]


def test_what_cannot_be_used_is_rejected_by_name(tmp_path):
    base = tmp_path / "train"
    for name in ("colour", "size", "late", "empty", "framed", "jpeg"):
        draw_frames(base / f"JPEGImages/{name}", 2)
        save(base / f"Annotations/{name}/00000.png", ids((1, 0)))
    Image.new("RGB", (WIDTH, HEIGHT), (128, 0, 0)).save(base / "Annotations/colour/00000.png")
    save(base / "Annotations/size/00001.png", np.zeros((HEIGHT, WIDTH - 1), dtype=np.uint8))
    save(base / "Annotations/late/00007.png", ids((1, 0)))
    save(base / "Annotations/empty/00000.png", ids())
    save(base / "Annotations/noframes/00000.png", ids((1, 0)))
    (base / "JPEGImages/framed/first.jpg").write_bytes(b"")
    (base / "Annotations/jpeg/00000.png").rename(base / "Annotations/jpeg/00000.jpg")
    samples, rejects = split_up(SOURCES["vos_folders"](tmp_path, "train"))
    reasons = {reject.id: reject.reason for reject in rejects}
    assert [sample.id for sample in samples] == ["late", "size"]  # the rest of their masks is used
    assert all(sample.annotated == [0] for sample in samples)
    assert "is a colour picture (mode RGB)" in reasons.pop("colour/00000")
    assert f"is 9 x 6 (width x height) but its photo is {WIDTH} x {HEIGHT}" in reasons.pop("size/00001")
    assert "there is no frame 7 for the mask" in reasons.pop("late/00007")
    assert reasons.pop("empty") == "its mask pictures hold no object on any frame"
    assert "there are no frames in" in reasons.pop("noframes")
    assert "has no number at the end of its name" in reasons.pop("framed")
    assert reasons.pop("jpeg").endswith("Annotations/jpeg with the suffix .png, only 00000.jpg: save them so")
    assert not reasons


def test_missing_folders_are_listed(tmp_path):
    with pytest.raises(ValueError, match="no folders of frames and of masks for split 'train'; looked for .*480p"):
        list(SOURCES["vos_folders"](tmp_path, "train"))


@pytest.mark.parametrize("genuine", [True, False])
def test_davis_masks_have_the_area_of_their_pictures(shared_data, genuine):
    folder = "davis/Annotations_2016_binary/480p" if genuine else "shaped/davis17_like/Annotations/480p"
    options = {"frames": shared_data / "davis/JPEGImages/480p", "annotations": shared_data / folder}
    samples, rejects = split_up(SOURCES["vos_folders"](shared_data / folder.split("/Ann")[0], "val", **options))
    assert not rejects and len(samples) == 6
    assert sum(sample.num_frames for sample in samples) == 74
    if genuine:
        assert all(len(sample.objects) == 1 for sample in samples)
    for sample in samples:
        for at, number in enumerate(sample.annotated):
            stem = sample.frames[number].rsplit("/", 1)[1].removesuffix(".jpg")
            with Image.open(shared_data / folder / sample.id / f"{stem}.png") as picture:
                truth = np.asarray(picture)
            found = sorted(masks.area(thing.masks[at]) for thing in sample.objects)
            values = {int(value) for value in np.unique(truth)} - {0}
            wanted = [int((truth == value).sum()) for value in values]
            assert [area for area in found if area] == sorted(wanted)
