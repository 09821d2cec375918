"""From folders of frames and masks to folders of masks, and the script that does it for many videos.

Run: pytest tests/test_vos_inference.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import tiny_clip_model, write_davis
from PIL import Image
from safetensors.torch import save_file

from sa2va_hf.masks import read_ids
from sa2va_hf.vos_inference import VosOptions, choose_prompts, davis_palette, follow_video, read_video

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def video(tmp_path):
    write_davis(tmp_path, ["v"], frames=5)
    return tmp_path / "JPEGImages/480p/v", tmp_path / "Annotations/480p/v"


@pytest.fixture(scope="module")
def sam2():
    return tiny_clip_model().sam2.eval()


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

    assert seen() == {1: [0], 2: [0]}
    assert seen(later_objects=True) == {1: [0], 2: [0], 3: [2]}
    assert seen(later_objects=True, all_masks=True) == {1: [*range(5)], 2: [*range(5)], 3: [2, 3, 4]}
    with pytest.raises(ValueError, match=r"objects \[3\] are not on the first frame.*appearing_later"):
        seen(all_masks=True)


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


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda masks: save(masks / "00009.png", np.ones((48, 64))), r"masks of frames \[9\]"),
        (lambda masks: save(masks / "00000.png", np.ones((48, 63))), "mask of object 1 is 63 x 48, the frames are 64"),
        (lambda masks: save(masks / "00000.png", np.zeros((48, 64))), "no mask on the first frame"),
        (lambda masks: save(masks / "cat/00000.png", np.ones((48, 64))), "must have its number as name"),
        (lambda masks: Image.new("RGB", (64, 48), "red").save(masks / "00000.png"), "00000.png is a colour picture"),
    ],
)
def test_files_that_do_not_fit(video, sam2, tmp_path, spoil, words):
    spoil(video[1])
    with pytest.raises(ValueError, match=words):
        follow_video(sam2, read_video(*video), tmp_path / "out/v", VosOptions(), "cpu")
    assert not (tmp_path / "out/v").exists()


@pytest.mark.slow
def test_the_script_goes_on_and_lists_what_it_could_not_do(tmp_path):
    write_davis(tmp_path, ["a", "b", "c"], frames=3)
    (tmp_path / "Annotations/480p/b/00000.png").unlink()
    model = tiny_clip_model()
    save_file(model.sam2.state_dict(), tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    finished = tmp_path / "out/a"
    finished.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "scripts/vos_inference.py"), "--sam2_checkpoint", str(tmp_path)]
    command += ["--base_video_dir", str(tmp_path / "JPEGImages/480p"), "--output_mask_dir", str(tmp_path / "out")]
    command += ["--input_mask_dir", str(tmp_path / "Annotations/480p"), "--device", "cpu"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "b: there is no mask on the first frame" in done.stderr
    assert list(finished.iterdir()) == [] and len(list((tmp_path / "out/c").iterdir())) == 3
