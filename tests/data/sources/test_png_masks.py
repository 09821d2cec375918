"""Folders of photos and masks: the obvious layouts work, and what cannot be told is asked for, not guessed.

Run: pytest tests/data/sources/test_png_masks.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources.png_masks import png_masks


def photo(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 200)).save(path, **options)


def mask(path, *values, size=(40, 30)):
    """A mask with a block of 10 x 10 per value, side by side."""
    ids = np.zeros((size[1], size[0]), dtype=np.uint8)
    for number, value in enumerate(values):
        ids[:10, 10 * number : 10 * number + 10] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def read(root, split="train", **options):
    records = list(png_masks(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def meaning(sample):
    """Phrase -> x of the left edges of the objects it means."""
    return {one.text: sorted(sample.objects[index].boxes[0][0] for index in one.targets) for one in sample.expressions}


LAYOUTS = {
    "one mask per photo": ("images/a.jpg", {"masks/a.png": "the lesion"}),
    "other names of folders": ("JPEGImages/a.jpeg", {"Annotations/a.png": "the lesion"}),
    "a generic suffix": ("images/a.jpg", {"masks/a_segmentation.png": "the lesion"}),
    "numbered masks": ("images/a.jpg", {"masks/a_mask_1.png": "the lesion", "masks/a_mask_2.png": "the lesion"}),
    "phrase in the name": ("images/a.jpg", {"masks/a_left_cat.png": "left cat", "masks/a_dog.png": "dog"}),
    "a folder per photo": ("images/a.jpg", {"masks/a/left_cat.png": "left cat", "masks/a/dog 2.png": "dog"}),
    "a folder per phrase": ("images/a.jpg", {"masks/cat/a.png": "cat", "masks/red_dog/a.png": "red dog"}),
    "photos beside the folder of masks": ("a.jpg", {"masks/a.png": "the lesion"}),
    "all in one folder": ("a.jpg", {"a.png": "the lesion"}),
    "all in one folder, marked": ("a.png", {"a_mask.png": "the lesion"}),
    "one folder, phrase in the name": ("a.jpg", {"a_mask_cat.png": "cat"}),
    "a folder per split": ("train/images/a.jpg", {"train/masks/a.png": "the lesion"}),
    "splits inside": ("images/train/a.jpg", {"masks/train/a.png": "the lesion"}),
    "photos per split": ("train/a.jpg", {"train/a_mask.png": "the lesion"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_accepted_layouts(tmp_path, layout):
    image, of_photo = LAYOUTS[layout]
    photo(tmp_path / image)
    for name in of_photo:
        mask(tmp_path / name, 255)
    named = "the lesion" not in of_photo.values()
    (sample,), rejects = read(tmp_path, phrase=None if named else "the lesion")
    assert not rejects
    assert sample.id == "a" and sample.frames == [str(tmp_path / image)]
    assert {one.text for one in sample.expressions} == set(of_photo.values())
    assert sorted(index for one in sample.expressions for index in one.targets) == list(range(len(of_photo)))
    assert all(masks.area(thing.masks[0]) == 100 for thing in sample.objects)


@pytest.mark.parametrize("name", ["a_anno", "a_1stHO", "a_L", "a_inst_3", "a_mask0", "a_matte", "left_cat/a"])
def test_the_phrase_that_was_given_comes_before_the_names_of_files(tmp_path, name):
    photo(tmp_path / "images" / "a.bmp")
    mask(tmp_path / "masks" / f"{name}.bmp", 255)
    (sample,), rejects = read(tmp_path, phrase="the gland")
    assert not rejects and meaning(sample) == {"the gland": [0]}


@pytest.mark.parametrize("name", ["a_anno", "a_mask0", "a_matte", "a_inst_3", "a_GT_2", "a_seg1", "a-alpha"])
def test_a_suffix_that_names_no_object_is_no_phrase(tmp_path, name):
    photo(tmp_path / "images/a.jpg")
    mask(tmp_path / f"masks/{name}.png", 255)
    samples, [reject] = read(tmp_path)
    assert not samples and "nothing says what its mask shows" in reject.reason


def test_other_folders_explain_the_layouts(tmp_path):
    with pytest.raises(ValueError, match=r"holds no photos with masks \(split 'train'\)") as error:
        read(tmp_path)
    assert "images/X.jpg + masks/X.png" in str(error.value) and "labels.json" in str(error.value)
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "other.png", 255)
    with pytest.raises(ValueError, match="no mask in .*masks has the name of a photo in .*images"):
        read(tmp_path)


def test_a_mask_belongs_to_the_photo_with_the_longest_name(tmp_path):
    for name in ("a", "a_b"):
        photo(tmp_path / "images" / f"{name}.jpg")
    mask(tmp_path / "masks" / "a_dog.png", 255)
    mask(tmp_path / "masks" / "a_b_cat.png", 255)
    first, second = read(tmp_path)[0]
    assert (first.id, [one.text for one in first.expressions]) == ("a", ["dog"])
    assert (second.id, [one.text for one in second.expressions]) == ("a_b", ["cat"])


# ---------------------------------------------------------------- values and phrases


def test_several_values_are_several_objects_and_255_beside_declared_ids_is_void(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    path = tmp_path / "masks" / "a.png"
    mask(path, 1, 2, 255)
    assert "the values 1, 2, 255: is 255 an object, or not to be counted?" in one_reject(tmp_path, phrase="x").reason
    indices = Image.open(path)
    palette = Image.frombytes("P", indices.size, indices.tobytes())
    palette.putpalette([0, 0, 0, 128, 0, 0] * 128)
    palette.save(path)
    sample = next(one for one in read(tmp_path, phrase="a cell")[0] if one.id == "a")
    assert meaning(sample) == {"a cell": [0, 10]}
    assert masks.mask_to_box(masks.decode(sample.ignore[0])) == (20, 0, 30, 10)


def test_palette_indices_not_colours_are_the_values(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", 1, 2)
    image = Image.open(tmp_path / "masks" / "a.png")
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette([0, 0, 0] * 256)  # every index looks black
    palette.save(tmp_path / "masks" / "a.png")
    assert meaning(read(tmp_path, phrase="x")[0][0]) == {"x": [0, 10]}


def test_a_mask_without_pixels_says_that_nothing_matches(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    (sample,), _ = read(tmp_path, phrase="the lesion")
    assert not sample.objects and [(one.text, one.targets) for one in sample.expressions] == [("the lesion", [])]


def test_labels_say_what_masks_show(tmp_path):
    for name in "abcd":
        photo(tmp_path / "images" / f"{name}.jpg")
    mask(tmp_path / "masks" / "a.png", 1, 2, 9)
    mask(tmp_path / "masks" / "b.png", 1, 2)
    mask(tmp_path / "masks" / "c.png", 255)
    mask(tmp_path / "masks" / "d_old.png", 255)
    labels = {
        "default": "a thing",
        "ids": {"1": "road", "2": ["car", "vehicle"], "9": None},
        "images": {"b.jpg": {"1": "left lane"}, "c": "the red car", "d": {"old": "the old house"}},
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (a, b, c, d), rejects = read(tmp_path)
    assert not rejects
    assert meaning(a) == {"road": [0], "car": [10], "vehicle": [10]}
    assert masks.mask_to_box(masks.decode(a.ignore[0])) == (20, 0, 30, 10)  # null: does not count
    assert meaning(b) == {"left lane": [0], "car": [10], "vehicle": [10]}
    assert meaning(c) == {"the red car": [0]} and not c.ignore
    assert meaning(d) == {"the old house": [0]}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": "the dog"}, "has the keys a; expected default, ids and images"),
        ({"images": {"zebra": "x", "b.png": "y"}}, "names 2 images that are not there: b, zebra"),
        ({"ids": ["road"]}, "'ids' must be a dict"),
        ([], "must hold a dict"),
    ],
)
def test_bad_labels_raise(tmp_path, labels, message):
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", 255)
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


# ---------------------------------------------------------------- what is refused


def one_reject(tmp_path, **options):
    photo(tmp_path / "images" / "good.jpg")
    mask(tmp_path / "masks" / "good.png", 255)
    (sample,), (reject,) = read(tmp_path, **options)
    assert sample.id == "good"
    return reject


def test_a_phrase_is_not_guessed_from_the_name_of_a_photo(tmp_path):
    photo(tmp_path / "images" / "beach_001.jpg")
    mask(tmp_path / "masks" / "beach_001.png", 255)
    samples, (reject,) = read(tmp_path)
    assert not samples and reject.id == "beach_001"
    assert 'nothing says what its mask shows at value 255: give --option phrase="the lesion" or' in reject.reason


def test_a_photo_without_a_mask_and_a_mask_without_a_photo(tmp_path):
    photo(tmp_path / "images" / "alone.jpg")
    reject = one_reject(tmp_path, phrase="x")
    assert (reject.id, reject.file) == ("alone", str(tmp_path / "images" / "alone.jpg"))
    assert "there is no mask for this photo" in reject.reason
    (tmp_path / "images" / "alone.jpg").unlink()
    mask(tmp_path / "masks" / "lost.png", 255)
    assert "there is no photo of this name for the mask" in one_reject(tmp_path, phrase="x").reason


def test_two_photos_of_one_name(tmp_path):
    photo(tmp_path / "images" / "good.png")
    assert "there is also good.jpg: which is the photo?" in one_reject(tmp_path, phrase="x").reason


def test_a_mask_of_another_size_and_a_turned_one(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", 255, size=(20, 20))
    assert "a.png is 20 x 20 (width x height) but its photo is 40 x 30" in one_reject(tmp_path, phrase="x").reason
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "images" / "a.jpg", exif=exif)
    mask(tmp_path / "masks" / "a.png", 255)
    assert "turn the mask too" in one_reject(tmp_path, phrase="x").reason


def test_blurred_coloured_and_ambiguous_masks(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    path = tmp_path / "masks" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.arange(30 * 40, dtype=np.uint16).reshape(30, 40).astype(np.uint8)).save(path)
    assert "its edges look blurred" in one_reject(tmp_path, phrase="x").reason
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    assert "is a colour picture" in one_reject(tmp_path, phrase="x").reason
    mask(path, 128, 255)
    assert (
        "holds the values 128, 255: which of them are objects is not known" in one_reject(tmp_path, phrase="x").reason
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_a_grey_mask_with_soft_edges_is_one_object(tmp_path, suffix):
    """Of any picture format, JPEG included, and never with its white as "do not care"."""
    photo(tmp_path / "images" / "a.png")
    square = np.zeros((30, 40), np.uint8)
    square[10:20, 10:30] = 255
    square[9, 10:30], square[20, 10:30] = 64, 32
    (tmp_path / "masks").mkdir()
    Image.fromarray(square).save(tmp_path / f"masks/a{suffix}")
    (sample,), _ = read(tmp_path, phrase="the box")
    assert masks.area(sample.objects[0].masks[0]) == 200 and not sample.ignore


def test_a_share_of_the_photos_is_held_out(tmp_path):
    for number in range(10):
        photo(tmp_path / "images" / f"{number}.jpg")
        mask(tmp_path / "masks" / f"{number}.png", 255)
    options = {"phrase": "x", "val_fraction": 0.2}
    train, val = ({one.id for one in read(tmp_path, split, **options)[0]} for split in ("train", "val"))
    assert len(val) == 2 and len(train) == 8 and not train & val
    with pytest.raises(ValueError, match="no split 'val': make a folder .*val, or take"):
        read(tmp_path, "val", phrase="x")
