"""Tubes of boxes: when and where, against a slow implementation; and from the frames that were read to all of them.

Run: pytest tests/evaluation/test_tubes.py
"""

import numpy as np
import pytest

from sa2va_hf.data.schema import Expression, Object, Sample
from sa2va_hf.evaluation.items import Answer, Settings
from sa2va_hf.evaluation.tubes import SpatioTemporal, TubeScores, tube_of
from sa2va_hf.prediction import Prediction

NAN, ABSENT = [np.nan] * 4, (0.0, 0.0, 0.0, 0.0)
TASK = SpatioTemporal()


def random_tube(rng, frames, some=True):
    """Boxes of whole pixels on a span of frames."""
    start, end = sorted(rng.integers(0, frames + 1, 2).tolist())
    found = {}
    for frame in range(start, max(end, start + some)):
        x, y, width, height = rng.integers(0, 6, 4).tolist()
        found[min(frame, frames - 1)] = (x, y, x + width + 1, y + height + 1)
    return found


def slow_scores(said, true):
    """tIoU, vIoU, sIoU of boxes of whole pixels by frame, with sets of pixels."""

    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    union, both = set(said) | set(true), set(said) & set(true)
    total = sum(
        len(pixels(said[frame]) & pixels(true[frame])) / len(pixels(said[frame]) | pixels(true[frame]))
        for frame in both
    )
    return len(both) / len(union), total / len(union), total / len(true)


def array(tube, frames):
    return np.array([tube.get(frame, NAN) for frame in range(frames)], dtype=float)


def test_scores_are_those_of_sets_of_frames_and_pixels():
    rng, scores, expected = np.random.default_rng(0), TubeScores(), []
    for _ in range(40):
        frames = int(rng.integers(1, 9))
        said, true = random_tube(rng, frames, some=False), random_tube(rng, frames)
        expected.append(slow_scores(said, true))
        assert scores.add(array(said, frames), array(true, frames)) == pytest.approx(expected[-1])
    volume = [one[1] for one in expected]
    wanted = dict(zip(("m_tIoU", "m_vIoU", "m_sIoU"), np.mean(expected, axis=0), strict=True))
    wanted |= {f"vIoU@{least}": np.mean([one > least for one in volume]) for least in (0.3, 0.5)}
    halves = TubeScores(), TubeScores()
    halves[0]._rows, halves[1]._rows = scores._rows[:7], scores._rows[7:]
    halves[0].merge(halves[1])
    assert scores.result() == pytest.approx(wanted) == halves[0].result() and len(halves[0]) == 40


def test_a_volume_of_exactly_the_threshold_is_a_miss():
    scores = TubeScores()
    scores.add(np.array([[0, 0, 4, 4], NAN], float), np.array([[0, 0, 4, 4], [0, 0, 4, 4]], float))
    assert scores.result() == {"m_tIoU": 0.5, "m_vIoU": 0.5, "m_sIoU": 0.5, "vIoU@0.3": 1.0, "vIoU@0.5": 0.0}
    with pytest.raises(ValueError, match="with a box on one of 1 frames, got none"):
        scores.add(np.array([[0, 0, 4, 4]], float), np.array([NAN]))
    with pytest.raises(ValueError, match="expected at least one value"):
        TubeScores().result()


@pytest.mark.parametrize(
    ("read", "left"),  # x0 by frame that was read (None: no box there), and of each frame of the clip
    [
        ({0: 0, 4: 8, 8: None}, [0, 2, 4, 6, 8, 8, 8, None, None]),  # frame 6 is as near to 4 as to 8
        ({0: None, 4: 8, 8: 4}, [None, None, None, 8, 8, 7, 6, 5, 4]),
        ({0: 0, 3: None, 6: 6}, [0, 1, 2, 3, 4, 5, 6, 6, 6]),  # no hole, and nothing was read after it
        ({2: None, 3: None}, [None] * 9),
        ({}, [None] * 9),
    ],
)
def test_frames_that_were_not_read_are_as_the_nearest_one(read, left):
    boxes = {frame: [] if x is None else [[x, 0, x + 5, 5], [90, 90, 99, 99]] for frame, x in read.items()}
    expected = [NAN if x is None else [x, 0, x + 5, 5] for x in left]
    np.testing.assert_allclose(tube_of(boxes, 9), expected)
    with pytest.raises(ValueError, match="expected boxes on frames 0 to 4"):
        tube_of({5: []}, 5)


def asked(*texts, targets=(0,)):
    track = [ABSENT, ABSENT, (0.0, 0.0, 8.0, 8.0), (2.0, 0.0, 10.0, 8.0), (4.0, 0.0, 12.0, 8.0), ABSENT]
    sample = Sample("s", "referring", 40, 20, frames=["x"] * 6, objects=[Object([None] * 6, track)])
    sample.expressions = [Expression(text, list(targets), kind) for text, kind in texts]
    return list(TASK.items(sample, Settings()))


def test_every_frame_counts_also_those_between_the_frames_that_are_read():
    he, who = asked(("he runs", "declarative"), ("who runs?", "interrogative"))
    right = Answer("", more={"boxes": {"0": [], "2": [[0, 0, 8, 8]], "4": [[4, 0, 12, 8]], "5": []}, "problems": []})
    assert TASK.score(he, right) == {"score": 1.0, "tIoU": 1.0, "sIoU": 1.0, "problems": 0}
    early = Answer("", more={"boxes": {"0": [[0, 0, 8, 8]], "5": []}, "problems": ["?"]})
    assert TASK.score(who, early)["tIoU"] == 0.2  # frames 0 to 2 against 2 to 4
    found = TASK.summarize([he, who], [right, early])
    assert (found["m_vIoU"], found["m_tIoU"], found["read"]) == pytest.approx((60.0, 60.0, 50.0))
    assert {kind: one["m_vIoU"] for kind, one in found["by_kind"].items()} == pytest.approx(
        {"declarative": 100.0, "interrogative": 20.0}
    )
    with pytest.raises(ValueError, match="s/0: expected a sentence about one object, got 0"):
        asked(("a ghost", ""), targets=())


@pytest.mark.parametrize(("answer_with", "frames"), [(None, [0, 5]), ("boxes_of_masks", range(6))])
def test_boxes_that_are_written_are_of_the_frames_read_and_those_of_masks_of_all(monkeypatch, answer_with, frames):
    class Predictor:
        def locate(self, text, **more):
            return self(text)

        def __call__(self, text, **more):
            self.asked = text
            return [Prediction("", None, np.ones((1, 6, 4), np.float32), None, None, None) for _ in text]

    monkeypatch.setattr("sa2va_hf.evaluation.locating.Frames", lambda sample: ["frame"] * 6)
    predictor, items = Predictor(), asked(("he runs", ""), ("who runs?", ""))
    found, _ = TASK.ask(predictor, items, Settings(answer_with=answer_with, num_frames=2))
    assert list(found.more["boxes"]) == [str(index) for index in frames]
    wanted = ["Please segment he runs.", "<image>\n who runs? Please respond with a segmentation mask."]
    assert predictor.asked == (["he runs", "who runs?"] if answer_with is None else wanted)
