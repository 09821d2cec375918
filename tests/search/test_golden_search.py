"""The search against the recorded traces of V*'s program: same crops in the same order, same scores, same result.

Run: pytest tests/search/test_golden_search.py
"""

from functools import cache

import numpy as np
import pytest
from golden import system
from searched import Blank, FakeModel

from sa2va_hf.search import SearchSettings, search
from sa2va_hf.search.patches import Crop, Heat
from sa2va_hf.search.phrases import place_text

NAMES = (
    "root_hit root_several_instances found_level_2 found_level_3 found_level_4 competing_heat context_then_target_cue "
    "context_cue_everywhere answer_forms nothing_zero_heat not_found fallback_above_low tall wide very_elongated "
    "ratio_exactly_2 ratio_exactly_half root_is_leaf smallest_size_224 exactly_at_thresholds just_above_thresholds "
    "several_instances_deeper constant_strong_heat some_patches_without_rows no_rows_anywhere all_scores_zero "
    "confidence_high_0.4 confidence_high_0.7 compare_in_float32 other_cue_thresholds full_exploration_0 "
    "full_exploration_1 full_exploration_2 found_level_5_after_long_search"
).split()
TIED = "order_with_first_in_first_out_ties"


@pytest.fixture(scope="module")
def traces(shared_data):
    return {one["name"]: one for one in system(shared_data, "H_search.json")["scenarios"]}


@pytest.fixture(scope="module")
def found_in(traces):
    """name -> the result of a search, made once."""
    return cache(lambda name: run(traces[name]))


@pytest.fixture(scope="module")
def parts(shared_data):
    return system(shared_data, "H_parts.json")


def run(trace):
    parameters = {name: value for name, value in trace["params"].items() if name != "smallest_size"}
    settings = SearchSettings.reference(**parameters)
    phrases = {visit["answer"]: visit["phrase"] for visit in trace["visits"] if "phrase" in visit}
    model = FakeModel(trace["fake_model"], trace["image"], trace["target"])
    picture = Blank(tuple(trace["image"]))
    return search(picture, trace["target"], model, settings, phrase_of=lambda answer, _: phrases[answer])


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_every_trace_is_compared(traces):
    assert list(traces) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_same_crops_in_the_same_order(traces, found_in, name):
    trace = traces[name]
    found = found_in(name)
    crops = [visit.crop.xywh for visit in found.visits]
    if TIED in trace:  # equal priorities come out of the original's heap in no order that is defined
        assert crops == trace[TIED]["bboxes"] and found.path_length == trace[TIED]["path_length"]
        return
    assert crops == [visit["bbox"] for visit in trace["visits"]]
    for ours, theirs in zip(found.visits, trace["visits"], strict=True):
        assert (ours.level, ours.parent, ours.leaf, ours.candidates) == (
            theirs["level"],
            theirs["parent"],
            theirs["leaf"] if theirs["outcome"] != "stop" else ours.leaf,
            theirs["rows"],
        )
        assert ours.heat == pytest.approx(theirs["heat_max"], rel=1e-6)
        if theirs["score"] is not None:
            assert ours.priority == pytest.approx(theirs["score"], rel=2e-6, abs=1e-12)
        if theirs["rows"]:
            assert ours.best == theirs["top_row"] and ours.score == pytest.approx(theirs["top_score"], abs=1e-6)
        assert ours.hit == (theirs["outcome"] == "stop")
        if "threshold" in theirs:
            assert ours.threshold == theirs["threshold"] and ours.cue == theirs["cue"]
            assert ours.phrase == theirs.get("phrase")
    assert [[what, crop.xywh] for what, crop, _ in found.queue] == [entry[:2] for entry in trace["queue"]]
    for (*_, ours), (*_, theirs) in zip(found.queue, trace["queue"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-12)
    assert list(found.calls.values()) == [trace["calls"][kind] for kind in ("detection", "vqa", "segmentation")]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_result(traces, found_in, name):
    trace, wanted = traces[name], traces[name]["result"]
    found = found_in(name)
    if "exception" in wanted:  # no row anywhere, or all scores 0: nothing is found
        assert not found.found and found.box is None and found.ended == "exhausted" and not found.near_misses
        return
    assert found.found == wanted["success"]
    if TIED not in trace:
        assert found.path_length == wanted["path_length"] and len(found.visits) == wanted["visited"]
    if not wanted["success"]:  # the original gives its best box all the same
        assert found.box is None and found.instances == []
        (best, *_) = found.near_misses
        assert xywh(best.box) == pytest.approx(wanted["box_in_image_xywh"], abs=2e-3) or TIED in trace
        assert best.score == pytest.approx(wanted["confidence"], abs=1e-6)
        return
    assert xywh(found.box) == pytest.approx(wanted["box_in_image_xywh"], abs=2e-3)
    assert found.score == pytest.approx(wanted["confidence"], abs=1e-6)
    if wanted["all_boxes_in_image_xywh"]:
        boxes = [xywh(one.box) for one in found.instances]
        np.testing.assert_allclose(boxes, wanted["all_boxes_in_image_xywh"], rtol=0, atol=2e-3)
    else:  # the original has no box in its list although it has found the target
        assert found.box in [one.box for one in found.instances]


def test_every_split(parts):
    for case in parts["splits"]:
        assert [part.xywh for part in Crop(*case["bbox"]).parts()] == case["sub_patches"]


def test_shares_of_heat(parts):
    for case in parts["shares"]:
        heat = Heat(np.array(case["heat"], np.float32), Crop(*case["bbox"]))
        for key, wanted in (
            ("sub_patches", "share_normalized"), ("last_sub_patch_split", "share_in_last_sub_patch_split")
        ):  # fmt: skip
            if case.get(key):
                shares = [heat.share(Crop(*bbox)) for bbox in case[key]]
                np.testing.assert_allclose(shares, case[wanted], rtol=2e-6, atol=1e-9)


def test_the_text_that_names_a_place(parts):
    """Up to the mention of the target, which the original cuts at and this does not (see `cue_phrase`)."""
    for case in parts["phrases"]:
        if case["target"] not in place_text(case["answer"]):
            assert place_text(case["answer"]) == case["text_to_chunk"].strip()


def test_more_crops_than_python_recurses(parts):
    size = parts["recursion"]["image"]
    flat = FakeModel({"target_heat": [{"const": 1.0}]}, size, "cup")
    settings = SearchSettings.reference(minimum_size=16, minimum_size_scale=1000.0, contextual_cue=False)
    found = search(Blank(tuple(size)), "cup", flat, settings)
    assert len(found.visits) == 1365 and not found.found  # the original ends with a RecursionError after 989
