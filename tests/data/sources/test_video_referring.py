"""Video referring sets: every expression arrives with the masks of its frames, or says why not.

Run: pytest tests/data/sources/test_video_referring.py      (SA2VA_TEST_DATA adds the shaped and genuine files)
"""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.video_referring import video_referring

WIDTH, HEIGHT = 12, 8


def square(x, size=2):
    """The mask of a square at (x, 1)."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1 : 1 + size, x : x + size] = True
    return masks.encode(mask)


ABSENT = masks.empty(HEIGHT, WIDTH)
FRAMES = ["00000", "00005", "00010"]
LEFT = [square(0), square(1), None]  # null: not in the frame
RIGHT = [square(6, 3)] * 3


def videos(expressions, frames=FRAMES, video="zoo", **more):
    return {video: {"frames": frames, "expressions": expressions, "vid_id": 0} | more}


def expression(text, anno_id=None, **more):
    return {"exp": text} | ({} if anno_id is None else {"anno_id": anno_id, "obj_id": anno_id}) | more


def draw_frames(folder, frames=FRAMES, size=(WIDTH, HEIGHT)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in frames:
        Image.new("RGB", size, (int(name), 0, 0)).save(folder / f"{name}.jpg")


def write_mevis(root, of_videos, mask_dict, split="train"):
    for video, record in of_videos.items():
        draw_frames(root / split / "JPEGImages" / video, record["frames"] if isinstance(record, dict) else FRAMES)
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": of_videos}))
    (root / split / "mask_dict.json").write_text(json.dumps(mask_dict))
    return root


def write_ytvos(root, of_videos, split="train"):
    for video, record in of_videos.items():
        draw_frames(root / split / "JPEGImages" / video, record["frames"])
    (root / "meta_expressions" / split).mkdir(parents=True)
    (root / "meta_expressions" / split / "meta_expressions.json").write_text(json.dumps({"videos": of_videos}))
    return root


def split_up(records):
    records = list(records)
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_mevis_becomes_exactly_this_sample(tmp_path):
    of_video = {"0": expression("the left one", [0]), "1": expression("Both move.", [0, 7])}
    root = write_mevis(tmp_path, videos(of_video, frames=FRAMES[::-1]), {"0": LEFT, "7": RIGHT})
    (sample,), rejects = split_up(SOURCES["mevis"](root, "train"))
    assert not rejects
    assert sample == Sample(  # masks follow the sorted frames, however the file lists them
        "mevis/zoo",
        "referring",
        WIDTH,
        HEIGHT,
        frames=[str(root / f"train/JPEGImages/zoo/{name}.jpg") for name in FRAMES],
        num_frames=3,
        annotated=[0, 1, 2],
        objects=[Object([square(0), square(1), ABSENT], [None] * 3), Object(RIGHT, [None] * 3)],
        expressions=[Expression("the left one", [0]), Expression("Both move", [0, 1])],
        source="mevis",
    )


def test_revos_names_videos_by_path_and_knows_no_targets(tmp_path):
    of_video = {
        "0": expression("left", [0], type_id=0),
        "1": expression("which would fall first?", [0], type_id=1),
        "90": expression("a red fire truck", [], type_id=2),
    }
    draw_frames(tmp_path / "TAO/frames/a")
    content = {"videos": videos(of_video, video="TAO/frames/a", height=HEIGHT, width=WIDTH)}
    (tmp_path / "meta_expressions_train_.json").write_text(json.dumps(content))
    (tmp_path / "mask_dict.json").write_text(json.dumps({"0": LEFT}))
    (sample,), rejects = split_up(SOURCES["revos"](tmp_path, "train"))
    assert not rejects and sample.id == "revos/TAO/frames/a"
    assert [(one.kind, one.targets) for one in sample.expressions] == [
        ("referring", [0]),
        ("reasoning", [0]),
        ("no_target", []),
    ]


@pytest.mark.parametrize("name", ["ref_youtube_vos", "ref_davis17"])
def test_masks_from_palette_pictures_have_the_index_of_the_object(tmp_path, name):
    of_videos = videos({"0": expression("left", obj_id="1"), "1": expression("right", obj_id="3")})
    root = write_ytvos(tmp_path, of_videos)
    folder = root / "train/Annotations/zoo"
    folder.mkdir(parents=True)
    for frame, left, right in zip(FRAMES, LEFT, RIGHT, strict=True):
        ids = 3 * masks.decode(right).astype(np.uint8) + (masks.decode(left) if left else 0)
        picture = Image.fromarray(ids.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        picture.save(folder / f"{frame}.png")
    (sample,), rejects = split_up(SOURCES[name](root, "train"))
    assert not rejects and sample.source == name
    assert [thing.masks for thing in sample.objects] == [[square(0), square(1), ABSENT], RIGHT]
    assert [one.targets for one in sample.expressions] == [[0], [1]]


def numbered(count=12):
    """A video with an expression per object, object n at column n % 10; another video before it in order."""
    of_videos = videos({str(n): expression(f"object {n}", obj_id=str(n + 1)) for n in range(count)})
    return of_videos | videos({"0": expression("another", obj_id="1")}, video="ant")


@pytest.mark.parametrize("numbering", ["sorted", "file"])
def test_both_numberings_of_ref_youtube_vos(tmp_path, numbering):
    of_videos = numbered()
    root = write_ytvos(tmp_path, of_videos)
    order = [(video, key) for video, record in of_videos.items() for key in record["expressions"]]
    order = sorted(order) if numbering == "sorted" else order
    columns = {pair: (3 if pair[0] == "ant" else int(pair[1]) % 10) for pair in order}
    content = {str(n): [square(columns[pair])] * 3 for n, pair in enumerate(order)}
    (root / "mask_dict.pkl").write_bytes(pickle.dumps(content))
    samples, rejects = split_up(SOURCES["ref_youtube_vos"](root, "train", numbering=numbering))
    assert not rejects and [sample.id.split("/")[1] for sample in samples] == ["zoo", "ant"]
    for one in samples[0].expressions:
        assert samples[0].objects[one.targets[0]].masks[0] == square(int(one.text.split()[1]) % 10)
    assert samples[1].objects[0].masks[0] == square(3)
    assert order.index(("zoo", "10")) == (3 if numbering == "sorted" else 10)  # "10" comes before "2" as a text


def test_a_wrong_numbering_is_noticed_where_an_object_has_two_expressions(tmp_path):
    keys = {str(n): expression(f"text {n}", obj_id="1" if n < 6 else "2") for n in range(12)}
    root = write_ytvos(tmp_path, videos(keys))
    content = {str(n): (RIGHT if int(key) < 6 else [square(0)] * 3) for n, key in enumerate(sorted(keys))}
    (root / "mask_dict.pkl").write_bytes(pickle.dumps(content))
    assert not split_up(video_referring(root, "train", name="ref_youtube_vos"))[1]
    _, rejects = split_up(video_referring(root, "train", name="ref_youtube_vos", numbering="file"))
    assert rejects and all("numbered in another way" in reject.reason for reject in rejects)


def test_the_annotators_of_ref_davis17(tmp_path):
    four = {str(n): expression(f"text {n}", obj_id="1" if n < 4 else "2") for n in range(8)}
    root = write_ytvos(tmp_path, videos(four), "valid")
    content = {str(n): (RIGHT if n < 4 else [square(0)] * 3) for n in range(8)}
    (root / "valid/mask_dict.pkl").write_bytes(pickle.dumps(content))
    (sample,), rejects = split_up(SOURCES["ref_davis17"](root, "valid"))
    assert not rejects and len(sample.objects) == 2
    assert [one.kind for one in sample.expressions] == 2 * [
        "first_frame_1",
        "full_video_1",
        "first_frame_2",
        "full_video_2",
    ]


def test_ref_davis17_from_its_own_text_files(tmp_path):
    draw_frames(tmp_path / "JPEGImages/480p/zoo")
    folder = tmp_path / "Annotations/480p/zoo"
    folder.mkdir(parents=True)
    for frame in FRAMES:
        Image.fromarray(masks.decode(square(4)).astype(np.uint8), "P").save(folder / f"{frame}.png")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("zoo\n")
    texts = tmp_path / "davis_text_annotations"
    texts.mkdir()
    (texts / "Davis17_annot1.txt").write_bytes('zoo 1 "the caf\xe9"\nother 1 "not of this split"\n'.encode("cp1252"))
    (texts / "Davis17_annot1_full_video.txt").write_text('zoo 1 "the place"\n')
    (texts / "Davis17_annot2.txt").write_text('zoo 1 "it"\n')
    (texts / "Davis17_annot2_full_video.txt").write_text('zoo 1 "that"\n\n')
    (sample,), rejects = split_up(SOURCES["ref_davis17"](tmp_path, "valid"))
    assert not rejects and sample.objects == [Object([square(4)] * 3, [None] * 3)]
    assert [(one.text, one.kind) for one in sample.expressions] == [
        ("the café", "first_frame_1"),
        ("the place", "full_video_1"),
        ("it", "first_frame_2"),
        ("that", "full_video_2"),
    ]
    (texts / "Davis17_annot3.txt").write_text("zoo one thing")
    with pytest.raises(ValueError, match="annot3.txt, line 1 must be VIDEO OBJECT \"TEXT\", got 'zoo one thing'"):
        list(SOURCES["ref_davis17"](tmp_path, "valid"))


@pytest.mark.parametrize(
    ("expressions", "content", "reason"),
    [
        ({"0": {"anno_id": [0]}}, {"0": RIGHT}, "expression 0 has no 'exp'; it has anno_id"),
        ({"0": expression(" .", [0])}, {"0": RIGHT}, "'exp' must be a non-empty text"),
        ({"0": expression("left", [3])}, {"0": RIGHT}, "anno_id 3 is not among the 2 masks"),
        ({"0": expression("left", "3")}, {"0": RIGHT}, "'anno_id' must be a list of keys of the masks, got '3'"),
        ({"0": expression("left", [0])}, {"0": RIGHT[:2]}, "anno_id 0: it has 2 masks for 3 annotated frames"),
        ({"0": expression("left", [0])}, {"0": [None] * 3}, "anno_id 0: its masks cover no pixel on any of the 3"),
        ({"0": expression("left", [0])}, {"0": [{"size": [8, 12], "counts": "!"}] * 3}, "mask 0: RLE garbage"),
        ({"0": expression("left", [0])}, {"0": [masks.empty(9, 12)] * 3}, "the mask is 12 x 9 .* picture is 12 x 8"),
    ],
)
def test_a_bad_expression_is_rejected_and_the_others_stay(tmp_path, expressions, content, reason):
    good = {"9": expression("right", [9])}
    root = write_mevis(tmp_path, videos(expressions | good), content | {"9": RIGHT})
    samples, rejects = split_up(SOURCES["mevis"](root, "train"))
    assert [one.text for one in samples[0].expressions] == ["right"]
    (reject,) = rejects
    assert reject.id == "mevis/zoo/expression 0" and reject.file.endswith("meta_expressions.json")
    assert re.search(reason, reject.reason)


def test_a_video_without_its_frames_is_rejected_with_the_names(tmp_path):
    of_videos = videos({"0": expression("a", [0])}) | videos({"0": expression("b", [0])}, video="gone")
    root = write_mevis(tmp_path, of_videos | {"odd": [1]}, {"0": RIGHT})
    (root / "train/JPEGImages/zoo/00005.jpg").unlink()
    for name in FRAMES:
        (root / f"train/JPEGImages/gone/{name}.jpg").unlink()
    (root / "train/JPEGImages/gone").rmdir()
    samples, rejects = split_up(SOURCES["mevis"](root, "train"))
    assert not samples and [reject.id for reject in rejects] == ["mevis/zoo", "mevis/gone", "mevis/odd"]
    assert "1 of its 3 frames are missing in" in rejects[0].reason and rejects[0].reason.endswith(": 00005")
    assert "the folder of its frames was not found; looked for" in rejects[1].reason
    assert rejects[2].reason == "video odd must be a dict with frames, expressions, got list"


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="the annotation file not found; looked for .*meta_expressions.json"):
        list(SOURCES["mevis"](tmp_path, "train"))
    root = write_mevis(tmp_path, videos({"0": expression("hidden")}), {}, "valid")
    with pytest.raises(ValueError, match="none of the 1 expressions .* masks of this split were not published"):
        list(SOURCES["mevis"](root, "valid"))
    root = write_ytvos(tmp_path / "yt", videos({"0": expression("a", obj_id="1")}))
    with pytest.raises(ValueError, match=r"the masks \(mask_dict\) not found; looked for"):
        list(SOURCES["ref_youtube_vos"](root, "train"))
    (root / "mask_dict.pkl").write_bytes(pickle.dumps({"0": RIGHT, "1": RIGHT}))
    with pytest.raises(ValueError, match="has 2 masks but .* has 1 expressions without anno_id"):
        list(SOURCES["ref_youtube_vos"](root, "train"))
    (root / "mask_dict.pkl").write_bytes(pickle.dumps(np.ones(3)))
    with pytest.raises(ValueError, match="cannot be read as a pickle of plain data"):
        list(SOURCES["ref_youtube_vos"](root, "train"))
    with pytest.raises(ValueError, match="numbering must be one of sorted, file, got 'text'"):
        list(SOURCES["ref_youtube_vos"](root, "train", numbering="text"))


# ---------------------------------------------------------------- shaped and genuine files

SHAPED = {
    "mevis": ("mevis", "train", 6, 12, 9),
    "revos": ("revos", "train", 6, 13, 9),
    "ref_youtube_vos": ("ref_ytvos", "train", 6, 10, 9),
    "ref_davis17": ("ref_davis17", "valid", 6, 10, 9),
}


@pytest.mark.parametrize("name", SHAPED)
def test_the_sample_roots_give_the_counts_and_areas_of_their_annotations(shared_data, tmp_path, name):
    folder, split, num_videos, num_expressions, num_objects = SHAPED[name]
    frames = shared_data / "davis/JPEGImages/480p"
    if name == "revos":  # its videos are named DAVIS/JPEGImages/480p/...
        frames = tmp_path
        (tmp_path / "DAVIS").symlink_to(shared_data / "davis")
    root = shared_data / "shaped" / folder
    samples, rejects = split_up(SOURCES[name](root, split, frames=frames))
    assert not rejects
    assert len(samples) == num_videos
    assert sum(len(sample.expressions) for sample in samples) == num_expressions
    assert sum(len(sample.objects) for sample in samples) == num_objects
    areas = sorted(masks.area(rle) for sample in samples for thing in sample.objects for rle in thing.masks)
    truth = json.loads((shared_data / "shaped/mevis/train/mask_dict.json").read_text())
    given = [0 if rle is None else masks.area(rle) for rles in truth.values() for rle in rles]
    assert areas == sorted(given) and sum(areas) > 0


def test_the_genuine_valid_file_says_that_its_masks_are_hidden(shared_data):
    file = shared_data / "ref_ytvos/meta_expressions_valid.json"
    with pytest.raises(ValueError, match="none of the 2096 expressions .* has an anno_id or obj_id"):
        list(SOURCES["ref_youtube_vos"](shared_data / "ref_ytvos", "valid", annotations=file))
