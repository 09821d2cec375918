"""Turns that are answered by boxes: the text says where the objects are on the frames that are shown.

Run: pytest tests/data/dataset/test_box_turns.py
"""

import io

import datasets
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_processor

from sa2va_hf import masks
from sa2va_hf.boxes import BOX_TOKENS, read
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.dataset.box_turns import stretch
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.dataset.entries import Share
from sa2va_hf.data.prompts import box_templates
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, to_row
from sa2va_hf.model.frames import uniform_frames

WIDTH, HEIGHT = 40, 20


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "PNG")
    return buffer.getvalue()


def box_at(frame, object_number):
    """Object 0 moves to the right, one pixel a frame; object 1 stays and is absent on even frames."""
    if object_number == 0:
        return (float(frame), 2.0, frame + 8.0, 12.0)
    return (0.0, 0.0, 0.0, 0.0) if frame % 2 == 0 else (30.0, 5.0, 36.0, 15.0)


def rle_of(box):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return masks.encode(mask)


def clip(frames=9, annotated=None, with_masks=False, kind="", expressions=None):
    annotated = list(range(frames)) if annotated is None else annotated
    tracks = [[box_at(frame, number) for frame in annotated] for number in range(2)]
    things = [
        Object([rle_of(box) if with_masks else None for box in track], [None if with_masks else box for box in track])
        for track in tracks
    ]
    expressions = expressions or [
        Expression("the cat", [0], kind),
        Expression("the dog", [1]),
        Expression("pair", [0, 1]),
    ]
    return Sample(
        "c", "referring", WIDTH, HEIGHT, frames=[png()] * frames, annotated=annotated, objects=things,
        expressions=expressions,
    )  # fmt: skip


def dataset_of(*samples, form="spatial", answer="boxes", **options):
    processor = tiny_processor()
    processor.tokenizer.add_tokens(list(BOX_TOKENS), special_tokens=True)
    processor.box_form = form
    rows = datasets.Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES)
    share = Share(answer=answer)
    return Sa2VADataset([(rows, share)], processor, **({"max_length": 4096, "num_frames": 4} | options))


@pytest.mark.parametrize("form", ["spatial", "thousandths", "json"])
@pytest.mark.parametrize("with_masks", [False, True])
def test_the_text_says_where_the_objects_are_on_the_frames_that_are_shown(form, with_masks):
    dataset = dataset_of(clip(with_masks=with_masks), form=form)
    for epoch in range(6):
        plan = dataset.plan(epoch)
        assert len(plan.turns) == 3 and plan.targets == [] and len(plan.frames) == 4
        for question, answer in plan.turns:
            meant = [0, 1] if "pair" in question else [0] if "cat" in question else [1]
            found = read(answer, WIDTH, HEIGHT, frames=4)
            wanted = [[box_at(frame, who) for who in meant if box_at(frame, who)[2]] for frame in plan.frames]
            assert found.problems == () and [len(boxes) for boxes in found.frames] == [len(boxes) for boxes in wanted]
            for boxes, true in zip(found.frames, wanted, strict=True):
                np.testing.assert_allclose(np.array(boxes), np.array(true), atol=WIDTH / 1900)


def test_lengths_are_exact_and_batches_hold_no_masks():
    dataset = dataset_of(clip(), clip(frames=1))
    for epoch in range(3):
        lengths = dataset.lengths(epoch)
        items = [dataset[epoch * len(dataset) + number] for number in range(len(dataset))]
        batch = Sa2VACollator(dataset.processor, 4096, masks=False)(items)
        assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
        assert "grounding_pixel_values" not in batch and all(len(labels) == 0 for labels in batch["mask_labels"])
    assert dataset.modalities(0).tolist() == [3, 1]


def test_both_has_a_seg_beside_the_boxes():
    dataset = dataset_of(clip(with_masks=True), answer="both")
    example, plan = dataset[0], dataset.plan(0)
    assert all(answer.count("[SEG]") == 1 and "<box>" in answer for _, answer in plan.turns)
    assert example["mask_labels"].shape[:2] == (3, 4) and dataset.modalities(0).tolist() == [4]
    boxed = dataset_of(clip(), answer="both")[0]
    assert not boxed["mask_known"][boxed["mask_labels"].flatten(2).any(2)].any() and len(boxed["box_labels"])


def test_frames_are_evenly_spaced_as_inference_takes_them():
    choices, rng = np.arange(10, 50, 2), np.random.default_rng(0)
    assert stretch(choices, 5, None) == [int(choices[i]) for i in uniform_frames(20, 5)]
    taken = [stretch(choices, 5, rng) for _ in range(50)]
    assert all(set(frames) <= set(choices.tolist()) and len(set(frames)) == 5 for frames in taken)
    assert all(np.ptp(np.diff(frames)) <= 2 for frames in taken)  # one step of the choices, by rounding
    assert len({frames[0] for frames in taken}) > 5 and len({frames[-1] - frames[0] for frames in taken}) > 5
    assert stretch(choices[:3], 5, rng) == choices[:3].tolist()


def test_only_frames_of_the_window_are_shown():
    dataset = dataset_of(clip(frames=30, annotated=list(range(11, 19))))
    assert all(11 <= frame <= 18 for epoch in range(20) for frame in dataset.plan(epoch).frames)


def test_what_is_absent_or_meant_by_nothing_is_no_box():
    dataset = dataset_of(clip(expressions=[Expression("ghost", []), Expression("the dog", [1])]))
    for question, answer in dataset.plan(0).turns:
        frames = read(answer, WIDTH, HEIGHT, frames=4).frames
        if "ghost" in question:
            assert frames == [[]] * 4
    assert "<no_box>" in dict((("ghost" in q), a) for q, a in dataset.plan(0).turns)[True]


def test_a_switch_is_marked_where_another_object_is_meant():
    first = [box_at(frame, 0) if frame < 4 else (0.0,) * 4 for frame in range(8)]
    second = [(0.0,) * 4 if frame < 4 else (30.0, 5.0, 36.0, 15.0) for frame in range(8)]
    sample = clip(frames=8, expressions=[Expression("the leftmost object", [0, 1], "switch")])
    sample.objects = [Object([None] * 8, first), Object([None] * 8, second)]
    for epoch in range(20):
        plan = dataset_of(sample).plan(epoch)
        found = read(plan.turns[0][1], WIDTH, HEIGHT, frames=4)
        changes = [at for at in range(1, 4) if (plan.frames[at] >= 4) > (plan.frames[at - 1] >= 4)]
        assert list(found.switches) == changes and all(len(boxes) == 1 for boxes in found.frames)


def test_a_box_in_the_question_has_the_form_of_the_answers():
    relation = Expression("the first object to the right of the one at [67, 314, 177, 658]", [0], "relative")
    for form, written in (
        ("spatial", "<box>0.0670,0.3140,0.1770,0.6580</box>"),
        ("thousandths", "<box>[[67, 314, 177, 658]]</box>"),
        ("json", "[67, 314, 177, 658]"),
    ):
        assert written in dataset_of(clip(expressions=[relation]), form=form).plan(0).turns[0][0]


def test_long_rows_lose_turns_then_frames_and_are_never_cut():
    full = dataset_of(clip()).lengths(0)[0]
    shorter = dataset_of(clip(), max_length=int(full) - 1)
    assert len(shorter.plan(0).turns) < 3 and shorter.lengths(0)[0] < full
    one = dataset_of(clip(), max_length=full // 3)
    assert 1 <= len(one.plan(0).frames) < 4 and one.lengths(0)[0] <= full // 3
    with pytest.raises(ValueError, match="its shortest conversation has"):
        dataset_of(clip(), max_length=20)


def test_objects_that_are_nowhere_known_are_not_asked_for():
    sample = clip()
    sample.objects[1] = Object([None] * 9, [None] * 9)
    dataset = dataset_of(sample)
    assert all("cat" in question for epoch in range(5) for question, _ in dataset.plan(epoch).turns)
    evaluated = dataset_of(sample, train=False)
    assert len(evaluated) == 1 and len(evaluated.rejected) == 2
    sample.objects[0] = Object([None] * 9, [None] * 9)
    with pytest.raises(ValueError, match="on no frame it has a mask or a box of each object"):
        dataset_of(sample)


def test_evaluation_asks_as_inference_does():
    dataset = dataset_of(clip(with_masks=True), train=False, max_expressions=2)
    plans = [dataset.plan(number) for number in range(len(dataset))]
    assert [len(plan.turns) for plan in plans] == [2, 1]
    assert all(plan.frames == uniform_frames(9, 4) for plan in plans)
    assert plans[0].turns[0][0] == "Give the bounding box of the cat in every frame."


@pytest.mark.parametrize("name", [name for name in vars(box_templates) if name.endswith(("_QUESTIONS", "ANSWERS"))])
def test_pools_have_different_entries_of_their_form(name):
    pool = getattr(box_templates, name)
    assert len(set(pool)) == len(pool) >= (8 if name.endswith("QUESTIONS") else 4)
    for entry in pool:
        assert ("{boxes}" in entry) == name.endswith("ANSWERS")
        assert name.endswith("ANSWERS") or "{phrase}" in entry
        assert ("[SEG]" in entry) == (name == "BOTH_ANSWERS")
