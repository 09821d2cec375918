"""Pairs of frames: the npz's own pixels come back, and the object is in both.

Run: pytest tests/data/sources/test_paired_frames.py
"""

import io

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 8, 6


def pixels(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(x, value=255, dtype=np.uint8):
    array = np.zeros((HEIGHT, WIDTH), dtype)
    array[1:3, x : x + 2] = value
    return array


def pair(**changes):
    return {"frame1": pixels(1), "mask1": mask(0), "frame2": pixels(2), "mask2": mask(5)} | changes


def write(root, name="a/masklet_data_0.npz", **arrays):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def read(root, **options):
    records = list(SOURCES["paired_frames"](root, options.pop("split", "train"), **options))
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_a_pair_becomes_exactly_this_sample(tmp_path):
    write(tmp_path, **pair())
    (sample,), rejects = read(tmp_path)
    assert not rejects
    for number, frame in enumerate(sample.frames, start=1):
        assert frame.startswith(b"\x89PNG")  # without loss
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(frame))), pixels(number))
    assert sample == Sample(
        "a/masklet_data_0",
        "referring",
        WIDTH,
        HEIGHT,
        frames=sample.frames,
        num_frames=2,
        annotated=[0, 1],
        objects=[
            Object(
                [masks.encode(mask(0) > 0), masks.encode(mask(5) > 0)], [(0.0, 1.0, 2.0, 3.0), (5.0, 1.0, 7.0, 3.0)]
            )
        ],
        source="paired_frames",
    )


@pytest.mark.parametrize("form", [(1, np.uint8), (255, np.float32), (1, np.float64), (True, bool), (200, np.int64)])
def test_masks_of_0_to_1_and_of_0_to_255_are_the_same(tmp_path, form):
    write(tmp_path, **pair(mask1=mask(0, *form)))
    ((sample,), rejects) = read(tmp_path)
    assert not rejects and sample.objects[0].masks[0] == masks.encode(mask(0) > 0)


def test_soft_edges_of_resized_masks_are_cut_at_half(tmp_path):
    soft = mask(0, 0.9, np.float32)
    soft[0, :2] = 0.4
    write(tmp_path, **pair(mask1=soft))
    ((sample,), _) = read(tmp_path)
    assert sample.objects[0].masks[0] == masks.encode(mask(0) > 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask1": mask(0, 0)}, "mask1 covers no pixel: both frames must show the object"),
        ({"mask2": mask(0)[:, :5]}, "mask2 is (6, 5) but frame2 is (6, 8) (height, width)"),
        ({"mask2": mask(0, -1, np.int64)}, "mask2 must be bool or have values of 0 to 1 or 0 to 255, got int64"),
        ({"mask2": mask(0, np.nan, np.float32)}, "mask2 must be bool or have values of 0 to 1"),
        ({"frame1": pixels(1).astype(float)}, "frame1 must be uint8 (height, width, 3), got float64 (6, 8, 3)"),
        ({"frame1": pixels(1)[..., 0]}, "frame1 must be uint8 (height, width, 3), got uint8 (6, 8)"),
        ({"frame2": pixels(2, 4), "mask2": mask(0)[:4]}, "frame2 is (4, 8) but frame1 is (6, 8) (height, width)"),
        ({"mask1": np.array([[{"a": "pickle"}]])}, "Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_a_bad_pair_is_rejected_and_the_others_stay(tmp_path, changes, reason):
    write(tmp_path, **pair())
    file = write(tmp_path, "a/masklet_data_1.npz", **pair(**changes))
    (sample,), (reject,) = read(tmp_path)
    assert sample.id == "a/masklet_data_0"
    assert (reject.id, reject.file) == ("a/masklet_data_1", str(file)) and reason in reject.reason


def test_a_damaged_file_and_one_without_all_arrays(tmp_path):
    file = write(tmp_path, **pair())
    write(tmp_path, "b/masklet_data_0.npz", frame1=pixels(1), mask1=mask(0))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/masklet_data_0.npz").write_bytes(file.read_bytes()[:200])
    (tmp_path / "c/masklet_data_1.npz").write_bytes(b"")
    _, rejects = read(tmp_path)
    assert rejects[0].reason == "frame2, mask2 missing; it has frame1, mask1"
    assert all(reject.reason.startswith("it cannot be read as npz") for reject in rejects[1:]) and len(rejects) == 3


def test_splits_and_a_folder_without_pairs(tmp_path):
    with pytest.raises(ValueError, match=r"there are no files masklet_data_\*.npz below"):
        read(tmp_path)
    for number in range(4):
        write(tmp_path, f"masklet_data_{number}.npz", **pair())
    with pytest.raises(ValueError, match="there is no split 'val': pairs of frames have none"):
        read(tmp_path, split="val")
    ids = [[one.id for one in read(tmp_path, split=split, val_fraction=0.25)[0]] for split in ("train", "val")]
    assert [len(one) for one in ids] == [3, 1] and not set(ids[0]) & set(ids[1])


def test_prepare_keeps_the_frames_within(tmp_path):
    write(tmp_path / "raw", **pair())
    done = prepare("paired_frames", tmp_path / "raw", "train", tmp_path / "arrow")
    assert (done.samples, done.frames, done.masks) == (1, 2, 2)
