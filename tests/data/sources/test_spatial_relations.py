"""Published spatial relations: words for the codes, a box per frame of the window, the identity that a switch means.

Run: pytest tests/data/sources/test_spatial_relations.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.boxes import ABSENT_BOX
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 100, 50
FRAMES = [f"{number:05d}" for number in range(6)]
# the boxes of the files end on their last pixel
LEFT = [[10, 5, 19, 14], [11, 5, 20, 14], [12, 5, 21, 14], None, [14, 5, 23, 14], [15, 5, 24, 14]]
RIGHT = [[60, 5, 69, 14]] * 6
NEVER = [None] * 6


def pixels(box):
    return None if box is None else (float(box[0]), float(box[1]), box[2] + 1.0, box[3] + 1.0)


def rle(box):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    if box is not None:
        mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return masks.encode(mask)


def one(number):
    return {"obj_id": number + 1, "anno_id": str(number)}


def relative(code="right_1", target=0, box=(60, 5, 69, 14)):
    reference = {"ref_obj_id": 2, "ref_anno_id": "1", "ref_box": list(box) if box else box}
    return {"exp": code, "target_objs": [one(target)], "reference_obj": reference}


def absolute(code="left_2", target=0):
    return {"exp": code, "target_objs": [one(target)]}


def switch(*switches, code="leftmost"):
    return {
        "exp": code,
        "switches": [{"start_frame": f"{frame:05d}.jpg", **one(number)} for frame, number in switches],
    }


def write(root, kind, *expressions, boxes=None, **record):
    folder = root / "JPEGImages/zoo"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FRAMES:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.jpg")
    by_key = {str(number): expression for number, expression in enumerate(expressions)}
    video = {"frames": FRAMES, "expressions": by_key} | record
    (root / f"all_vos2_{kind}_step2.json").write_text(json.dumps({"videos": {"zoo": video}}))
    (root / "mask_to_box").mkdir(exist_ok=True)
    content = {"0": LEFT, "1": RIGHT, "2": NEVER} if boxes is None else boxes
    (root / "mask_to_box/all_vos2_bbox.json").write_text(json.dumps(content))
    return root


def read(root, kind, **options):
    records = list(SOURCES[f"spatial_{kind}"](root, "train", **options))
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_relative_becomes_exactly_this_sample(tmp_path):
    root = write(tmp_path, "relative", relative("left_1"), relative("right_3", 1, (9, 9, 28, 28)), start=2, end=4)
    (sample,), rejects = read(root, "relative")
    assert not rejects
    assert (
        sample
        == Sample(
            "spatial_relative/zoo",
            "referring",
            WIDTH,
            HEIGHT,
            frames=[str(root / f"JPEGImages/zoo/{name}.jpg") for name in FRAMES],
            num_frames=6,
            annotated=[2, 3, 4],  # from start to end, both within
            objects=[  # null: absent, a box without area
                Object([None] * 3, [pixels(LEFT[2]), ABSENT_BOX, pixels(LEFT[4])]),
                Object([None] * 3, [pixels(box) for box in RIGHT[2:5]]),
            ],
            expressions=[
                Expression("the first object to the left of the one at [600, 100, 700, 300]", [0], "relative"),
                Expression("the third object to the right of the one at [90, 180, 290, 580]", [1], "relative"),
            ],
            source="spatial_relative",
        )
    )


def test_absolute_and_a_window_that_ends_with_the_clip(tmp_path):
    root = write(tmp_path, "absolute", absolute(), absolute("right_11", 1), absolute("right_1", 1), start=4, end=6)
    (sample,), rejects = read(root, "absolute")
    assert not rejects and sample.annotated == [4, 5] and len(sample.objects) == 2
    assert sample.expressions == [
        Expression("the second object from the left", [0], "absolute"),
        Expression("the 11th object from the right", [1], "absolute"),
        Expression("the first object from the right", [1], "absolute"),
    ]


def test_a_switch_is_on_each_frame_who_is_meant_there(tmp_path):
    (sample,), rejects = read(write(tmp_path, "switch", switch((1, 0), (4, 1))), "switch")
    assert not rejects and sample.annotated == [1, 2, 3, 4, 5]  # nobody is meant before the first
    assert sample.expressions == [Expression("the leftmost object", [0, 1], "switch")]
    first = [pixels(LEFT[1]), pixels(LEFT[2]), ABSENT_BOX, ABSENT_BOX, ABSENT_BOX]
    second = [ABSENT_BOX, ABSENT_BOX, ABSENT_BOX, pixels(RIGHT[4]), pixels(RIGHT[5])]
    assert sample.objects == [Object([None] * 5, first), Object([None] * 5, second)]


def test_a_mask_dict_or_palette_pictures_give_the_masks(tmp_path):
    root = write(tmp_path, "switch", switch((0, 0), (4, 1), code="rightmost"))
    (root / "mask_dict.json").write_text(
        json.dumps({"0": [box and rle(box) for box in LEFT], "1": [rle(box) for box in RIGHT]})
    )
    (root / "Annotations/zoo").mkdir(parents=True)
    for name, left, right in zip(FRAMES, LEFT, RIGHT, strict=True):
        ids = masks.decode(rle(left)).astype(np.uint8) + 2 * masks.decode(rle(right)).astype(np.uint8)
        picture = Image.frombytes("P", (WIDTH, HEIGHT), ids.tobytes())
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(root / f"Annotations/zoo/{name}.png")
    for place in ("mask_dict.json", "Annotations"):
        samples, rejects = read(root, "switch", masks_from=place)
        assert not rejects, rejects
        (sample,) = samples
        first, second = sample.objects
        assert first.masks == [rle(box) for box in (*LEFT[:4], None, None)]
        assert second.masks == [rle(box) for box in (*[None] * 4, *RIGHT[4:])]
        assert second.boxes[3:5] == [ABSENT_BOX, pixels(RIGHT[4])]


def test_boxes_of_other_frames_than_their_masks_are_found(tmp_path):
    root = write(tmp_path, "absolute", absolute())
    moved = [rle(box) for box in [*LEFT[1:], LEFT[0]]]  # by one frame
    (root / "mask_dict.json").write_text(json.dumps({"0": moved}))
    _, (reject,) = read(root, "absolute", masks_from="mask_dict.json")
    assert "anno_id 0: box 2 is (12.0, 5.0, 22.0, 15.0) but the mask's box is (0.0, 0.0" in reject.reason
    assert "do both have the same frames" in reject.reason


@pytest.mark.parametrize(
    ("kind", "expression", "reason"),
    [
        ("relative", relative("above_1"), "'exp' must be left_N or right_N with N from 1, got 'above_1'"),
        ("absolute", absolute("left_0"), "'exp' must be left_N or right_N with N from 1, got 'left_0'"),
        ("switch", switch((0, 0), code="left_1"), "'exp' must be leftmost or rightmost, got 'left_1'"),
        ("relative", absolute("left_1"), "has no 'reference_obj'"),
        ("relative", relative(box=None), "'ref_box' must be list, got None"),
        ("relative", relative(box=(60, 5, 100, 14)), "'ref_box': [60, 5, 100, 14] is no box within 100 x 50"),
        ("absolute", {"exp": "left_1", "target_objs": []}, "'target_objs' must be a list of one object, got []"),
        ("absolute", {"exp": "left_1", "target_objs": [{"obj_id": 1}]}, "'target_objs' has no 'anno_id'"),
        ("absolute", absolute(target=7), "anno_id 7 is not among the 3 tracks of boxes"),
        ("absolute", absolute(target=2), "anno_id 2: it is on none of the 6 frames"),
        ("switch", {"exp": "leftmost", "switches": []}, "'switches' must be a non-empty list"),
        ("switch", switch((4, 0), (1, 1)), "the start frames of 'switches' must rise, they are frames [4, 1]"),
        ("switch", switch((9, 0)), "switch 0: there is no frame '00009.jpg'"),
    ],
)
def test_a_bad_expression_is_rejected_and_the_others_stay(tmp_path, kind, expression, reason):
    good = {"relative": relative(), "absolute": absolute(), "switch": switch((0, 0))}[kind]
    (sample,), (reject,) = read(write(tmp_path, kind, expression, good), kind)
    assert len(sample.expressions) == len(sample.objects) == 1
    assert reject.id == f"spatial_{kind}/zoo/expression 0" and reason in reject.reason


@pytest.mark.parametrize(
    ("track", "reason"),
    [
        (LEFT[:5], "anno_id 0: it has 5 boxes for 6 frames: which belongs to which?"),
        ([[1, 2, 3]] + LEFT[1:], "anno_id 0: box 0: expected [x0, y0, x1, y1] in pixels or null, got [1, 2, 3]"),
        ([[90, 5, 100, 14]] + LEFT[1:], "if x1 and y1 are not within the box, give the option ends=exclusive"),
        ([[30, 5, 20, 14]] + LEFT[1:], "[30, 5, 20, 14] is no box within 100 x 50"),
        ("no", "boxes must be a list with one entry per frame, got 'no'"),
    ],
)
def test_a_bad_track_is_rejected(tmp_path, track, reason):
    samples, (reject,) = read(write(tmp_path, "absolute", absolute(), boxes={"0": track}), "absolute")
    assert not samples and reason in reject.reason


def test_ends_of_boxes(tmp_path):
    root = write(tmp_path, "absolute", absolute(), boxes={"0": [[90, 5, 100, 14]] * 6})
    (sample,), _ = read(root, "absolute", ends="exclusive")
    assert sample.objects[0].boxes == [(90.0, 5.0, 100.0, 14.0)] * 6


@pytest.mark.parametrize("record", [{"start": 5, "end": 2}, {"start": 6}, {"end": 7}, {"start": "0"}])
def test_a_window_outside_the_clip_is_rejected(tmp_path, record):
    samples, (reject,) = read(write(tmp_path, "absolute", absolute(), **record), "absolute")
    assert not samples and "'start' and 'end' must rise within its 6 frames" in reject.reason


def test_an_object_that_is_not_there_in_the_window_is_rejected(tmp_path):
    _, (reject,) = read(write(tmp_path, "absolute", absolute(), start=3, end=3), "absolute")
    assert reject.reason == "its target is on none of the frames 3 to 3"


def test_missing_files_and_frames(tmp_path):
    with pytest.raises(ValueError, match="annotation file not found; looked for .*all_vos2_relative_step2.json"):
        read(tmp_path, "relative")
    root = write(tmp_path, "relative", relative(), frames=[*FRAMES, "00099"])
    _, (reject,) = read(root, "relative")
    assert reject.id == "spatial_relative/zoo" and "1 of its 7 frames are missing" in reject.reason
    with pytest.raises(ValueError, match="ends must be inclusive or exclusive, got 'both'"):
        read(root, "relative", ends="both")
    (root / "mask_to_box/more_bbox.json").write_text("{}")
    with pytest.raises(ValueError, match=r"one file .*_bbox.json is expected, there is all_vos2_bbox.json, more_bbox"):
        read(root, "relative")
    (root / "all_vos2_relative_step2.json").write_text('{"videos": []}')
    with pytest.raises(ValueError, match="must have a dict 'videos' with at least one video"):
        read(root, "relative")


# ---------------------------------------------------------------- the same boxes under other expressions


def write_mevis(root, *, mask_dict=None, **expression):
    write(root, "absolute", absolute())
    video = {"frames": FRAMES, "expressions": {"0": {"exp": "the left one"} | expression}}
    (root / "meta_expressions_train.json").write_text(json.dumps({"videos": {"zoo": video}}))
    if mask_dict is not None:
        (root / "mask_dict.json").write_text(json.dumps(mask_dict))
    return root


def read_mevis(root, **options):
    records = list(SOURCES["mevis"](root, "train", **{"boxes": "mask_to_box/all_vos2_bbox.json"} | options))
    for record in records:
        if isinstance(record, Sample):
            validate(record)
    return records


def test_sentences_with_boxes_and_no_masks(tmp_path):
    (sample,) = read_mevis(write_mevis(tmp_path, anno_id=[0], obj_id=[1]))
    assert sample.expressions == [Expression("the left one", [0])]
    assert sample.objects == [Object([None] * 6, [pixels(box) or ABSENT_BOX for box in LEFT])]


def test_sentences_with_boxes_and_masks(tmp_path):
    root = write_mevis(tmp_path, mask_dict={"0": [box and rle(box) for box in LEFT]}, anno_id=[0])
    (sample,) = read_mevis(root)
    assert sample.objects == [Object([rle(box) for box in LEFT], [pixels(box) or ABSENT_BOX for box in LEFT])]
    (reject,) = read_mevis(write_mevis(tmp_path, mask_dict={"0": [rle(box) for box in RIGHT]}, anno_id=[0]))
    assert "but the mask's box is" in reject.reason


def test_boxes_need_annotation_ids(tmp_path):
    with pytest.raises(ValueError, match="boxes are told apart by their anno_id"):
        read_mevis(write_mevis(tmp_path, obj_id="1"))
    with pytest.raises(ValueError, match="the boxes not found; looked for gone.json"):
        read_mevis(write_mevis(tmp_path, anno_id=[0]), boxes="gone.json")
    (tmp_path / "palette").mkdir()
    with pytest.raises(ValueError, match="boxes go with a mask_dict"):
        read_mevis(tmp_path, masks_from="palette")
