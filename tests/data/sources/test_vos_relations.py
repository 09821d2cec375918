"""Relations of any source that gives masks: whose options, which rejects, and a real clip.

Run: pytest tests/data/sources/test_vos_relations.py      (SA2VA_TEST_DATA adds DAVIS and SA-V)
"""

import json

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.prepare.run import PrepareError, prepare
from sa2va_hf.data.schema import Object, Reject, Sample, from_row, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 40, 8


def ids(*spots):
    picture = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for value, x in spots:
        picture[2:6, x : x + 4] = value
    return picture


def write(root, video, *spots, frames=2):
    for folder in ("JPEGImages", "Annotations"):
        (root / "train" / folder / video).mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"train/JPEGImages/{video}/{number:05d}.jpg")
        picture = Image.fromarray(ids(*spots), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        picture.save(root / f"train/Annotations/{video}/{number:05d}.png")
    return root


def read(root, **options):
    records = list(SOURCES["vos_relations"](root, "train", **options))
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_a_clip_becomes_exactly_this_sample(tmp_path):
    write(tmp_path, "zoo", (1, 2), (2, 30))
    (sample,), rejects = read(tmp_path, kinds=["absolute"])
    assert not rejects
    boxes = {"left": (2.0, 2.0, 6.0, 6.0), "right": (30.0, 2.0, 34.0, 6.0)}
    rles = {side: masks.encode(ids((1, int(box[0]))) == 1) for side, box in boxes.items()}
    said = {one.text: sample.objects[one.targets[0]] for one in sample.expressions}
    left, right = (Object([rles[side]] * 2, [boxes[side]] * 2) for side in ("left", "right"))
    assert said == {
        "the first object from the left": left,
        "the second object from the left": right,
        "the first object from the right": right,
        "the second object from the right": left,
    }
    frames = [str(tmp_path / f"train/JPEGImages/zoo/0000{number}.jpg") for number in range(2)]
    assert (sample.id, sample.source, sample.frames, sample.annotated) == ("zoo", "vos_relations", frames, [0, 1])
    assert {one.kind for one in sample.expressions} == {"absolute"}


def test_categories_of_the_base_name_its_objects(tmp_path):
    write(tmp_path, "zoo", (1, 2), (2, 30), (3, 16))
    names, frames = {"1": "dog", "2": "dog", "3": "cat"}, ["00000", "00001"]
    objects = {number: {"category": name, "frames": frames} for number, name in names.items()}
    (tmp_path / "train/meta.json").write_text(json.dumps({"videos": {"zoo": {"objects": objects}}}))
    (sample,), rejects = read(tmp_path, base="youtube_vos", per_clip=100)
    assert not rejects
    said = {one.text: sample.objects[one.targets[0]].category for one in sample.expressions}
    assert said["the first dog to the right of the cat"] == "dog" and said["the second object from the left"] == "cat"


def test_clips_without_relations_and_rejects_of_the_base_are_listed(tmp_path):
    write(tmp_path, "alone", (1, 2))
    write(tmp_path, "close", (1, 2), (2, 3))
    write(tmp_path, "zoo", (1, 2), (2, 30))
    (tmp_path / "train/Annotations/noframes").mkdir()
    samples, rejects = read(tmp_path, margin=0.1)
    assert [sample.id for sample in samples] == ["zoo"]
    reasons = {reject.id: reject.reason for reject in rejects}
    assert reasons.pop("alone") == "it has not two objects"
    assert reasons.pop("close") == "no relation between its 2 objects is clear"
    assert "there are no frames in" in reasons.pop("noframes") and not reasons


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"base": "gone"}, "base must be a source that gives masks, as vos_folders or sav, got 'gone'"),
        ({"base": "vos_relations"}, "base must be a source that gives masks"),
        ({"base": "sav", "videos": "x"}, "base 'sav' has no option videos; it has masklets, frames"),
        ({"base": "sav", "masklets": "all"}, "masklets must be manual, auto or both"),
        ({"kinds": "absolute"}, "kinds must be a list of some of absolute, relative, switch, got 'absolute'"),
        ({"kinds": []}, "kinds must be a list of some of"),
        ({"kinds": ["above"]}, "kinds must be a list of some of"),
        ({"per_clip": 0}, "per_clip must be positive and margin within 0 and 1, got 0 and 0.05"),
        ({"margin": 1.5}, "per_clip must be positive and margin within 0 and 1"),
    ],
)
def test_wrong_options(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, **options)


def test_a_base_that_reads_files_needs_a_root():
    with pytest.raises(ValueError, match="base 'vos_folders' reads files: a root folder is needed"):
        read(None)
    (sample, *_), _ = read(None, base="shapes", count=8, min_objects=3)
    assert sample.expressions and sample.expressions[0].kind in ("absolute", "relative")


def test_prepare_takes_the_options_of_the_base_and_writes_the_same_twice(tmp_path):
    root = write(write(tmp_path / "raw", "zoo", (1, 2), (2, 30)), "alone", (1, 2))
    (root / "list.txt").write_text("zoo\n")
    options = {"base": "vos_folders", "videos": str(root / "list.txt"), "per_clip": 3}
    done = [prepare("vos_relations", root, "train", tmp_path / name, options=options) for name in "ab"]
    assert done[0].samples == 1 and done[0].expressions == 3 and done[0].shards == done[1].shards
    with pytest.raises(PrepareError, match="alone"):
        prepare("vos_relations", root, "train", tmp_path / "c")


def test_training_sees_a_phrase_only_on_frames_it_is_true_on(tmp_path, tiny_processor):
    write(tmp_path / "raw", "zoo", (1, 2), (2, 20), frames=12)
    for number, x in enumerate([2, 3, 4, 5, 6, 18, 22, 34, 34, 34, 34, 34]):  # the first passes by the second
        picture = Image.fromarray(ids((2, 20), (1, x)), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(tmp_path / f"raw/train/Annotations/zoo/{number:05d}.png")
    prepare("vos_relations", tmp_path / "raw", "train", tmp_path / "arrow", options={"margin": 0.2})
    rows = load_from_disk(str(tmp_path / "arrow"))
    dataset = Sa2VADataset([(rows, 1)], tiny_processor, num_frames=4, max_expressions=3)
    row, seen = from_row(rows[0]), set()
    for epoch in range(30):
        plan = dataset.plan(epoch)
        meant = [target for targets in plan.targets for target in targets]
        known = [row.objects[n].masks[row.annotated.index(at)] for n in meant for at in plan.frames]
        assert len(plan.frames) == 4 and None not in known
        seen |= set(plan.frames)
    assert seen == {0, 1, 2, 3, 4, 7, 8, 9, 10, 11}


# ---------------------------------------------------------------- genuine masks


def test_riders_and_their_gear_have_no_order(shared_data):
    """A surfer, the lines and the board; a cyclist and the bicycle: nothing in six clips of DAVIS is side by side."""
    folder = shared_data / "shaped/davis17_like/Annotations/480p"
    options = {"frames": shared_data / "davis/JPEGImages/480p", "annotations": folder}
    samples, rejects = read(shared_data / "shaped/davis17_like", per_clip=100, **options)
    assert not samples and len(rejects) == 6
    reasons = {reject.id: reject.reason for reject in rejects}
    assert reasons["kite-surf"] == "no relation between its 3 objects is clear"
    assert reasons["camel"] == "it has not two objects"


def test_relations_between_genuine_masklets_hold_in_their_pixels(shared_data):
    (sample,), rejects = read(shared_data / "shaped/sav", base="sav", masklets="manual", per_clip=100)
    assert not rejects and sample.video is not None and set(sample.annotated) <= set(range(0, 483, 4))
    assert not any(word in one.text for one in sample.expressions for word in ("third", "fourth", "fifth"))
    (whole,) = SOURCES["sav"](shared_data / "shaped/sav", "train", masklets="manual")
    checked = 0
    for expression in (one for one in sample.expressions if one.kind == "absolute" and "first" in one.text):
        for at, number in enumerate(sample.annotated):
            rle = sample.objects[expression.targets[0]].masks[at]
            every = [thing.masks[whole.annotated.index(number)] for thing in whole.objects]
            boxes = [masks.rle_to_box(one) for one in every if one is not None and masks.area(one)]
            if rle is not None:
                outermost = (min if "left" in expression.text else max)(boxes, key=lambda box: box[0] + box[2])
                assert masks.rle_to_box(rle) == outermost
                checked += 1
    assert checked > 5
