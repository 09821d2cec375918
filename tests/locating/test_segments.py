"""Which boxes a frame's masks come from: the recorded rule, corrected, and what is refused.

Run: pytest tests/locating/test_segments.py
"""

import math

import pytest
from golden import system

from sa2va_hf.boxes import read
from sa2va_hf.locating.segments import plan_segments

BOX = (1.0, 2.0, 3.0, 4.0)


def sources(num_frames, boxes):
    """{frame: [(prompted frame, object)]} of a plan."""
    found = {}
    for segment in plan_segments(num_frames, boxes):
        for frame in segment.frames:
            assert frame not in found
            found[frame] = [(segment.prompt, number) for number in segment.objects]
    return found


def test_the_corrected_rule_of_the_original(shared_data):
    compared = 0
    for case in system(shared_data, "J_spatial_boxes.json")["propagation"]["cases"]:
        wanted = case["sources_without_the_bugs_computed_by_us"]
        if wanted is None:
            continue
        sampled = case["sampled_frames"]
        answers = read(case["answer"], *case["size"]).frames
        boxes = dict(zip(sampled, answers, strict=False))  # of frames that were read twice the last answer counts
        last = {frame: index for index, frame in enumerate(sampled)}
        found = {
            str(frame): [[last[prompt], number + 1] for prompt, number in pairs]
            for frame, pairs in sources(case["T"], boxes).items()
        }
        assert found == wanted, case["name"]
        compared += 1
    assert compared == 14


def test_an_absent_object_has_no_mask_until_it_is_back():
    boxes = {3: [BOX, None], 5: [None, BOX], 7: []}
    found = sources(9, boxes)
    assert [found[frame] for frame in (0, 3, 4)] == [[(3, 0)]] * 3
    assert found[5] == found[6] == [(5, 1)] and found[7] == found[8] == []


@pytest.mark.parametrize(
    ("num_frames", "boxes", "message"),
    [
        (4, {}, "boxes: expected boxes on at least one frame, got none"),
        (3, {0: [BOX], 5: [BOX]}, "the clip has frames 0 to 2, got boxes on frames 0, 5"),
        (3, {-1: [BOX]}, "got boxes on frames -1"),
        (3, {0: [BOX, (1.0, 2.0, 1.0, 4.0)]}, r"frame 0, object 1: expected .* got \[1.0, 2.0, 1.0, 4.0\]"),
        (3, {0: [(3.0, 2.0, 1.0, 4.0)]}, "with an area"),
        (3, {0: [(math.nan, 2.0, 3.0, 4.0)]}, "with an area"),
        (3, {0: [(1.0, 2.0, 3.0)]}, "with an area"),
        (1, dict.fromkeys(range(40), [BOX]), "18, 19 and 20 more"),
    ],
)  # fmt: skip
def test_what_is_refused(num_frames, boxes, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan_segments(num_frames, boxes)
    assert "\n" not in str(caught.value)
