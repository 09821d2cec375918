"""Folders of parts: what belongs together, which masks count, what is too small, what is asked for and not guessed.

Run: pytest tests/data/sources/test_folder_parts.py      (SA2VA_TEST_DATA adds polygons in the genuine form)
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.folder_parts import folder_parts, read_shapes

BLOCK = np.zeros((8, 12), bool)
BLOCK[2:5, 3:9] = True
DOTS = BLOCK.copy()
DOTS[7, 0] = DOTS[7, 10:] = True


def photo(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 200)).save(path, {".jfif": "JPEG"}.get(path.suffix.lower()))


def draw(path, mask=BLOCK):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def polygon(label="target", points=((3, 2), (8, 2), (8, 4), (3, 4)), kind="polygon"):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind}


def shapes(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "5.0", "flags": {}, "shapes": list(records), "imagePath": "x"}))


def read(root, split="train", **options):
    records = list(folder_parts(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_the_exact_samples_of_any_kind_of_picture_and_mask(tmp_path):
    folder = tmp_path / "scroll_wheel" / "mouse_(computer)"
    for name in ("1.png", "2.JPG", "3.webp", "4.jfif"):
        photo(folder / name)
    draw(folder / "1_mask.png")
    draw(folder / "2.png")
    draw(folder / "3_mask.PNG")
    shapes(folder / "4.json", polygon(), polygon("ignore this", ((0, 7), (2, 7), (2, 7), (0, 7))))
    (folder / ".DS_Store").write_bytes(b"\0")
    photo(tmp_path / ".thumbnails" / "a" / "1.png")
    (folder / "prompt.txt").write_text("a mouse")
    samples, rejects = read(tmp_path)
    assert not rejects
    for number, (sample, suffix) in enumerate(zip(samples, ("png", "JPG", "webp", "jfif"), strict=True), start=1):
        expected = Sample(f"scroll_wheel/mouse_(computer)/{number}", "referring", 12, 8, source="folder_parts")
        expected.frames, expected.num_frames, expected.annotated = [str(folder / f"{number}.{suffix}")], 1, [0]
        expected.objects = [Object([masks.encode(BLOCK)], [(3.0, 2.0, 9.0, 5.0)], "mouse:scroll wheel")]
        expected.expressions = [Expression("scroll wheel of the mouse", [0], "part")]
        expected.ignore = sample.ignore if number == 4 else []
        assert sample == expected
    assert np.argwhere(masks.decode(samples[3].ignore[0])).tolist() == [[7, 0], [7, 1], [7, 2]]


def test_an_empty_mask_says_that_the_part_is_not_there(tmp_path):
    photo(tmp_path / "lid/pot/a.jpg")
    draw(tmp_path / "lid/pot/a_mask.png", BLOCK & False)
    (sample,), _ = read(tmp_path, part="the {part} on the {object}")
    assert sample.expressions == [Expression("the lid on the pot", [], "part")] and not sample.objects


def test_small_pieces_are_left_out(tmp_path):
    photo(tmp_path / "lid/pot/a.jpg")
    draw(tmp_path / "lid/pot/a_mask.png", DOTS)

    def kept(**options):
        (sample,), _ = read(tmp_path, **options)
        return masks.decode(sample.objects[0].masks[0])

    assert (kept() == DOTS).all()
    assert (kept(min_area=2).sum(), kept(min_area=3).sum()) == (20, 18)
    assert (kept(min_area_ratio=2 / 96).sum(), kept(min_area_ratio=2.01 / 96).sum()) == (20, 18)
    assert (kept(keep="largest") == BLOCK).all()
    samples, (reject,) = read(tmp_path, min_area=19)
    assert not samples and reject.reason == "no piece of its mask has 19 pixels; the largest has 18"


def test_splits_are_folders_or_a_share(tmp_path):
    for number in range(10):
        photo(tmp_path / f"all/lid/pot/{number}.jpg")
        draw(tmp_path / f"all/lid/pot/{number}_mask.png")
    train, val = ({one.id for one in read(tmp_path / "all", split, val_fraction=0.2)[0]} for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and not train & val
    with pytest.raises(ValueError, match="there is no split 'val': make folders .*val/PART/OBJECT"):
        read(tmp_path / "all", "val")
    (tmp_path / "all").rename(tmp_path / "val")
    assert len(read(tmp_path, "val")[0]) == 10


BAD = {
    "it has no mask: make masks with scripts/pseudo_label.py": {},
    "there are a_mask.png and the polygons of a.json: which is its mask?": {"mask": BLOCK, "shapes": [polygon()]},
    "only a prompt for one in a.json: make masks": {"shapes": [polygon(points=((1, 1), (5, 5)), kind="rectangle")]},
    "a.json: shape 0: label must be 'target', 'lid' or contain 'ignore', got 'pot'": {"shapes": [polygon("pot")]},
    "shape_type must be polygon, rectangle or point, got 'circle'": {"shapes": [polygon(kind="circle")]},
    "a.json: shape 0: 'points' must be 2 of [x, y], got [[1, 1]]": {
        "shapes": [polygon(points=((1, 1),), kind="rectangle")]
    },
    "a.json holds polygons, which are a mask, and rectangles or points": {
        "shapes": [polygon(), polygon(points=((1, 1),), kind="point")]
    },
    "a.json holds no shapes": {"shapes": []},
    "no polygon of a.json is labelled 'target' or 'lid'": {"shapes": [polygon("ignored")]},
    "polygon 0 spans x = 0 to 300, but the picture is 12 x 8": {
        "shapes": [polygon(points=((0, 0), (300, 0), (0, 5)))]
    },
    "a_mask.png is 8 x 12 (width x height) but its photo is 12 x 8": {"mask": BLOCK.T},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_picture_is_one_reject_and_the_rest_remains(tmp_path, message):
    for name in ("a", "good"):
        photo(tmp_path / f"lid/pot/{name}.jpg")
    draw(tmp_path / "lid/pot/good_mask.png")
    if "mask" in BAD[message]:
        draw(tmp_path / "lid/pot/a_mask.png", BAD[message]["mask"])
    if "shapes" in BAD[message]:
        shapes(tmp_path / "lid/pot/a.json", *BAD[message]["shapes"])
    (sample,), (reject,) = read(tmp_path)
    assert (sample.id, reject.id) == ("lid/pot/good", "lid/pot/a") and message in reject.reason
    assert reject.file == str(tmp_path / "lid/pot/a.jpg")


def test_files_that_cannot_be_placed_are_rejects(tmp_path):
    photo(tmp_path / "lid/stray.jpg")
    photo(tmp_path / "lid/pot/deep/er.jpg")
    photo(tmp_path / "lid/pot/twice.jpg")
    photo(tmp_path / "lid/pot/twice.webp")
    photo(tmp_path / "lid/_(x)/a.jpg")
    draw(tmp_path / "lid/pot/alone_mask.png")
    photo(tmp_path / "lid/pot/b.jpg")
    draw(tmp_path / "lid/pot/b_mask.png")
    draw(tmp_path / "lid/pot/b.png")
    reasons = {one.id: one.reason for one in read(tmp_path)[1]}
    assert reasons == {
        "lid/stray.jpg": f"it lies in {tmp_path}/lid; expected {tmp_path}/PART/OBJECT/stray.jpg",
        "lid/pot/deep/er.jpg": f"it lies in {tmp_path}/lid/pot/deep; expected {tmp_path}/PART/OBJECT/er.jpg",
        "lid/pot/twice": "expected one picture twice.* for twice.jpg, twice.webp, found twice.jpg, twice.webp",
        "lid/_(x)/a": "the names of the folders lid and _(x) hold no words",
        "lid/pot/alone": "expected one picture alone.* for alone_mask.png, found none",
        "lid/pot/b": "there are b_mask.png, b.png: which one is of b.jpg?",
    }


def test_wrong_folders_and_options_raise(tmp_path):
    with pytest.raises(ValueError, match="there are no pictures in .*; expected .*/PART/OBJECT/X.jpg"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"min_area must be 1 or more and min_area_ratio in \[0, 1\), got 0, 0.0"):
        read(tmp_path, min_area=0)
    with pytest.raises(ValueError, match="option keep must be 'all' or 'largest', got 'both'"):
        read(tmp_path, keep="both")
    with pytest.raises(ValueError, match="option part must contain"):
        read(tmp_path, part="it")


def test_prompts_are_boxes_and_points_either_way_round(tmp_path):
    file = tmp_path / "a.json"
    box, hit = polygon("lid", ((9, 5), (3, 2)), "rectangle"), polygon("target", ((4, 3),), "point")
    shapes(file, box, hit, polygon("background", ((0, 0),), "point"))
    found = read_shapes(file, "pot:lid")
    assert found.boxes == [(3, 2, 9, 5)] and found.points == [(4, 3, True), (0, 0, False)] and not found.polygons


def test_polygons_in_the_genuine_form(shared_data, tmp_path):
    """ReasonSeg's files, as if their targets were the lids of pots: the same masks as of the source reason_seg."""
    from sa2va_hf.data.sources.reason_seg import reason_seg

    root = shared_data / "shaped/reason_seg/ReasonSeg"
    (tmp_path / "lid/pot").mkdir(parents=True)
    wanted = {}
    for split in ("train", "val"):  # one of train is in cp1252
        for sample in reason_seg(root, split, explain=False):
            for suffix in (".jpg", ".json"):
                shutil.copy((root / split / sample.id).with_suffix(suffix), tmp_path / "lid/pot")
            wanted[f"lid/pot/{sample.id}"] = sample
    samples, rejects = read(tmp_path)
    assert len(wanted) == 4 and len(samples) == len(wanted) and not rejects
    for sample in samples:
        assert sample.objects[0].masks == wanted[sample.id].objects[0].masks
        assert sample.ignore == wanted[sample.id].ignore
