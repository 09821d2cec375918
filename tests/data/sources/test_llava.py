"""LLaVA's form of dialogues: about a picture, a clip or nothing.

Run: pytest tests/data/sources/test_llava.py      (SA2VA_TEST_DATA adds a file in the genuine form, and a video)
"""

import json
import shutil

import pytest
from PIL import Image

from sa2va_hf.data.schema import Reject, Sample, Turn, validate
from sa2va_hf.data.sources.llava import llava

TALK = [
    {"from": "human", "value": "<image>\nWhat is this?"},
    {"from": "gpt", "value": "A dog."},
    {"from": "human", "value": "And that?"},
    {"from": "gpt", "value": "A cat."},
]
TURNS = [Turn("What is this?", "A dog."), Turn("And that?", "A cat.")]
FILE = {
    "llava": "LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
    "vstar_possible_locations": "vsm_vqa_data/possible_locations_conv_86k.json",
    "chatunivi": "video_chat.json",
}


def row(talk=TALK, **changes):
    return {"id": "9", "image": "coco/train2017/9.jpg", "conversations": talk} | changes


def write(root, rows, name="llava", at="coco/train2017/9.jpg", file=None):
    path = root / (file or FILE[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(root / at)
    return path


def read(root, name="llava", split="train", **options):
    records = list(llava(root, split, name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def expected(root, at="coco/train2017/9.jpg", name="llava", turns=TURNS):
    return Sample("9", "conversation", 12, 8, frames=[str(root / at)], turns=turns, source=name)


@pytest.mark.parametrize("at", ["llava_images/coco/train2017/9.jpg", "coco/train2017/9.jpg"])
def test_the_exact_sample(tmp_path, at):
    write(tmp_path, [row()], at=at)
    assert read(tmp_path) == ([expected(tmp_path, at)], [])


def test_the_exact_sample_of_vstar(tmp_path):
    at = "coco2017/train2017/9.jpg"
    write(tmp_path, [row(image="9.jpg")], "vstar_possible_locations", at)
    assert read(tmp_path, "vstar_possible_locations") == ([expected(tmp_path, at, "vstar_possible_locations")], [])


@pytest.mark.parametrize("question", ["What is this?\n<image>", "What is this?", "<image> What is this?"])
def test_the_place_of_the_picture_does_not_matter(tmp_path, question):
    write(tmp_path, [row([{"from": "human", "value": question}, *TALK[1:]])])
    assert read(tmp_path) == ([expected(tmp_path)], [])


def test_text_only(tmp_path):
    talk = [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5."}]
    write(tmp_path, [{"id": "a_0", "model": "", "conversations": talk}])
    assert read(tmp_path) == ([Sample("a_0", "conversation", turns=[Turn("2 + 3?", "5.")], source="llava")], [])


def test_messages_without_a_counterpart_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, [row([TALK[1], *TALK]), row([*TALK, TALK[2]]), row()])
    samples, rejects = read(tmp_path)
    assert not rejects and [one.turns for one in samples] == [TURNS] * 3
    assert [one.id for one in samples] == ["9", "9#2", "9#3"]
    assert "2 messages without a question or an answer are skipped" in caplog.text


def test_a_list_of_one_picture_is_one_and_rows_may_be_lines(tmp_path):
    write(tmp_path, [row(image=["coco/train2017/9.jpg"])], file="own.jsonl")
    assert read(tmp_path, annotations="own.jsonl") == ([expected(tmp_path)], [])


BAD = [
    (row(image=["a.jpg", "b.jpg"]), "'image' holds 2 files: a sample has one picture or one clip"),
    (row(image=7), "'image' must be the name of a file, got 7"),
    (row(image="8.jpg"), "image 8.jpg not found; looked in"),
    (row(video="x.mp4"), "it has both a picture and a video: 'coco/train2017/9.jpg' and 'x.mp4'"),
    (row(image=None), "its question places a picture, but the row has neither 'image' nor 'video'"),
    (
        row([{"from": "human", "value": "<image><image> Compare."}, TALK[1]]),
        "its questions place 2 pictures or clips: one",
    ),
    (row([{"from": "human", "value": "<image>"}, TALK[1]]), "question 0 is nothing but the place of a picture"),
    (row([TALK[0], TALK[1], TALK[1]]), "message 2 is an answer that follows an answer"),
    (row(TALK[1:2]), "no question of the 1 messages is answered"),
    (row(None), "'conversations' must be a list of messages, got None"),
    (row(image=None, video="x.mp4"), "video x.mp4 not found; looked in"),
    ("x", "row 1 must be a dict with conversations, got str"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
@pytest.mark.parametrize("name", FILE)
def test_a_bad_row_is_a_reject_and_the_others_remain(tmp_path, name, bad, message):
    path = write(tmp_path, [row(), bad], name)
    (sample,), (reject,) = read(tmp_path, name)
    assert sample.id == "9" and message in reject.reason
    assert reject.id.startswith("row 1") and reject.file == str(path)


def test_which_of_several_files_is_meant_must_be_said(tmp_path):
    write(tmp_path, [row()])
    write(tmp_path, [row(), row()], file="llava_instruct_80k.json")
    with pytest.raises(ValueError, match="which of .*llava_instruct_80k.json.*is meant"):
        read(tmp_path)
    assert len(read(tmp_path, annotations="llava_instruct_80k.json")[0]) == 2
    with pytest.raises(ValueError, match="annotation file not found; looked for .*/val.json"):
        read(tmp_path, split="val")


def test_a_clip_of_frames(tmp_path):
    talk = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A jump."}]
    write(tmp_path, [{"id": "9", "video": "v_a.mp4", "conversations": talk}], "chatunivi", "Activity_Videos/v_a/2.jpg")
    shutil.copy(tmp_path / "Activity_Videos/v_a/2.jpg", tmp_path / "Activity_Videos/v_a/10.jpg")
    frames = [str(tmp_path / "Activity_Videos" / "v_a" / f"{number}.jpg") for number in (2, 10)]
    turns = [Turn("What happens?", "A jump.")]
    assert read(tmp_path, "chatunivi") == (
        [Sample("9", "conversation", 12, 8, frames=frames, turns=turns, source="chatunivi")],
        [],
    )


def test_a_video_file_is_found_under_another_suffix(shared_data, tmp_path):
    video = shared_data / "sam2_media" / "05_default_juggle.mp4"
    if not video.is_file():
        (video,) = sorted(shared_data.glob("sam2_media/**/05_default_juggle.mp4"))
    talk = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A jump."}]
    write(tmp_path, [{"id": "9", "video": "v_a.mkv", "conversations": talk}], "chatunivi")
    (tmp_path / "Activity_Videos").mkdir()
    shutil.copy(video, tmp_path / "Activity_Videos" / "v_a.mp4")
    (sample,), rejects = read(tmp_path, "chatunivi")
    assert not rejects and sample.video == str(tmp_path / "Activity_Videos" / "v_a.mp4")
    assert sample.num_frames > 1 and sample.width > 0 and sample.turns == [Turn("What happens?", "A jump.")]


def test_a_file_in_the_genuine_form(shared_data, tmp_path):
    (tmp_path / "coco").symlink_to(shared_data / "coco2017_tiny")
    file = shared_data / "shaped" / "llava" / "llava_v1_5_mix665k.json"
    samples, rejects = read(tmp_path, annotations=file)
    assert not rejects and len(samples) == len(json.loads(file.read_text()))
    assert [bool(one.frames) for one in samples] == [True] * (len(samples) - 1) + [False]
    assert all("<image>" not in turn.question for one in samples for turn in one.turns)
