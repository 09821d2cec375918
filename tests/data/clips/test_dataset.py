"""Laws of clips for SAM 2: which frames and objects, how they are varied, and whose turn it is.

Run: pytest tests/data/clips/test_dataset.py
"""

import re

import av
import numpy as np
import pytest
import torch
from clips import disc, draw, rows, sample, write_davis
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.clips.dataset import ClipBatchSampler, ClipDataset, ClipEntry, collate
from sa2va_hf.data.clips.transforms import Augmentation, transform
from sa2va_hf.data.schema import Object, Reject
from sa2va_hf.data.sources import SOURCES

NONE = masks.empty(48, 64)


def dataset(*parts, **options):
    parts = [part if isinstance(part, ClipEntry) else ClipEntry(part) for part in parts]
    return ClipDataset(parts, **({"image_size": 48, "num_frames": 4} | options))


def numbers_of(example):
    return [int(word) for word in example["sample_id"].split("[")[1].rstrip("]").split(",")]


# ---------------------------------------------------------------- frames and objects


def test_a_clip_is_neighbouring_frames_with_their_masks(tmp_path):
    data = dataset(rows(sample(tmp_path, "a", frames=9)), image_size=64)
    seen = set()
    for epoch in range(30):
        example = data[epoch]
        numbers = numbers_of(example)
        assert numbers == list(range(numbers[0], numbers[0] + 4))
        seen.add(numbers[0])
        for at, number in enumerate(numbers):
            expected = {disc(number, thing).sum() * 64 / 48 for thing in range(2)}
            found = example["masks"][:, at].flatten(1).sum(1).tolist()
            assert all(min(abs(area - one) for one in expected) < 12 for area in found)
    assert seen == set(range(6))


def test_a_clip_depends_on_its_index_alone(tmp_path):
    options = {"reverse": 0.5, "augmentation": Augmentation()}
    one, other = (dataset(rows(sample(tmp_path, "a", frames=9)), **options) for _ in range(2))
    other[3], other[1]  # noqa: B018
    for name in ("images", "masks", "ignore"):
        assert torch.equal(one[5][name], other[5][name])
    assert not torch.equal(one[5]["images"], one[6]["images"])


def test_backwards(tmp_path):
    data = dataset(rows(sample(tmp_path, "a", frames=9)), reverse=1.0)
    assert all(np.all(np.diff(numbers_of(data[epoch])) == -1) for epoch in range(8))


def test_objects_are_those_of_the_first_frame_and_at_most_so_many(tmp_path):
    made = sample(tmp_path, "a", frames=6, objects=3)
    made.objects[2].masks[:3] = [NONE] * 3  # comes late
    data = dataset(rows(made), max_objects=2)
    counts = set()
    for epoch in range(40):
        example = data[epoch]
        assert example["masks"][:, 0].flatten(1).any(1).all()
        counts.add((numbers_of(example)[0], len(example["masks"])))
    assert counts == {(0, 2), (1, 2), (2, 2)}


def test_frames_on_which_an_object_was_not_annotated_are_left_out(tmp_path):
    made = sample(tmp_path, "a", frames=6)
    made.objects[1].masks[2] = None
    assert {tuple(numbers_of(dataset(rows(made))[epoch])) for epoch in range(20)} == {(0, 1, 3, 4), (1, 3, 4, 5)}


def test_an_object_with_boxes_alone_is_not_tracked(tmp_path):
    made = sample(tmp_path, "a", frames=4)
    made.objects.append(Object([None] * 4, [(0.0, 0.0, 5.0, 5.0)] * 4))
    assert len(dataset(rows(made))[0]["masks"]) == 2


def test_rows_without_a_clip_are_counted_with_their_files(tmp_path):
    short, hidden, boxes = (sample(tmp_path, name, frames=count) for name, count in (("s", 3), ("h", 5), ("b", 5)))
    for thing in hidden.objects:
        thing.masks[:3] = [NONE] * 3
    for thing in boxes.objects:
        thing.masks, thing.boxes = [None] * 5, [(0.0, 0.0, 5.0, 5.0)] * 5
    data = dataset(rows(sample(tmp_path, "a"), short, hidden, boxes))
    assert data.rejected == [
        Reject("s", "it has 3 annotated frames, 4 are asked for", short.frames[0]),
        Reject("h", "no object has a pixel on the first frame of any clip of 4 frames", hidden.frames[0]),
        Reject("b", "its objects have no masks", boxes.frames[0]),
    ]
    assert {data[epoch]["sample_id"].split()[0] for epoch in range(5)} == {"a"}
    with pytest.raises(ValueError, match="gives no clip: 1 rows were rejected; the first, s: it has 3"):
        dataset(rows(short))


def test_pictures_are_clips_of_one_frame(tmp_path):
    example = dataset(rows(sample(tmp_path, "p", frames=1)))[0]
    assert example["images"].shape == (1, 3, 48, 48) and example["masks"].shape == (2, 1, 48, 48)


# ---------------------------------------------------------------- what lies on disk


def test_void_is_no_object_and_does_not_count(tmp_path):
    write_davis(tmp_path, ["v"])
    path = tmp_path / "Annotations/480p/v/00002.png"
    ids = np.asarray(Image.open(path)).copy()
    ids[40:, :] = 255
    mask = Image.fromarray(ids, "P")
    mask.putpalette([0, 0, 0, *[80] * 765])
    mask.save(path)
    (made,) = SOURCES["vos_folders"](tmp_path, "train")
    example = dataset(rows(made), num_frames=6)[0]
    assert len(example["masks"]) == 2
    assert example["ignore"].flatten(1).any(1).tolist() == [False, False, True, False, False, False]
    assert not (example["masks"][:, 2] & example["ignore"][2]).any()


def test_gaps_in_frames_masks_and_ids(tmp_path):
    write_davis(tmp_path, ["v"], frames=8)
    places = [tmp_path / kind / "480p/v" for kind in ("JPEGImages", "Annotations")]
    for place, suffix in zip(places, ("jpg", "png"), strict=True):
        (place / f"00003.{suffix}").unlink()  # no such frame
    (places[1] / "00005.png").unlink()  # a frame without masks
    for path in places[1].glob("*.png"):  # objects 1 and 2 become 4 and 2
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 1] = 4
        mask = Image.fromarray(ids, "P")
        mask.putpalette([0, 0, 0, *range(50, 65)] + [90] * 750)
        mask.save(path)
    (made,) = SOURCES["vos_folders"](tmp_path, "train")
    example = dataset(rows(made), num_frames=6)[0]
    assert numbers_of(example) == [0, 1, 2, 3, 5, 6]  # places in the clip: frames 0, 1, 2, 4, 6, 7
    assert example["masks"].flatten(2).any(2).all() and len(example["masks"]) == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mask: Image.fromarray(np.asarray(mask)[:, :-1]), "is 63 x 48 .* its photo is 64 x 48"),
        (lambda mask: mask.convert("RGB"), "RGB"),
    ],
    ids=["one pixel narrower", "RGB instead of a palette"],
)
def test_a_spoilt_mask_is_a_reject_that_names_it(tmp_path, spoil, words):
    write_davis(tmp_path, ["v"])
    path = tmp_path / "Annotations/480p/v/00002.png"
    with Image.open(path) as mask:
        spoilt = spoil(mask)
    spoilt.save(path)
    found = list(SOURCES["vos_folders"](tmp_path, "train"))
    (reject,) = (one for one in found if isinstance(one, Reject))
    assert str(path) in reject.file and re.search(words, reject.reason)


def test_png_jpg_and_mp4_in_one_mixture(tmp_path):
    film = tmp_path / "film.mp4"
    with av.open(film, "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in range(6):
            picture = av.VideoFrame.from_ndarray(draw(frame, 2)[0], format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    from_film = sample(tmp_path, "film")
    from_film.frames, from_film.video, from_film.num_frames = [], str(film), 6
    write_davis(tmp_path / "davis", ["v"])
    (jpg,) = SOURCES["vos_folders"](tmp_path / "davis", "train")
    data = dataset(rows(sample(tmp_path, "png"), jpg, from_film))
    batch = collate([data[number] for number in range(3)])
    assert batch["images"].shape == (3, 4, 3, 48, 48) and batch["masks"].shape == (4, 6, 48, 48)
    assert batch["clip_of_object"].tolist() == [0, 0, 1, 1, 2, 2]
    means = batch["images"].float().mean((1, 2, 3, 4))
    assert (means.max() - means.min()) < 8  # the same clip, or nearly


# ---------------------------------------------------------------- variations


def test_everything_moves_together(tmp_path):
    """A red disc stays under its mask, whatever is done to the clip."""
    frames = [Image.fromarray(draw(frame, 1)[0]) for frame in range(3)]
    masks_ = torch.from_numpy(np.stack([disc(frame, 0) for frame in range(3)]))[None]
    plain, _, _ = transform(frames, masks_, masks_[0], 64, np.random.default_rng(0), None)
    different = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        images, found, ignore = transform(frames, masks_, masks_[0], 64, rng, Augmentation(grayscale=0.0))
        assert torch.equal(found[0], ignore)
        red = (images[:, 0].float() - images[:, 2].float()) > 60
        for frame in range(3):
            overlap = (red[frame] & found[0, frame]).sum() / (red[frame] | found[0, frame]).sum()
            assert overlap > 0.85
        different += not torch.equal(images, plain)
    assert different == 12


def test_a_turn_that_would_lose_an_object_is_not_made():
    corner = torch.zeros(1, 2, 48, 64, dtype=torch.bool)
    corner[:, :, 0, 0] = True
    frames, none = [Image.new("RGB", (64, 48))] * 2, torch.zeros(2, 48, 64, dtype=torch.bool)
    turning = Augmentation(flip=0.0, degrees=25.0, shear=0.0)
    for seed in range(20):
        images, _, _ = transform(frames, corner, none, 48, np.random.default_rng(seed), turning)
        assert (images < 20).all()  # nothing was filled in


def test_colours_change_alike_in_the_whole_clip_and_then_frame_by_frame():
    frames, none = [Image.new("RGB", (32, 32), (120, 90, 60))] * 4, torch.zeros(4, 32, 32, dtype=torch.bool)
    still = {"flip": 0.0, "degrees": 0.0, "shear": 0.0, "grayscale": 0.0}
    alone = {"frame_brightness": 0.0, "frame_contrast": 0.0, "frame_saturation": 0.0}
    alike, _, _ = transform(frames, none[None], none, 32, np.random.default_rng(1), Augmentation(**still, **alone))
    assert all(torch.equal(alike[0], frame) for frame in alike) and alike[0, 0, 0, 0] != 120
    each, _, _ = transform(frames, none[None], none, 32, np.random.default_rng(1), Augmentation(**still))
    assert not all(torch.equal(each[0], frame) for frame in each)


def test_a_variation_out_of_range():
    with pytest.raises(ValueError, match="`flip`: expected a number from 0 to 1, got 2"):
        Augmentation(flip=2)


# ---------------------------------------------------------------- turns


def mixture(tmp_path):
    clips = [sample(tmp_path, f"c{number}", frames=4) for number in range(5)]
    pictures = [sample(tmp_path, f"p{number}", frames=1) for number in range(7)]
    return dataset(ClipEntry(rows(*clips), repeats=2), ClipEntry(rows(*pictures), batch_size=3))


def test_a_step_is_one_dataset_on_all_ranks_and_every_clip_has_its_turn(tmp_path):
    data = mixture(tmp_path)
    samplers = [ClipBatchSampler(data, world_size=2, rank=rank, seed=4) for rank in range(2)]
    for sampler in samplers:
        sampler.set_epoch(3)
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0]) == 5 + 2
    numbers = [[index - 3 * len(data) for batch in step for index in batch] for step in steps]
    kinds = [{number >= 10 for number in step} for step in numbers]
    assert all(len(kind) == 1 for kind in kinds)
    assert [len(step) for step in numbers] == [6 if kind == {True} else 2 for kind in kinds]
    assert set(sum(numbers, [])) == set(range(17))
    turns = [True in kind for kind in kinds]
    assert turns != sorted(turns)
    again = ClipBatchSampler(data, world_size=2, seed=4)
    assert list(again) != [step[0] for step in steps]  # another epoch, another order


def test_phases_are_parts_of_a_pass(tmp_path):
    data = mixture(tmp_path)
    sampler, seen = ClipBatchSampler(data, seed=1, phases=2), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen.append({index for batch in batches for index in batch})
    assert seen[0] | seen[1] == set(range(17)) and len(seen[0] & seen[1]) <= 1
    with pytest.raises(ValueError, match="phases_per_epoch"):
        ClipBatchSampler(data, phases=0)
