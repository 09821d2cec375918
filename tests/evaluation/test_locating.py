"""Boxes of expressions: which frames count, what is grouped, and by which rule several boxes are scored.

Run: pytest tests/evaluation/test_locating.py
"""

import numpy as np
import pytest

from sa2va_hf.data.schema import Expression, Object, Sample
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, answered_with
from sa2va_hf.evaluation.items import Answer, Settings, true_boxes
from sa2va_hf.evaluation.locating import Locating, frames_read
from sa2va_hf.prediction import Prediction

BOX, OTHER, ABSENT = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 0.0, 0.0, 0.0)
TASK = Locating()


def sample(*expressions, frames=1, boxes=(BOX, OTHER), annotated=None):
    annotated = list(range(frames)) if annotated is None else annotated
    objects = [Object([None] * len(annotated), [box] * len(annotated)) for box in boxes]
    return Sample(
        "s", "referring", 40, 20, frames=["x"] * frames, annotated=annotated, objects=objects,
        expressions=list(expressions),
    )  # fmt: skip


def items(*expressions, **more):
    return list(TASK.items(sample(*expressions, **more), Settings()))


def answer(*boxes_per_frame):
    return Answer(
        "", more={"boxes": {str(n): [list(b) for b in boxes] for n, boxes in boxes_per_frame}, "problems": []}
    )


def test_figures_of_all_by_kind_and_by_ordinal():
    asked = items(
        Expression("the first object from the left", [0], "absolute"),
        Expression("the second object from the left", [1], "absolute"),
        Expression("the second cat", [1], ""),
    )
    found = TASK.summarize(asked, [answer((0, [BOX])), answer((0, [BOX])), answer((0, [OTHER]))])
    assert found["expressions"] == 3 and found["Acc@0.5"] == pytest.approx(200 / 3)
    assert {name: group["Acc@0.5"] for name, group in found["by_kind"].items()} == {
        "absolute": 50.0, "ordinal 01": 100.0, "ordinal 02": 0.0,
    }  # fmt: skip


def test_of_one_object_in_a_picture_the_first_box_counts_and_elsewhere_all():
    (one,) = items(Expression("it", [0]))
    assert TASK.score(one, answer((0, [BOX, OTHER])))["score"] == 1.0
    (both,) = items(Expression("they", [0, 1]))
    assert TASK.score(both, answer((0, [OTHER, BOX])))["score"] == 1.0
    assert TASK.score(both, answer((0, [BOX])))["score"] == 0.5
    (clip,) = items(Expression("it", [0]), frames=2)
    assert TASK.score(clip, answer((0, [BOX, OTHER]), (1, [BOX])))["score"] == 0.75


def test_frames_of_which_nothing_is_known_do_not_count():
    (one,) = items(Expression("it", [0]), frames=9, annotated=[0, 4])
    assert frames_read(one.sample, Settings()) == [0, 2, 4, 6, 8]
    assert [true_boxes(one, index) for index in (0, 2, 4)] == [[BOX], None, [BOX]]
    assert TASK.score(one, answer((0, [BOX]), (2, [OTHER]), (4, [BOX])))["score"] == 1.0
    (nothing,) = items(Expression("it", [0]), frames=9, annotated=[3])
    assert TASK.score(nothing, answer((0, [BOX])))["score"] == 0.0
    assert "mIoU" not in TASK.summarize([nothing], [answer((0, [BOX]))])


def test_what_is_absent_is_scored_by_silence():
    (gone,) = items(Expression("it", [0]), boxes=(ABSENT,))
    (none,) = items(Expression("a ghost", [], "no_target"))
    for item in (gone, none):
        assert true_boxes(item, 0) == []
        assert (
            TASK.score(item, answer((0, [])))["score"] == 1.0 and TASK.score(item, answer((0, [BOX])))["score"] == 0.0
        )


class Predictor:
    """Writes one box on the first frame that it reads; its masks have another one."""

    def locate(self, text, num_frames, video=None, image=None, **more):
        self.asked, self.seen = text, video or image
        problems = ("frame 2: expected 4 numbers",)
        return [self._found(BOX, 1 if video is None else len(seen), problems) for seen in self.seen]

    def __call__(self, text, **more):
        self.asked = text
        return [self._found(OTHER, 1, ()) for _ in text]

    def _found(self, box, frames, problems):
        boxes = np.full((1, frames, 4), np.nan, np.float32)
        boxes[0, 0] = box
        return Prediction("said", None, boxes, None, None, None, problems=problems)


@pytest.fixture
def no_files(monkeypatch):
    monkeypatch.setattr("sa2va_hf.evaluation.locating.Frames", lambda sample: ["frame"] * sample.num_frames)


@pytest.mark.parametrize(
    ("answer_with", "box", "text"), [(None, BOX, "it"), ("boxes_of_masks", OTHER, "Please segment it.")]
)
def test_boxes_are_those_that_are_written_or_those_of_the_masks(no_files, answer_with, box, text):
    predictor, (item,) = Predictor(), items(Expression("it", [0]))
    (found,) = TASK.ask(predictor, [item], Settings(answer_with=answer_with))
    assert found.more["boxes"] == {"0": [list(box)]} and predictor.asked == [text]
    assert len(found.more["problems"]) == (answer_with is None)


def test_a_batch_is_asked_at_once_and_opens_a_clip_once(no_files):
    predictor, asked = Predictor(), items(Expression("it", [0]), Expression("the other", [1]), frames=3)
    found = TASK.ask(predictor, asked, Settings())
    assert predictor.asked == ["it", "the other"] and predictor.seen[0] is predictor.seen[1]
    assert [one.more["boxes"] for one in found] == [{"0": [list(BOX)], "1": [], "2": []}] * 2


def test_any_benchmark_with_expressions_can_be_answered_with_boxes():
    for name in ("refcoco_val", "revos", "shapes"):
        assert isinstance(answered_with(BENCHMARKS[name], "boxes", name).task, Locating)
        assert answered_with(BENCHMARKS[name], None, name) is BENCHMARKS[name]
    with pytest.raises(ValueError, match="--answer_with boxes: vstar_bench has no expressions"):
        answered_with(BENCHMARKS["vstar_bench"], "boxes", "vstar_bench")
    with pytest.raises(ValueError, match="boxes are not scored with --mode teacher"):
        TASK.record(Settings(mode="teacher"))
