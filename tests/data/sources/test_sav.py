"""SA-V and Ref-SAV: an entry of a masklet belongs to every 4th frame of the video, or the record is refused.

Run: pytest tests/data/sources/test_sav.py      (SA2VA_TEST_DATA adds the genuine masklets)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES

WIDTH, HEIGHT = 10, 6


def square(x):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:4, x : x + 2] = True
    return masks.encode(mask)


ABSENT = masks.empty(HEIGHT, WIDTH)
MASKLET = [[square(0), ABSENT], [square(1), square(7)], [None, square(6)]]  # 3 entries for 9 to 12 frames


def record(count=10.0, masklet=MASKLET, **changes):
    sizes = {"video_frame_count": count, "video_height": float(HEIGHT), "video_width": float(WIDTH)}
    return {"video_id": "sav_000001", **sizes, "masklet": masklet, "masklet_num": 2} | changes


def write(root, content, kind="manual", video=True, stem="sav_000001"):
    folder = root / "sav_train/sav_000"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}_{kind}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if video:
        (folder / f"{stem}.mp4").write_bytes(b"not opened by the source")
    return root


def split_up(records):
    records = list(records)
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_a_video_becomes_exactly_this_sample(tmp_path):
    root = write(tmp_path, record())
    (sample,), rejects = split_up(SOURCES["sav"](root, "train"))
    assert not rejects
    assert sample == Sample(
        "sav_000001_manual",
        "referring",
        WIDTH,
        HEIGHT,
        video=str(root / "sav_train/sav_000/sav_000001.mp4"),
        num_frames=10,
        annotated=[0, 4, 8],
        objects=[  # null: nobody looked; an RLE without pixels: looked and absent
            Object([square(0), square(1), None], [None] * 3),
            Object([ABSENT, square(7), square(6)], [None] * 3),
        ],
        source="sav",
    )


def test_frames_taken_from_the_video_keep_their_numbers(tmp_path):
    root = write(tmp_path, {"masks": MASKLET}, "auto", video=False)
    folder = root / "elsewhere/sav_000001"
    folder.mkdir(parents=True)
    for number in (0, 2, 4, 8):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number:05d}.jpg")
    options = {"masklets": "auto", "frames": root / "elsewhere"}
    (sample,), rejects = split_up(SOURCES["sav"](root, "train", **options))
    assert not rejects and sample.num_frames == 4 and sample.annotated == [0, 2, 3]
    assert [frame[-9:] for frame in sample.frames] == ["00000.jpg", "00002.jpg", "00004.jpg", "00008.jpg"]
    assert sample.objects[1].masks == [ABSENT, square(7), square(6)]
    (folder / "00004.jpg").unlink()  # a frame that was not taken takes its masks along
    (sample,), _ = split_up(SOURCES["sav"](root, "train", **options))
    assert sample.annotated == [0, 2] and sample.objects[1].masks == [ABSENT, square(6)]


def test_manual_and_auto_masklets_are_chosen(tmp_path):
    root = write(write(tmp_path, record()), record(), "auto")
    ids = {
        kind: [one.id for one in SOURCES["sav"](root, "train", masklets=kind)] for kind in ("manual", "auto", "both")
    }
    assert ids["manual"] == ["sav_000001_manual"] and ids["auto"] == ["sav_000001_auto"]
    assert ids["both"] == ["sav_000001_auto", "sav_000001_manual"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (record(13.0), "'masklet' has 3 entries but a video of 13 frames needs 4, one per 4 frames"),
        (record(8.0), "'masklet' has 3 entries but a video of 8 frames needs 2"),
        (record(9.5), "'video_frame_count' must be a whole number, got 9.5"),
        (record(masklet=[[square(0)], []] + MASKLET[:1]), "'masklet' has 1 objects on its first frame and "),
        (record(masklet="no"), "'masklet' must be a list (frames) of lists (objects) of RLEs, got 'no'"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_json_is_rejected(tmp_path, content, reason):
    root = write(write(tmp_path, record(), stem="sav_000000"), content)
    samples, (reject,) = split_up(SOURCES["sav"](root, "train"))
    assert len(samples) == 1 and reject.id == "sav_000001_manual" and reason in reject.reason


def test_a_bad_masklet_is_rejected_and_the_others_stay(tmp_path):
    bad = [[{"size": [HEIGHT, WIDTH], "counts": "!"}, row[1]] for row in MASKLET]
    samples, (reject,) = split_up(SOURCES["sav"](write(tmp_path, record(masklet=bad)), "train"))
    assert [len(sample.objects) for sample in samples] == [1]
    assert reject.id == "sav_000001_manual/object 0" and "mask 0: RLE garbage" in reject.reason


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="SA-V's split train not found; looked for .*sav_train"):
        list(SOURCES["sav"](tmp_path, "train"))
    root = write(tmp_path, record(), video=False)
    (reject,) = SOURCES["sav"](root, "train")
    assert "its video was not found; looked for" in reject.reason and "sav_000001.mp4" in reject.reason
    with pytest.raises(ValueError, match=r"there are no files \*_auto.json below"):
        list(SOURCES["sav"](root, "train", masklets="auto"))
    with pytest.raises(ValueError, match="masklets must be manual, auto or both, got 'all'"):
        list(SOURCES["sav"](root, "train", masklets="all"))


# ---------------------------------------------------------------- Ref-SAV


def write_phrases(root, *objects, anno="sav_000/sav_train/sav_000/sav_000001_manual.json"):
    entries = {str(number): entry for number, entry in enumerate(objects)}
    video = {"video_path": anno.replace("_manual.json", ".mp4"), "anno_path": anno, "objects": entries}
    (root / "Ref-SAV.json").write_text(json.dumps({"sav_000001": video}))
    return root


def phrase(number, text):
    return {"video_id": "sav_000001", "obj_id": number, "formated": text}


@pytest.mark.parametrize("anno", ["sav_000/sav_train/sav_000/", "sav_train/sav_000/"])
def test_ref_sav_takes_the_masklet_its_obj_id_says(tmp_path, anno):
    root = write_phrases(write(tmp_path, record()), phrase(1, "The cup."), anno=f"{anno}sav_000001_manual.json")
    (sample,), rejects = split_up(SOURCES["ref_sav"](root, "train"))
    assert not rejects
    assert (sample.id, sample.source, sample.annotated) == ("ref_sav/sav_000001", "ref_sav", [0, 4, 8])
    assert sample.expressions == [Expression("The cup.", [0])]
    assert sample.objects == [Object([ABSENT, square(7), square(6)], [None] * 3)]


def test_ref_sav_rejects_what_it_cannot_place(tmp_path):
    bad = [[row[0], {"size": [HEIGHT, WIDTH], "counts": "!"}] for row in MASKLET]
    entries = [phrase(0, "fine"), phrase(5, "who?"), phrase(0, " ."), {"obj_id": 0}, phrase(1, "damaged")]
    root = write_phrases(write(tmp_path, record(masklet=bad)), *entries)
    (sample,), rejects = split_up(SOURCES["ref_sav"](root, "train"))
    assert [one.text for one in sample.expressions] == ["fine"]
    wanted = ["obj_id 5 is not among the 2 masklets", "'formated' must be a non-empty", "has no 'formated'", "garbage"]
    assert [part in reject.reason for part, reject in zip(wanted, rejects, strict=True)] == [True] * 4
    write_phrases(root, phrase(0, "x"), anno="sav_000/sav_train/gone.json")
    (reject,) = SOURCES["ref_sav"](root, "train")
    assert reject.reason.startswith("its masklets not found; looked for")
    with pytest.raises(ValueError, match="there is no split 'valid': .* ref_sav_eval"):
        list(SOURCES["ref_sav"](root, "valid"))


# ---------------------------------------------------------------- genuine masklets


@pytest.mark.parametrize(("kind", "num_objects"), [("manual", 5), ("auto", 9)])
def test_the_genuine_masklets(shared_data, kind, num_objects):
    (sample,), rejects = split_up(SOURCES["sav"](shared_data / "shaped/sav", "train", masklets=kind))
    truth = json.loads((shared_data / f"sav/sav_000001_{kind}.json").read_text())
    assert not rejects and len(sample.objects) == num_objects
    assert (sample.width, sample.height, sample.num_frames) == (480, 848, 483)
    assert sample.annotated == list(range(0, 483, 4)) and len(sample.annotated) == 121
    for index, thing in enumerate(sample.objects):
        areas = [masks.area(rle) for rle in thing.masks]
        assert areas == [masks.area(row[index]) for row in truth["masklet"]]
        present = [area for area in areas if area]
        assert sum(present) / len(present) == pytest.approx(truth["masklet_size_abs"][index])


def test_masks_lie_where_the_video_shows_their_object(shared_data):
    """The sample video is painted from the masklets: an entry moved to another frame would not be of one colour."""
    from sa2va_hf.data.media import load_frames

    (sample,), rejects = split_up(SOURCES["ref_sav"](shared_data / "shaped/sav", "train"))
    assert not rejects and [one.text for one in sample.expressions][:2] == ["The red region.", "The green region."]
    chosen, checked = [0, 60, 120], 0
    pictures = load_frames(sample, [sample.annotated[at] for at in chosen])
    for at, picture in zip(chosen, pictures, strict=True):
        pixels = np.asarray(picture).astype(int)
        shown = [masks.decode(thing.masks[at]) for thing in sample.objects]
        alone = sum(mask.astype(int) for mask in shown) == 1  # some lie over others
        for mask, channel in ((shown[0], 0), (shown[1], 1)):
            if np.count_nonzero(mask & alone) > 100:
                mean = pixels[mask & alone].mean(axis=0)
                assert mean[channel] > 1.3 * max(np.delete(mean, channel))
                checked += 1
    assert checked >= 3
