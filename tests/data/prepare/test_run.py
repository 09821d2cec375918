"""prepare: what it writes is what the source said, the same bytes each time; a bad record stops it or is listed.

Run: pytest tests/data/prepare/test_run.py      (SA2VA_TEST_DATA adds genuine files)
"""

import hashlib
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from records import clip, contents, given, picture, read, sample

from sa2va_hf import masks
from sa2va_hf.data.media import load_image
from sa2va_hf.data.prepare import shards
from sa2va_hf.data.prepare.releases import RELEASES
from sa2va_hf.data.prepare.run import PrepareError, check, prepare
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, Turn
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import read_json

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "prepare_data.py"
SHAPES = {"count": 70, "size": 48, "clip_fraction": 0.2, "tasks": ["referring", "region_caption"]}


# ---------------------------------------------------------------- the way through


def test_source_to_arrow_to_sample_is_the_identity(tmp_path):
    prepare("shapes", None, "train", tmp_path / "out", options=SHAPES)
    assert read(tmp_path / "out") == list(SOURCES["shapes"](None, "train", **SHAPES))


def test_the_bytes_are_the_same_for_any_number_of_processes(tmp_path):
    for num_proc in (1, 3):
        prepare("shapes", None, "train", tmp_path / str(num_proc), options=SHAPES, num_proc=num_proc)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_processes_also_check_records_of_a_listing_source(tmp_path, source):
    records = [sample(f"s{number}", picture(tmp_path / f"{number}.jpg")) for number in range(80)]
    records[50] = sample("s50", str(tmp_path / "gone.jpg"))
    source(*records)
    manifest = given(tmp_path, num_proc=2, skip_bad=True)
    assert [one.id for one in read(tmp_path / "out")] == [f"s{number}" for number in range(80) if number != 50]
    assert [reject.id for reject in manifest.rejects] == ["s50"]


def test_manifest_counts_and_hashes(tmp_path, monkeypatch):
    frame = picture(tmp_path / "a.png")
    (tmp_path / "annotations.json").write_text("[]")

    def read_something(root, split):
        read_json(root / "annotations.json", list)
        yield sample("a", frame)
        yield sample("b", frame, expressions=[Expression("x", [0], "k"), Expression("y", [])])
        yield sample("c", frame, task="question", expressions=[], turns=[Turn("q", "a"), Turn("q", "[SEG]", [[0]])])

    monkeypatch.setitem(SOURCES, "given", read_something)
    given(tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    expected = {"source": "given", "split": "train", "samples": 3, "frames": 3, "objects": 3, "masks": 3, "turns": 2}
    expected |= {"expressions": 3, "tasks": {"referring": 2, "question": 1}, "kinds": {"k": 2, "": 1}, "rejects": []}
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["annotation_files"] == {
        str(tmp_path / "annotations.json"): hashlib.sha256(b"[]").hexdigest(),
    }
    for name, digest in manifest["shards"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_many_shards_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    manifest = prepare("shapes", None, "train", tmp_path / "out", options=SHAPES)
    assert len(manifest.shards) == 3  # of 32, 32 and 6 records
    assert read(tmp_path / "out") == list(SOURCES["shapes"](None, "train", **SHAPES))


def test_limit_reads_no_more(tmp_path, source):
    frame = picture(tmp_path / "a.png")
    source(*(sample(str(number), frame) for number in range(50)))
    assert given(tmp_path, limit=33).samples == 33
    assert prepare("shapes", None, "train", tmp_path / "shapes", options=SHAPES, limit=5).samples == 5
    assert read(tmp_path / "shapes") == list(SOURCES["shapes"](None, "train", **SHAPES | {"count": 5}))


def test_progress_counts_every_record(tmp_path, source):
    frame = picture(tmp_path / "a.png")
    source(*(sample(str(number), frame) for number in range(40)), Reject("x", "y"), Reject("z", "y"))
    steps = []
    given(tmp_path, skip_bad=True, progress=steps.append)
    assert sum(steps) == 42 and len(steps) == 2


# ---------------------------------------------------------------- media


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1", "I;16"])
def test_every_mode_of_picture_is_accepted_and_embedding_changes_no_pixel(tmp_path, source, mode):
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(path)
    else:
        picture(path, mode=mode)
    source(sample("a", str(path)))
    prepare("given", tmp_path, "train", tmp_path / "paths")
    prepare("given", tmp_path, "train", tmp_path / "embedded", embed_media=True)
    (by_path,), (embedded,) = read(tmp_path / "paths"), read(tmp_path / "embedded")
    assert by_path.frames == [str(path)] and embedded.frames == [path.read_bytes()]
    pixels = np.asarray(load_image(path))
    path.unlink()  # the embedded one does not need it
    assert np.array_equal(load_image(embedded.frames[0]), pixels) and pixels.shape == (30, 40, 3)


def test_cmyk_and_turned_photos_are_accepted_upright(tmp_path, source):
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = picture(tmp_path / "cmyk.jpg", mode="CMYK")
    turned = picture(tmp_path / "turned.jpg", exif=exif)
    source(sample("a", cmyk), sample("b", turned, size=(30, 40)))
    assert given(tmp_path).samples == 2


def test_embedded_and_path_media_give_equal_pixels(tmp_path, source):
    paths = [picture(tmp_path / name) for name in ("a.jpg", "bb.png")]
    source(*(sample(path, path) for path in paths))
    prepare("given", tmp_path, "train", tmp_path / "paths")
    prepare("given", tmp_path, "train", tmp_path / "embedded", embed_media=True)
    for one, other in zip(read(tmp_path / "paths"), read(tmp_path / "embedded"), strict=True):
        assert isinstance(one.frames[0], str) and isinstance(other.frames[0], bytes)
        assert np.array_equal(load_image(one.frames[0]), load_image(other.frames[0]))
        other.frames = one.frames
        assert one == other


def truncated(tmp_path):
    path = Path(picture(tmp_path / "cut.jpg", size=(400, 300)))
    path.write_bytes(path.read_bytes()[:-2000])
    return sample("bad", str(path), size=(400, 300))


def garbage_mask(tmp_path):
    thing = Object([{"size": [30, 40], "counts": "PPP"}], [None])
    return sample("bad", picture(tmp_path / "b.png"), objects=[thing])


def larger_mask(tmp_path):
    thing = Object([masks.encode(np.ones((31, 40), dtype=bool))], [None])
    return sample("bad", picture(tmp_path / "b.png"), objects=[thing])


def film(frames, **changes):
    """A clip of so many frames; `changes` are what the record says of it."""

    def make(folder):
        with av.open(str(folder / "v.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame(64, 32, "yuv420p")))
            container.mux(stream.encode())
        turns = {"objects": [], "expressions": [], "turns": [Turn("q", "a")], "num_frames": frames}
        return sample("bad", "", (64, 32), **{"frames": [], "video": str(folder / "v.mp4")} | turns | changes)

    return make


def of_size(width, height):
    return lambda folder: sample("bad", picture(folder / "b.png", (width, height)))


def unequal_counts(folder):
    return sample("bad", "x", expressions=[], turns=[Turn("q", "[SEG]")])


BAD = {
    "missing image": (lambda p: sample("bad", str(p / "gone.jpg")), "gone.jpg: no such file", "gone.jpg"),
    "truncated": (truncated, "cut.jpg: cannot be read as a picture: .*truncated", "cut.jpg"),
    "no picture": (lambda p: sample("bad", b"zzz"), "embedded file of 3 bytes: ", ""),
    "size": (of_size(41, 30), "frame 0 is 41 x 30 but its annotation is for 40 x 30$", "b.png"),
    "turned": (of_size(30, 40), "is one of them turned", "b.png"),
    "garbage": (garbage_mask, r"objects\[0\].masks\[0\]: RLE garbage: counts of 3 characters ends within", ""),
    "mask size": (larger_mask, r"objects\[0\].masks\[0\] is 40 x 31 .* but the picture is 40 x 30", ""),
    "seg count": (unequal_counts, r"answer has 1 \[SEG\] but targets has 0", ""),
    "twice": (lambda p: sample("good", picture(p / "b.png")), "id 'good' occurs twice", ""),
    "a video": (lambda p: sample("bad", "", frames=[], video=str(p / "v.mp4")), "v.mp4: no such video file", "v.mp4"),
    "no frames": (film(0, num_frames=2), "v.mp4: .*video", "v.mp4"),
    "no frames, known": (film(0), "num_frames must be positive, got 0", ""),
    "fewer frames": (film(3, num_frames=4), "the video has 3 frames, num_frames says 4", "v.mp4"),
    "a film's size": (film(2, width=32, height=64), "the video is 64 x 32 but its annotation is for 32 x 64", "v.mp4"),
    "the source's own": (lambda p: Reject("bad", "it says so", "f.json"), "it says so", "f.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_stops_everything_or_is_left_out_and_listed(tmp_path, source, name):
    make, reason, file = BAD[name]
    good = sample("good", picture(tmp_path / "a.png"))
    source(good, make(tmp_path))
    with pytest.raises(PrepareError, match="1 records cannot be used:\n(.*)\nNothing was written") as error:
        given(tmp_path)
    (reject,) = error.value.rejects
    assert reject.id in ("bad", "good") and reject.file.endswith(file)
    assert re.search(reason, reject.reason)
    assert (
        sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []
    )  # nothing written, nothing left over

    manifest = given(tmp_path, skip_bad=True)
    assert read(tmp_path / "out") == [good] and manifest.samples == 1
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["rejects"]
    assert listed == [{"id": reject.id, "reason": reject.reason, "file": reject.file}]


def test_all_bad_records_are_listed_at_once(tmp_path, source):
    source(*(Reject(f"r{number}", "broken") for number in range(100)), sample("good", picture(tmp_path / "a.png")))
    with pytest.raises(PrepareError, match="100 records cannot be used:\n  r0: broken") as error:
        given(tmp_path)
    assert [reject.id for reject in error.value.rejects] == [f"r{number}" for number in range(100)]
    assert "... and 80 more" in str(error.value) and "--skip_bad" in str(error.value)


def test_an_empty_dataset_is_an_error(tmp_path, source):
    source()
    with pytest.raises(ValueError, match="source 'given' at .* has no samples in split 'train'"):
        given(tmp_path)
    source(Reject("r", "broken"))
    with pytest.raises(PrepareError, match="none of the records can be used:\n  r: broken"):
        given(tmp_path, skip_bad=True)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the folder


def test_what_is_finished_is_not_replaced_unasked(tmp_path, source):
    frame = picture(tmp_path / "a.png")
    source(sample("a", frame))
    given(tmp_path)
    source(sample("b", frame))
    with pytest.raises(ValueError, match="out is prepared already; add --overwrite"):
        given(tmp_path)
    assert [one.id for one in read(tmp_path / "out")] == ["a"]
    source(Reject("b", "broken"))
    with pytest.raises(PrepareError):  # a failure leaves the old one as it is
        given(tmp_path, overwrite=True)
    assert [one.id for one in read(tmp_path / "out")] == ["a"]
    source(sample("b", frame))
    given(tmp_path, overwrite=True)
    assert [one.id for one in read(tmp_path / "out")] == ["b"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path, source):
    source(sample("a", picture(tmp_path / "a.png")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a prepared folder .*: it is not touched"):
        given(tmp_path, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path, source):
    source(sample("a", picture(tmp_path / "a.png")))
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "data-00000.arrow").write_text("half")
    given(tmp_path)
    assert len(read(tmp_path / "out")) == 1 and not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "refcoc"}, "unknown source 'refcoc'; there are shapes, refcoco, "),
        ({"options": {"splitby": "umd"}}, "'refcoco' has no option splitby; it has name, split_by, images"),
        ({"root": "nowhere"}, "root nowhere is not a folder"),
        ({"root": None}, "a root folder is needed"),
        ({"num_proc": 0}, "must be positive, got 0"),
        ({"limit": 0}, "must be positive"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    arguments = {"source": "refcoco", "root": tmp_path, "split": "train", "output": tmp_path / "out"} | arguments
    with pytest.raises(ValueError, match=message):
        prepare(**arguments)


def test_a_source_that_fails_midway_fails_prepare_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="annotation file not found"):
        prepare("finetune_json", tmp_path, "train", tmp_path / "out", num_proc=2)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- looking


def test_check_lists_every_missing_file_and_writes_nothing(tmp_path, source):
    source(
        sample("a", picture(tmp_path / "a.png")),
        sample("b", str(tmp_path / "gone.jpg")),
        garbage_mask(tmp_path),
        Reject("r", "broken"),
        clip("c", [picture(tmp_path / "v0.jpg"), str(tmp_path / "v1.jpg")]),
    )
    before = sorted(tmp_path.rglob("*"))
    manifest = check("given", tmp_path, "train", num_proc=2)
    assert [reject.id for reject in manifest.rejects] == ["b", "bad", "r", "c"] and manifest.samples == 1
    assert manifest.rejects[3].file == str(tmp_path / "v1.jpg")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_partial_download_is_noticed(tmp_path, source, monkeypatch, caplog):
    monkeypatch.setitem(RELEASES, "given", {"train": {"samples": 3, "expressions": 1}})
    source(sample("a", picture(tmp_path / "a.png")), Reject("r", "broken"))
    given(tmp_path, skip_bad=True)
    assert "given train: 1 samples, where the public release has 3 (1 rejects, 0 excluded). Is the" in caplog.text
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["release"] == {"samples": 3, "expressions": 1}
    caplog.clear()
    given(tmp_path, limit=1, overwrite=True)  # asked for less
    assert "public release" not in caplog.text


def test_a_release_may_be_counted_by_task(tmp_path, source, monkeypatch, caplog):
    monkeypatch.setitem(RELEASES, "given", {"train": {"referring": 1}})
    about = Sample("a", "conversation", turns=[Turn("why?", "so.")])  # as explanations are, beside their pictures
    source(sample("a", picture(tmp_path / "a.png")), replace(about, id="b"))
    given(tmp_path)
    assert "public release" not in caplog.text
    source(about)
    given(tmp_path, overwrite=True)
    assert "given train: 0 referring, where the public release has 1" in caplog.text


def test_releases_are_of_sources():
    assert set(RELEASES) <= set(SOURCES)


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script, in this process: (exit status, stdout, stderr)."""

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return script


def test_the_command_writes_or_lists_every_problem_and_exits_1(tmp_path, run):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    polygon = [[0, 0, 10, 0, 10, 10]]
    records = [{"image": name, "mask": [polygon], "text": ["x"]} for name in ("a.jpg", "b.jpg", "c.jpg")]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    command = ["--source", "finetune_json", "--root", tmp_path, "--split", "train", "--output", tmp_path / "out"]
    command += ["--option", "annotations=mine.json", "--option", "val_fraction=0.0"]
    status, _, problems = run(*command)
    assert status == 1 and not (tmp_path / "out").exists()
    assert "image b.jpg not found" in problems and "image c.jpg not found" in problems
    assert "2 records cannot be used: nothing was written" in problems
    status, summary, problems = run(*command, "--skip_bad", "--embed_media", "--num_proc", "2")
    assert status == 0 and problems.count("skipped: record") == 2
    assert "1 samples, 1 objects, 1 masks, 1 expressions, 2 rejects" in summary
    assert [one.id for one in read(tmp_path / "out")] == ["a.jpg"]


def test_options_of_the_command_are_yaml_and_checked(tmp_path, run):
    command = ["--source", "shapes", "--split", "val", "--output", tmp_path / "out", "--limit", "2"]
    assert run(*command, "--option", "tasks=[region_caption]", "--option", "size=64")[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"] == {"tasks": ["region_caption"], "size": 64}
    assert manifest["tasks"] == {"region_caption": 2}
    for option, message in (
        ("size", "expects KEY=VALUE"),
        ("size=[", "--option size=["),
        ("size=3", "size: expected"),
    ):
        status, _, problems = run(*command, "--overwrite", "--option", option)
        assert status == 1 and message in problems
    assert "--option size is given twice" in run(*command, "--option", "size=64", "--option", "size=65")[2]
    assert "is prepared already" in run(*command)[2]
    assert run("--source", "nothing")[0] == 2
    assert run("--source", "shapes", "--split", "val")[0] == 2  # neither --output nor --check
    assert run(*command, "--shard", "1")[0] == 2


def test_the_command_checks_and_shares_out(tmp_path, run):
    picture(tmp_path / "a.jpg")
    records = [{"image": name, "mask": [[[0, 0, 10, 0, 10, 10]]], "text": ["x"]} for name in ("a.jpg", "b.jpg")]
    (tmp_path / "annotations.json").write_text(json.dumps(records))
    command = ["--source", "finetune_json", "--root", tmp_path, "--split", "train"]
    status, summary, problems = run(*command, "--check")
    assert status == 1 and "image b.jpg not found" in problems and "1 samples" in summary and "1 rejects" in summary
    picture(tmp_path / "b.jpg")
    assert run(*command, "--check")[0] == 0 and not (tmp_path / "out").exists()
    assert run(*command, "--output", tmp_path / "out", "--shard", "1/2")[0] == 0
    assert "2 samples" in run(*command, "--output", tmp_path / "out", "--shard", "2/2")[1]
    (tmp_path / "list.txt").write_text("a\n")
    summary = run(*command, "--output", tmp_path / "less", "--exclude", tmp_path / "list.txt")[1]
    assert "1 samples, 1 objects, 1 masks, 1 expressions, 0 rejects, 1 excluded" in summary


# ---------------------------------------------------------------- genuine data


@pytest.mark.parametrize("name, root, split, options", [
    ("refcoco", "shaped/grefcoco", "train", {}),
    ("refcoco+", "shaped/grefcoco", "val", {}),
    ("refcocog", "shaped/grefcoco", "testB", {}),
    ("finetune_json", "shaped/sa2va_finetune", "train", {"images": "coco2017_tiny/val2017"}),
    ("coco_json", "coco2017_tiny", "val", {}),
])  # fmt: skip
def test_genuine_data_arrive_complete(shared_data, tmp_path, name, root, split, options):
    options = {key: str(shared_data / value) for key, value in options.items()}
    expected = list(SOURCES[name](shared_data / root, split, **options))
    for embed in (False, True):
        manifest = prepare(name, shared_data / root, split, tmp_path / str(embed), options=options, embed_media=embed)
        assert manifest.samples == len(expected) and not manifest.rejects and manifest.annotation_files
    assert read(tmp_path / "False") == expected
    for one, other in zip(read(tmp_path / "True"), expected, strict=True):
        assert np.array_equal(load_image(one.frames[0]), load_image(other.frames[0]))
        assert (one.objects, one.expressions) == (other.objects, other.expressions)
