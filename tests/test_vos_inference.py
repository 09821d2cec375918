"""From folders of frames and masks to folders of masks, and the script that does it for many videos.

Run: pytest tests/test_vos_inference.py
"""

import json
import runpy
import sys
from pathlib import Path

import av
import forks
import numpy as np
import pytest
from clips import disc, draw, tiny_clip_model, write_davis
from PIL import Image
from safetensors.torch import save_file

from sa2va_hf.commands.vos_inference import main as vos_command
from sa2va_hf.data.clips.vos import MaskFolder
from sa2va_hf.data.media import decode_video
from sa2va_hf.evaluation.benchmarks import get_benchmark, load_items
from sa2va_hf.evaluation.following import score_folder, summarize
from sa2va_hf.evaluation.items import Answer, Settings
from sa2va_hf.mask_pictures import read_ids
from sa2va_hf.masks import encode
from sa2va_hf.vos_inference import VosOptions, choose_prompts, davis_palette, follow_video, read_video

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def video(tmp_path):
    write_davis(tmp_path, ["v"], frames=5)
    return tmp_path / "JPEGImages/480p/v", tmp_path / "Annotations/480p/v"


@pytest.fixture(scope="module")
def sam2():
    return tiny_clip_model().sam.eval()


def save(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def test_a_picture_per_frame_with_the_first_one_as_given(video, sam2, tmp_path):
    files = read_video(*video)
    follow_video(sam2, files, tmp_path / "out/v", VosOptions(), "cpu")
    written = sorted((tmp_path / "out/v").iterdir())
    assert [path.name for path in written] == [f"{number:05d}.png" for number in range(5)]
    first, given = read_ids(written[0]), read_ids(video[1] / "00000.png")
    for thing in (1, 2):
        overlap = ((first == thing) & (given == thing)).sum() / ((first == thing) | (given == thing)).sum()
        assert overlap > 0.8
    with Image.open(written[0]) as ours, Image.open(video[1] / "00000.png") as theirs:
        assert ours.mode == "P" and ours.getpalette()[:12] == theirs.getpalette()[:12]


def test_a_folder_per_object_and_back(video, sam2, tmp_path):
    files = read_video(*video)
    follow_video(sam2, files, tmp_path / "out/v", VosOptions(per_object=True), "cpu")
    assert {path.name for path in (tmp_path / "out/v").iterdir()} == {"001", "002"}
    again = read_video(video[0], tmp_path / "out/v")
    assert sorted(again.masks) == list(range(5)) and set(again.masks[0]) == {1, 2}


def test_a_film_is_as_its_frames(video, sam2, tmp_path, monkeypatch):
    """Frames of a film count from 0; few are held, however they are asked for."""
    monkeypatch.setattr("sa2va_hf.vos_inference.READ_AHEAD", 2)
    film = tmp_path / "films/v.mp4"
    film.parent.mkdir()
    with av.open(film, "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            picture = av.VideoFrame.from_ndarray(draw(number, 2)[0], format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    for number, picture in enumerate(decode_video(film, range(5))):
        (video[0] / f"{number:05d}.jpg").unlink()
        picture.save(video[0] / f"{number:05d}.png")
    files = read_video(film.with_suffix(""), video[1])
    follow_video(sam2, files, tmp_path / "out/film", VosOptions(), "cpu")
    follow_video(sam2, read_video(*video), tmp_path / "out/frames", VosOptions(), "cpu")
    for number in range(5):
        one, other = (read_ids(tmp_path / f"out/{name}/{number:05d}.png") for name in ("film", "frames"))
        assert np.array_equal(one, other) and (number or one.any())
    assert files.open(3).tobytes() == files.open(3).tobytes() and set(files.open.held) == {3, 4}


def test_png_and_jpg_in_one_folder(video, sam2, tmp_path):
    with Image.open(video[0] / "00002.jpg") as picture:
        picture.save(video[0] / "00002.png")
    with pytest.raises(ValueError, match="frame 2 of .* is there twice: 00002.jpg and 00002.png"):
        read_video(*video)
    (video[0] / "00002.jpg").unlink()
    follow_video(sam2, read_video(*video), tmp_path / "out/v", VosOptions(), "cpu")
    assert len(list((tmp_path / "out/v").iterdir())) == 5


def test_which_masks_the_tracker_sees(video):
    for number in range(5):  # object 3 comes at frame 2; void at the bottom
        ids = read_ids(video[1] / f"{number:05d}.png")
        ids[-2:] = 255
        if number >= 2:
            ids[:4, :6] = 3
        save(video[1] / f"{number:05d}.png", ids)
    files = read_video(*video)

    def seen(**options):
        return {thing: list(given) for thing, given in choose_prompts(files, VosOptions(**options)).items()}

    assert seen(later_objects=True) == {1: [0], 2: [0], 3: [2]}
    assert seen(later_objects=True, all_masks=True) == {1: [*range(5)], 2: [*range(5)], 3: [2, 3, 4]}
    for options in ({}, {"all_masks": True}):  # it is never left out in silence
        with pytest.raises(ValueError, match=r"objects \[3\] are not on the first frame.*appearing_later"):
            seen(**options)


def test_an_id_above_255_is_written_with_16_bits(video, sam2, tmp_path):
    ids = np.where(read_ids(video[1] / "00000.png") == 1, 300, 0).astype(np.uint16)
    for path in video[1].iterdir():
        path.unlink()
    Image.fromarray(ids).save(video[1] / "00000.png")
    follow_video(sam2, read_video(*video), tmp_path / "out/v", VosOptions(), "cpu")
    written = MaskFolder(tmp_path / "out/v")
    assert len(written) == 5 and list(written[0]) == [300]
    assert (written[0][300] == (ids == 300)).mean() > 0.9


@pytest.mark.parametrize(
    ("made", "extra", "message"),
    [
        (["v.png"], [], "no folder of masks in"),  # masks without a folder per video
        ([".ipynb_checkpoints/v.png", "__MACOSX/v.png"], [], "no folder of masks in"),
        (["v/00000.png"], ["--device", "gpu"], "device: expected 'cpu', 'cuda'"),
    ],
)
def test_nothing_to_do_and_wrong_arguments_are_errors_before_a_model_is_loaded(tmp_path, made, extra, message, capsys):
    for name in made:
        save(tmp_path / "masks" / name, np.ones((4, 4)))
    command = [
        "--sam2_checkpoint",
        "there is none",
        "--base_video_dir",
        tmp_path,
        "--input_mask_dir",
        tmp_path / "masks",
    ]
    assert vos_command([*map(str, command), "--output_mask_dir", str(tmp_path / "out"), *extra]) == 1
    assert message in capsys.readouterr().err


def test_an_output_that_is_a_file_fails_before_the_work(tmp_path, capsys):
    (tmp_path / "masks/v").mkdir(parents=True)
    (tmp_path / "out").write_text("")
    command = [
        "--sam2_checkpoint",
        "there is none",
        "--base_video_dir",
        tmp_path,
        "--input_mask_dir",
        tmp_path / "masks",
    ]
    assert vos_command([*map(str, command), "--output_mask_dir", str(tmp_path / "out")]) == 1
    assert "out is a file" in capsys.readouterr().err


def test_before_its_first_mask_there_is_nothing(video, sam2, tmp_path):
    for number in range(2):
        (video[1] / f"{number:05d}.png").unlink()
    follow_video(sam2, read_video(*video), tmp_path / "out/v", VosOptions(later_objects=True), "cpu")
    written = [read_ids(path) for path in sorted((tmp_path / "out/v").iterdir())]
    assert len(written) == 5 and not written[0].any() and not written[1].any() and written[2].any()


def test_small_holes_are_filled(video, sam2, tmp_path):
    ids = read_ids(video[1] / "00000.png")
    ids[10:13, 10:13] = 0
    ids[0, 0] = 1
    save(video[1] / "00000.png", ids)
    holes = []
    for name, options in (("with", VosOptions()), ("without", VosOptions(postprocessing=True))):
        follow_video(sam2, read_video(*video), tmp_path / name, options, "cpu")
        holes.append(int((read_ids(tmp_path / name / "00000.png")[10:13, 10:13] == 0).sum()))
    assert holes[0] > 0 and holes[1] == 0


def test_the_palette_is_davis():
    assert davis_palette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert davis_palette()[-3:] == [224, 224, 192]


def only(folder, ids):
    """These ids on the first frame, and no other masks."""
    for path in folder.iterdir():
        path.unlink()
    save(folder / "00000.png", ids)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda masks: save(masks / "00009.png", np.ones((48, 64))), r"masks of frames \[9\]"),
        (lambda masks: only(masks, np.ones((48, 63))), "mask of object 1 is 63 x 48, the frames are 64"),
        (lambda masks: save(masks / "00000.png", np.zeros((48, 64))), r"objects \[1, 2\] are not on the first frame"),
        (lambda masks: only(masks, np.zeros((48, 64))), "expected a mask of at least one object on the first frame"),
        (lambda masks: save(masks / "cat/00000.png", np.ones((48, 64))), "must have its number as name"),
        (lambda masks: Image.new("RGB", (64, 48), "red").save(masks / "00000.png"), "00000.png is a colour picture"),
    ],
)
def test_files_that_do_not_fit(video, sam2, tmp_path, spoil, words):
    spoil(video[1])
    with pytest.raises(ValueError, match=words):
        follow_video(sam2, read_video(*video), tmp_path / "out/v", VosOptions(), "cpu")
    assert not (tmp_path / "out/v").exists()


# ---------------------------------------------------------------- scores


def write_sav(root, video, late=0):
    """SA-V's val: 13 frames, masks of every 4th, a folder per object; object 1 first has pixels on frame `late`."""
    for frame in range(13):
        picture, _ = draw(frame, 2)
        place = root / f"sav_val/JPEGImages_24fps/{video}/{frame:05d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place, quality=95)
        if frame % 4 == 0:
            for thing in range(2):
                mask = disc(frame, thing) if thing == 0 or frame >= late else np.zeros((48, 64), bool)
                save(root / f"sav_val/Annotations_6fps/{video}/{thing:03d}/{frame:05d}.png", 255 * mask)
    (root / "sav_val/sav_val.txt").write_text("a\nb\n")


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """The script in this process: (exit code, what it printed)."""
    model = tiny_clip_model()
    (tmp_path / "model").mkdir()
    save_file(model.sam.state_dict(), tmp_path / "model/model.safetensors")
    model.config.save_pretrained(tmp_path / "model")

    def run(*arguments, rank=0, world=1):
        path = str(ROOT / "scripts/vos_inference.py")
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setattr(
            sys, "argv", [path, "--sam2_checkpoint", str(tmp_path / "model"), "--device", "cpu", *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        return end.value.code, capsys.readouterr()

    return run


def test_sav_shared_by_two_processes_resumed_and_scored_as_the_benchmark_scores_it(script, tmp_path):
    write_sav(tmp_path, "a")
    write_sav(tmp_path, "b", late=4)
    truth, out = tmp_path / "sav_val/Annotations_6fps", tmp_path / "out"
    command = ["--base_video_dir", tmp_path / "sav_val/JPEGImages_24fps", "--input_mask_dir", truth]
    command += ["--output_mask_dir", out, "--per_obj_png_file", "--track_object_appearing_later_in_video"]
    command += ["--truth_dir", truth]
    save(out / ".a.partial/000/00000.png", np.ones((48, 64)))  # of a process that was killed
    code, said = script(*command, rank=0, world=2)
    assert code == 0 and "a: 13 frames" in said.out and "b:" not in said.out and not (out / "scores.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("*.png")}
    code, said = script(*command, rank=1, world=2)
    assert code == 0 and "b: 13 frames" in said.out and "a: 13" not in said.out
    assert finished == {path: path.stat().st_mtime_ns for path in (out / "a").rglob("*.png")}
    assert not list(out.glob(".*")) and len(finished) == 2 * 13
    found = json.loads((out / "scores.json").read_text())
    benchmark = get_benchmark("sav_val")
    items, rejects = load_items(benchmark, str(tmp_path), Settings())
    assert not rejects and (found["videos"], found["objects"], found["convention"]) == (2, 4, "sa_v")
    answers = []
    for item in items:
        name = item.sample.id
        files = [sorted((out / name / f"{thing:03d}").iterdir()) for thing in range(2)]
        answer = Answer("", [[encode(read_ids(file) > 0) for file in of_thing] for of_thing in files])
        answers.append(answer)
        answer.figures = benchmark.task.score(item, answer)
    wanted = benchmark.task.summarize(items, answers)
    assert found["J&F"] == pytest.approx(wanted["J&F"]) and found["J"] == pytest.approx(wanted["J"])


@pytest.mark.parametrize("convention", ["sa_v", "davis"])
def test_true_masks_score_100_and_moved_ones_less(video, tmp_path, convention):
    truth = MaskFolder(video[1])
    assert summarize(score_folder(truth, truth, convention), convention)["J&F"] == pytest.approx(100)
    for path in video[1].iterdir():
        save(tmp_path / "moved" / path.name, np.roll(read_ids(path), 6, 1))
    moved = MaskFolder(tmp_path / "moved")
    scores = score_folder(truth, moved, convention)
    assert len(scores) == 2 and all(len(score.j) == 3 for score in scores)  # the first and last frame do not count
    assert 20 < summarize(scores, convention)["J&F"] < 80
    (tmp_path / "moved/00003.png").unlink()
    with pytest.raises(ValueError, match="moved: 1 frames have no masks, the first is 3"):
        score_folder(truth, MaskFolder(tmp_path / "moved"), convention)
    save(tmp_path / "moved/00003.png", np.ones((48, 63)))
    with pytest.raises(ValueError, match=r"frame 3: expected masks of \(48, 64\) \(H, W\), got \(48, 63\)"):
        score_folder(truth, MaskFolder(tmp_path / "moved"), convention)


def test_a_convention_that_is_none(video):
    with pytest.raises(ValueError, match="convention: expected one of .*'davis', 'sa_v'.*got 'coco'"):
        score_folder(MaskFolder(video[1]), MaskFolder(video[1]), "coco")


@pytest.mark.slow
def test_the_script_goes_on_and_lists_what_it_could_not_do(tmp_path):
    write_davis(tmp_path, ["a", "b", "c"], frames=3)
    (tmp_path / "Annotations/480p/b/00000.png").unlink()
    model = tiny_clip_model()
    save_file(model.sam.state_dict(), tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    finished = tmp_path / "out/a"
    finished.mkdir(parents=True)
    command = [ROOT / "scripts/vos_inference.py", "--sam2_checkpoint", tmp_path, "--device", "cpu"]
    command += ["--base_video_dir", tmp_path / "JPEGImages/480p", "--output_mask_dir", tmp_path / "out"]
    done = forks.run([*command, "--input_mask_dir", tmp_path / "Annotations/480p"])
    assert done.returncode == 1 and "b: objects [1, 2] are not on the first frame" in done.stderr
    assert list(finished.iterdir()) == [] and len(list((tmp_path / "out/c").iterdir())) == 3
