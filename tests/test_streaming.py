"""A stream is the prediction of the whole clip, a frame at a time: the same files, and nothing kept.

Run: pytest tests/test_streaming.py
"""

import gc
import json
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import loud, tiny_model, tiny_processor

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.prediction import History

ANSWER = "Sure, it is [SEG]."


class DrawnClip(Sequence):
    """Frames that are drawn when they are asked for; `alive` has those that somebody still holds."""

    def __init__(self, count: int):
        self.count, self.alive = count, weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < self.count:
            raise IndexError(number)
        frame = Image.new("RGB", (24, 16), (number % 256, 90, 30))
        self.alive[id(frame)] = frame
        return frame


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    return Sa2VAPredictor(loud(tiny_model()), tiny_processor())


@pytest.mark.parametrize(("form", "files"), [("png", "masks/*.png"), ("rle", "masks.json"), ("coco", "coco.json")])
def test_a_stream_writes_the_files_of_the_whole_clip(predictor, tmp_path, form, files):
    asked = {"video": DrawnClip(5), "text": "the dog?", "answer": ANSWER, "num_frames": 2}
    whole = predictor.segment(**asked)
    whole.save(tmp_path / "whole", form, name=7, as_frames=True)
    stream = predictor.stream(**asked)
    assert stream.text == ANSWER
    frames, scores = stream.save(tmp_path / "stream", form, name=7, as_frames=True)
    assert frames == 5
    np.testing.assert_allclose(scores, whole.scores, rtol=1e-5)
    written = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert written == sorted(path.relative_to(tmp_path / "stream") for path in (tmp_path / "stream").rglob("*.*"))
    assert list((tmp_path / "whole").glob(files)) and len(list((tmp_path / "whole").glob("overlay/*.png"))) == 5
    for path in written:
        one, other = (tmp_path / name / path for name in ("whole", "stream"))
        if path.suffix == ".json":
            assert without_scores(one) == without_scores(other)
        else:
            assert one.read_bytes() == other.read_bytes(), path


def without_scores(file) -> list[dict]:
    content = json.loads(file.read_text())
    entries = content if isinstance(content, list) else [content]
    return [{name: value for name, value in entry.items() if not name.startswith("score")} for entry in entries]


def test_without_a_mask_the_clip_is_written_as_it_is(predictor, tmp_path):
    stream = predictor.stream(video=DrawnClip(3), text="the dog?", answer="There is none.")
    assert stream.save(tmp_path, as_frames=True)[0] == 0
    assert len(list(tmp_path.glob("overlay/*.png"))) == 3 and not list(tmp_path.glob("masks/*"))


def test_a_stream_knows_the_turns_before_it_and_needs_a_clip(predictor):
    asked = {"video": DrawnClip(3), "text": "and now?", "answer": ANSWER, "num_frames": 2}
    asked["history"] = History(turns=(("the dog?", "There is none."),))
    whole = predictor.segment(**asked)
    for index, masks, _ in predictor.stream(**asked):
        assert (masks == whole.frame(index)).all()
    with pytest.raises(ValueError, match="video: expected a clip"):
        predictor.stream(video=None, text="the dog?", answer=ANSWER)


def live_tensors() -> int:
    gc.collect()
    return sum(one.untyped_storage().nbytes() for one in gc.get_objects() if type(one) is torch.Tensor)


@pytest.mark.parametrize(
    "frames", [pytest.param(300, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.parity)]
)
def test_memory_is_flat_however_long_the_clip(predictor, frames):
    """The pointers of SAM 2 reach back 15 frames, and more of them are forgotten: from then on nothing grows."""
    clip, held, seen = DrawnClip(frames), [], 0
    for index, masks, _ in predictor.stream(video=clip, text="the dog?", answer=ANSWER):
        assert index == seen and masks.shape == (1, 16, 24)
        seen += 1
        if index in (100, frames - 100):  # of the key frames, fewer are left to come
            held.append((live_tensors(), len(clip.alive)))
    assert seen == frames
    (early, before), (late, after) = held
    assert late <= early and after <= before <= 8
