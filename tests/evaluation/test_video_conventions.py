"""Which frames and objects count: small label maps whose scores can be said aloud.

Run: pytest tests/evaluation/test_video_conventions.py
"""

import itertools

import numpy as np
import pytest

from sa2va_hf.evaluation import video_conventions as video
from sa2va_hf.evaluation.assignment import assign, greedy


def clip(*frames):
    """Label maps (4, 6) from "12": the left half is object 1, the right half object 2; 0 is background, v void."""
    return [
        np.repeat([[video.VOID if c == "v" else int(c) for c in frame]], 4, axis=0).repeat(3, axis=1)
        for frame in frames
    ]


def test_davis_leaves_out_the_first_and_the_last_frame():
    truth = clip("12", "12", "12", "12")
    scores = video.davis(clip("00", "12", "10", "00"), truth)
    assert [one.j.tolist() for one in scores.values()] == [[1.0, 1.0], [1.0, 0.0]]


def test_davis_counts_the_objects_of_the_first_frame_and_a_missing_id_is_right():
    scores = video.davis(clip("20", "20", "20"), clip("20", "20", "20"))
    assert {number: one.j.tolist() for number, one in scores.items()} == {1: [1.0], 2: [1.0]}
    with pytest.raises(ValueError, match="id 2, but the first true frame has 1 objects"):
        video.davis(clip("10", "12", "10"), clip("10", "12", "10"))


def test_unsupervised_proposals_are_matched_and_void_is_nobodys():
    truth = clip("12", "1v", "12")
    scores = video.davis_unsupervised(clip("21", "21", "23"), truth)
    assert scores[1].j.tolist() == [1.0, 1.0, 0.0 + 1.0]  # proposal 2
    assert scores[2].j.tolist() == [1.0, 1.0, 0.0]  # proposal 1; on frame 1 all of it is void
    one = video.davis_unsupervised(clip("10", "10"), clip("12", "12"))
    assert (one[1].j.mean(), one[2].j.mean()) == (1.0, 0.0)


def test_sa_v_counts_an_object_from_where_it_is_first_seen():
    truth = clip("10", "10", "12", "12")
    scores = video.sa_v(clip("10", "10", "10", "12"), truth, skip_first_and_last=False)
    assert {number: one.j.tolist() for number, one in scores.items()} == {1: [1, 1, 1, 1], 2: [0, 1]}
    drawn_early = video.sa_v(clip("10", "12", "12", "12"), truth, skip_first_and_last=False)
    assert drawn_early[2].j.tolist() == [0, 1, 1]
    assert set(video.sa_v(clip("13", "13", "13", "13"), clip("10", "10", "10", "10"))) == {1}


def test_sa_v_takes_objects_that_overlap():
    mask = clip("10")[0] == 1
    frames = [{1: mask, 2: mask}] * 3
    assert {number: one.j.tolist() for number, one in video.sa_v(frames, frames).items()} == {1: [1.0], 2: [1.0]}
    missing = video.sa_v([{1: mask}] * 3, frames)
    assert (missing[1].j.tolist(), missing[2].j.tolist()) == ([1.0], [0.0])


def test_an_object_without_pixels_is_not_seen():
    """An object of SA-V may come late: frames before it do not count, whether it has no mask there or an empty one."""
    mask = clip("10")[0] == 1
    frames = [{1: mask & late} for late in (False, False, True, True, True)]
    drawn = [{1: mask & seen} for seen in (False, False, True, False, True)]
    assert video.sa_v(drawn, frames)[1].j.tolist() == [1.0, 0.0]
    assert video.sa_v([{}, {}, {1: mask}, {}, {1: mask}], [{}, {}, *frames[2:]])[1].j.tolist() == [1.0, 0.0]
    assert video.sa_v([{1: mask}] * 3, [{1: mask & False}] * 3) == {}  # only predicted


def test_clips_without_objects_have_no_scores_and_their_sum_is_an_error():
    empty = clip("00", "00", "00")
    assert video.davis(empty, empty) == video.davis_unsupervised(empty, empty) == video.sa_v(empty, empty) == {}
    for summary in (video.summarize_davis, video.summarize_sa_v, video.summarize_mevis):
        with pytest.raises(ValueError, match="expected at least one score"):
            summary([])


def test_frames_must_match():
    truth = clip("10", "10", "10")
    with pytest.raises(ValueError, match="expected as many predicted as true frames, got only 2 predicted ones"):
        video.davis(truth[:2], truth)
    with pytest.raises(ValueError, match=r"frame 1: expected a prediction of \(4, 5\) \(H, W\), got \(4, 6\)"):
        video.sa_v(truth, [truth[0], truth[1][:, :5], truth[2]])
    for convention in (video.davis, video.sa_v):
        with pytest.raises(ValueError, match="at least three"):
            convention(truth[:2], truth[:2])
    with pytest.raises(ValueError, match="no frames"):
        video.sa_v([], [], skip_first_and_last=False)


def test_frames_of_an_expression_must_match():
    mask = clip("10")[0] == 1
    drawn, parts, around = [mask] * 2, [mask[None]] * 2, [mask] * 2
    assert set(video.expression(drawn, parts)) == set("JFA")
    with pytest.raises(ValueError, match="frame 1: missing in foreground; expected the same number"):
        video.expression(drawn, parts, around[:1])
    with pytest.raises(ValueError, match="frame 2: missing in predicted, foreground"):
        video.expression(drawn, [*parts, mask[None]], around)
    with pytest.raises(ValueError, match=r"frame 0: expected one size .* 'foreground': \(4, 5\)"):
        video.expression(drawn, parts, [mask[:, :5]] * 2)
    with pytest.raises(ValueError, match="no frames"):
        video.expression([], [])


def test_long_and_short_phrases_weigh_alike_however_many_there_are():
    rows = [
        (kind, {name: np.array([value]) for name in "JFA"}) for kind, value in (("long", 1), ("long", 1), ("short", 0))
    ]
    found = video.summarize_ref_sav(rows)
    assert found["long"] == {"J&F": 100, "J": 100, "F": 100, "A": 100}
    assert found["overall"] == {"J&F": 50, "J": 50, "F": 50, "A": 50}


def test_expressions_are_rounded_as_numpy_does():
    """The published script rounds numpy's numbers: 10.025 becomes 10.02 there, and 10.03 by Python's own round."""
    halfway = {name: np.array([0.10025]) for name in "JFAR"}
    assert video.summarize_revos([("referring", halfway)])["referring"]["J"] == 10.02


def test_revos_kinds():
    def scored(value):
        return {name: np.array([value]) for name in "JFAR"}

    found = video.summarize_revos(
        [
            ("referring", scored(0.12344)),
            ("referring", scored(0.5)),
            ("reasoning", scored(1.0)),
            ("no_target", scored(0)),
        ]
    )
    assert found["referring"]["J"] == (12.34 + 50) / 2  # rounded first
    assert found["overall"]["J&F"] == (31.17 + 100) / 2
    assert "overall" not in video.summarize_revos([("referring", scored(1.0))])


def test_the_matching_is_the_best_one():
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = int(rng.integers(1, 5))
        worth = rng.normal(size=(rows, int(rng.integers(rows, 6)))).round(1)
        best = max(worth[range(rows), order].sum() for order in itertools.permutations(range(worth.shape[1]), rows))
        places = assign(worth)
        assert len(set(places)) == rows
        assert worth[range(rows), places].sum() == pytest.approx(best)


def test_the_greedy_matching_stops_at_the_least_worth():
    worth = np.array([[0.9, 0.8], [0.7, 0.6], [0.1, 0.2]])
    assert greedy(worth, 0.5) == [(0, 0), (1, 1)]
    assert greedy(worth, 0.65) == [(0, 0)]
    assert greedy(np.zeros((0, 2)), 0.5) == []
