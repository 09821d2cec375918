"""What a row becomes: chosen by (seed, epoch, number) alone, nothing lost, nothing cut, lengths exact."""

import io
import logging
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor
from torch.utils.data import DataLoader
from words import WordProcessor

from sa2va_hf import masks
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.dataset import dataset as dataset_module
from sa2va_hf.data.dataset.dataset import NO_REGIONS, Sa2VADataset
from sa2va_hf.data.dataset.entries import Share
from sa2va_hf.data.dataset.planning import Plan
from sa2va_hf.data.sampler import Sa2VASampler
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, Turn, to_row
from sa2va_hf.data.shapes.source import shapes

WIDTH, HEIGHT = 40, 30


def png(shade: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def column(number: int) -> np.ndarray:
    """Object n covers column n of the picture: its mask says who it is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, number] = True
    return mask


def rle(number: int) -> masks.RLE:
    return masks.encode(column(number))


def picture(name: str = "p", objects: int = 3, expressions: list[Expression] | None = None, **fields) -> Sample:
    """Expression "thing n" means object n."""
    things = [Object([rle(n)], [None]) for n in range(objects)]
    if expressions is None and "turns" not in fields:
        expressions = [Expression(f"thing {n}", [n]) for n in range(objects)]
    return Sample(
        name, "referring", WIDTH, HEIGHT, objects=things, expressions=expressions or [],
        **({"frames": [png()]} | fields),
    )  # fmt: skip


def clip(name: str, known: list[str], frames: int | None = None, annotated: list[int] | None = None) -> Sample:
    """One string per object: x where it has a mask, . where it has none. Frame n is a plain grey of n."""
    annotated = list(range(len(known[0]))) if annotated is None else annotated
    frames = len(known[0]) if frames is None else frames
    things = [
        Object([rle(n) if mark == "x" else None for mark in marks], [(0.0, 0.0, 1.0, 1.0)] * len(marks))
        for n, marks in enumerate(known)
    ]
    expressions = [Expression(f"thing {n}", [n]) for n in range(len(known))]
    return Sample(
        name, "referring", WIDTH, HEIGHT, frames=[png(n) for n in range(frames)], annotated=annotated, objects=things,
        expressions=expressions,
    )  # fmt: skip


def talk(name: str = "t", turns: int = 1) -> Sample:
    return Sample(name, "question", turns=[Turn(f"why {n}?", "because it is so.") for n in range(turns)])


def cache(samples: list[Sample]) -> datasets.Dataset:
    return datasets.Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES)


def dataset_of(*samples: Sample, repeats: float = 1, processor=None, **options) -> Sa2VADataset:
    return Sa2VADataset([(cache(list(samples)), repeats)], processor or WordProcessor(), **options)


def spoken(plan: Plan) -> list[int]:
    """Which of the things n the turns ask for."""
    return [int(question.split("thing ")[1].split()[0].rstrip("?.,")) for question, _ in plan.turns]


def grey_of(example) -> list[int]:
    visual = example["messages"][0]["content"][0]
    pictures = visual["video"] if visual["type"] == "video" else [visual["image"]]
    return [frame.getpixel((0, 0))[0] for frame in pictures]


# ---------------------------------------------------------------- chance


def everything() -> list[Sample]:
    return [
        picture("a", 7),
        clip("b", ["xxxxxxxx", "xx.xxxxx"]),
        talk("c", 2),
        picture("d", 0, turns=[Turn("?", "!")]),
    ]


def test_a_plan_is_a_function_of_seed_epoch_and_number():
    one, other = dataset_of(*everything(), repeats=2), dataset_of(*everything(), repeats=2)
    plans = [one.plan(index) for index in range(3 * len(one))]
    np.random.seed(7), torch.manual_seed(7)
    for index in np.random.default_rng(0).permutation(3 * len(one)).tolist():  # whatever the order of access
        again = other.plan(index)
        assert (again.sample_id, again.frames, again.turns, again.targets) == (
            plans[index].sample_id, plans[index].frames, plans[index].turns, plans[index].targets,
        )  # fmt: skip
    assert plans[0].turns != plans[8].turns and plans[0].turns != plans[4].turns  # another epoch, another repeat
    assert plans[0].turns != dataset_of(*everything(), repeats=2, seed=1).plan(0).turns


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_change_the_stream():
    """The same samples, drawn alike, for any number of workers and in every epoch."""
    dataset = dataset_of(*everything(), repeats=3)
    sampler = Sa2VASampler(dataset.lengths, dataset.modalities, batch_size=2)
    streams = []
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list)
        stream = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            stream += [(item["sample_id"], item["messages"][0]["content"][-1], grey_of(item) if len(
                item["messages"][0]["content"]) > 1 else None) for batch in loader for item in batch]  # fmt: skip
        streams.append(stream)
    assert streams[0] == streams[1]


def test_a_pickled_dataset_is_the_same():
    """Workers that are spawned get it so."""
    dataset = dataset_of(*everything())
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.plan(i).turns for i in range(8)] == [dataset.plan(i).turns for i in range(8)]


# ---------------------------------------------------------------- repeats


def test_repeats_of_several_parts():
    dataset = Sa2VADataset(
        [(cache([picture(f"p{n}") for n in range(10)]), 2.5), (cache([talk(f"t{n}") for n in range(5)]), 0.4)],
        WordProcessor(),
    )
    assert len(dataset) == 25 + 2
    for epoch in range(4):
        names = Counter(dataset.plan(epoch * len(dataset) + n).sample_id for n in range(len(dataset)))
        assert sorted(names.values()) == [1] * 2 + [2] * 5 + [3] * 5
        assert dataset.entry_indices(epoch).tolist() == [0] * 25 + [1] * 2
        assert dataset.modalities(epoch).tolist() == [2] * 25 + [0] * 2
    total = Counter(dataset.plan(n).sample_id for n in range(10 * len(dataset)))
    assert {total[f"p{n}"] for n in range(10)} == {25} and {total[f"t{n}"] for n in range(5)} == {4}


# ---------------------------------------------------------------- expressions and masks


def test_expressions_are_drawn_without_replacement_and_all_have_their_turn():
    dataset = dataset_of(picture(objects=8), max_expressions=3)
    seen, questions, answers = set(), set(), set()
    for epoch in range(40):
        plan = dataset.plan(epoch)
        things = spoken(plan)
        assert len(things) == len(set(things)) == 3
        assert plan.targets == [[thing] for thing in things]
        assert all(answer.count("[SEG]") == 1 for _, answer in plan.turns)
        seen |= set(things)
        questions |= {
            question.replace(str(thing), "n") for thing, (question, _) in zip(things, plan.turns, strict=True)
        }
        answers |= {answer for _, answer in plan.turns}
    assert seen == set(range(8))
    assert len(questions) > 5 and len(answers) > 3


def test_every_sentence_of_an_object_has_its_turn():
    """The reference chooses one sentence per object when it starts, for the whole run."""
    sentences = [Expression(f"thing 0, said {n} times", [0]) for n in range(4)]
    dataset = dataset_of(picture(objects=1, expressions=sentences), max_expressions=1)
    questions = [dataset.plan(epoch).turns[0][0] for epoch in range(40)]
    assert all(any(one.text in question for question in questions) for one in sentences)


def test_as_many_objects_as_a_byte_has_values_do_not_vanish():
    """The reference adds masks up as uint8: 256 of them on a pixel are none."""
    sample = picture(objects=0, expressions=[Expression("all things", list(range(256)))])
    sample.objects = [Object([rle(1)], [None]) for _ in range(256)]
    assert (dataset_of(sample)[0]["mask_labels"][0, 0].numpy() == column(1)).all()


def test_masks_are_the_targets_in_the_order_of_the_answers():
    dataset = dataset_of(picture(objects=6), max_expressions=4)
    for epoch in range(5):
        labels = dataset[epoch]["mask_labels"]
        assert labels.dtype == torch.bool and labels.shape == (4, 1, HEIGHT, WIDTH)
        wanted = np.stack([column(thing) for thing in spoken(dataset.plan(epoch))])
        np.testing.assert_array_equal(labels[:, 0], wanted)


def test_several_targets_are_their_union_and_no_target_has_no_seg():
    sample = picture(expressions=[Expression("thing 0 and thing 2", [0, 2]), Expression("thing 9", [])])
    dataset = dataset_of(sample)
    for epoch in range(6):
        example, plan = dataset[epoch], dataset.plan(epoch)
        text = " ".join(answer for _, answer in plan.turns)
        assert len(plan.turns) == 2 and text.count("[SEG]") == 1
        np.testing.assert_array_equal(example["mask_labels"][:, 0], [column(0) | column(2)])
        assert "ignore_labels" not in example


def test_a_row_where_nothing_matches_has_no_objects():
    example = dataset_of(picture(expressions=[Expression("ghost", [])]))[0]
    assert example["mask_labels"].shape == (0, 1, HEIGHT, WIDTH)


def test_absent_is_an_empty_mask_that_is_learnt():
    sample = picture(objects=1)
    sample.objects[0].masks[0] = masks.encode(np.zeros((HEIGHT, WIDTH), bool))
    example = dataset_of(sample)[0]
    assert example["mask_labels"].shape == (1, 1, HEIGHT, WIDTH) and not example["mask_labels"].any()
    assert "ignore_labels" not in example


def test_a_dialogue_is_kept_with_its_segs_in_order():
    turns = [
        Turn("what?", "<p> a </p> [SEG] and <p> b </p> [SEG].", [[2], [0, 1]]),
        Turn("sure?", "Yes."),
        Turn("again", "[SEG].", [[2]]),
    ]
    example = dataset_of(picture(turns=turns))[3]
    texts = [message["content"][-1]["text"] for message in example["messages"]]
    assert texts == [text for turn in turns for text in (turn.question, turn.answer)]
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"] * 3
    assert [len(message["content"]) for message in example["messages"]] == [2, 1, 1, 1, 1, 1]  # the image comes once
    np.testing.assert_array_equal(example["mask_labels"][:, 0], [column(2), column(0) | column(1), column(2)])


def test_ignored_pixels():
    example = dataset_of(picture(ignore=[rle(7)]))[0]
    np.testing.assert_array_equal(example["ignore_labels"], column(7)[None])


def test_an_object_with_only_a_box_is_asked_for_and_its_box_is_the_target():
    sample = picture(objects=3)
    sample.objects[1] = Object([None], [(10.0, 0.0, 20.0, 15.0)])
    sample.objects[2] = Object([None], [(0.0, 0.0, 0.0, 0.0)])  # known to be absent
    sample.expressions.append(Expression("both", [0, 1]))
    example, plan = dataset_of(sample)[0], dataset_of(sample).plan(0)
    targets = [tuple(meant) for meant in plan.targets]
    assert sorted(targets) == [(0,), (0, 1), (1,), (2,)]
    assert example["mask_known"][:, 0].tolist() == [meant in ((0,), (2,)) for meant in targets]
    assert "ignore_labels" not in example and not example["mask_labels"][targets.index((2,))].any()
    rows = example["box_labels"].tolist()
    box, own = [0.25, 0, 0.5, 0.5], [0, 0, 1 / WIDTH, 1]
    of = {meant: [row[2:] for row in rows if row[0] == number] for number, meant in enumerate(targets)}
    assert of[(1,)] == [box] and of[(0, 1)] == [pytest.approx(own), box] and not of[(0,)] + of[(2,)]


def test_an_object_with_neither_mask_nor_box_is_not_known():
    sample = picture(objects=2)
    sample.objects[0] = Object([None], [None])
    example, plan = dataset_of(sample)[0], dataset_of(sample).plan(0)
    assert example["mask_known"][:, 0].tolist() == [meant == [1] for meant in plan.targets]
    assert "box_labels" not in example and "ignore_labels" not in example


def test_frames_with_masks_come_before_frames_with_boxes():
    sample = clip("c", ["xx..."])
    sample.objects[0].boxes = [None, None, (1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 2.0, 2.0), None]
    assert dataset_of(sample, num_frames=4).plan(0).frames == [0, 1]
    sample.objects[0].masks = [None] * 5
    assert dataset_of(sample, num_frames=4).plan(0).frames == [2, 3]


def test_text_only():
    example = dataset_of(talk(turns=2))[0]
    assert example["mask_labels"].shape == (0, 1, 1, 1)
    assert [item["type"] for message in example["messages"] for item in message["content"]] == ["text"] * 4


def test_region_prompts_come_with_the_image():
    example = dataset_of(picture(turns=[Turn("What is region1 and region2?", "two.")], regions=[2, 0]))[0]
    content = example["messages"][0]["content"]
    assert [item["type"] for item in content] == ["image", "region", "region", "text"]
    np.testing.assert_array_equal([item["mask"] for item in content[1:3]], [column(2), column(0)])


# ---------------------------------------------------------------- clips


def test_random_frames_of_a_clip_are_rising_and_distinct():
    dataset = dataset_of(clip("c", ["x" * 9]), num_frames=4)
    seen = Counter()
    for epoch in range(60):
        frames = dataset.plan(epoch).frames
        assert frames == sorted(set(frames)) and len(frames) == 4
        seen.update(frames)
    assert set(seen) == set(range(9)) and min(seen.values()) > 10
    example = dataset[5]
    assert grey_of(example) == dataset.plan(5).frames
    assert example["mask_labels"].shape == (1, 4, HEIGHT, WIDTH)


def test_only_annotated_frames_where_all_objects_have_a_mask():
    dataset = dataset_of(clip("c", ["xx.xx", "x.xx."], frames=20, annotated=[3, 6, 9, 12, 15]), num_frames=3)
    for epoch in range(20):
        plan = dataset.plan(epoch)
        things = set(spoken(plan))
        assert things == {0, 1} and plan.frames == [3, 12]  # fewer than asked for
        example = dataset[epoch]
        assert example["mask_labels"].all(dim=2).any(dim=2).all() and "ignore_labels" not in example


def test_objects_that_are_never_seen_together_are_not_drawn_together():
    dataset = dataset_of(clip("c", ["xx...", "...xx", "....."]), num_frames=5)
    plans = [dataset.plan(epoch) for epoch in range(40)]
    found = {(tuple(spoken(plan))[:1], len(plan.turns), tuple(plan.frames)) for plan in plans}
    # the one without any mask is known by its boxes, and beside it the others are
    assert found == {((0,), 1, (0, 1)), ((1,), 1, (3, 4)), ((2,), 3, (0, 1, 2, 3, 4))}


def test_a_clip_without_masks_gives_any_frame():
    sample = clip("c", ["x"], frames=8, annotated=[2])
    sample.objects, sample.expressions = [], []
    sample.turns = [Turn("What happens?", "Little.")]
    dataset = dataset_of(sample, num_frames=3)
    assert {frame for epoch in range(30) for frame in dataset.plan(epoch).frames} == set(range(8))
    assert dataset[0]["mask_labels"].shape == (0, 3, HEIGHT, WIDTH)


def test_only_the_chosen_frames_are_opened():
    sample = clip("c", ["xx"], frames=30, annotated=[4, 20])
    sample.frames = [sample.frames[n] if n in (4, 20) else f"/nowhere/{n}.png" for n in range(30)]
    assert grey_of(dataset_of(sample, num_frames=9)[0]) == [4, 20]


# ---------------------------------------------------------------- evaluation


def test_evaluation_asks_for_every_expression_once_and_in_order():
    samples = [picture("a", 7), picture("b", 2), talk("c", 3), picture("d", 3)]
    dataset = dataset_of(*samples, train=False, max_expressions=3)
    plans = [dataset.plan(index) for index in range(len(dataset))]
    assert [(plan.sample_id, len(plan.turns)) for plan in plans] == [
        ("a", 3), ("a", 3), ("a", 1), ("b", 2), ("c", 3), ("d", 3),
    ]  # fmt: skip
    assert [spoken(plan) for plan in plans if plan.sample_id == "a"] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [dataset.plan(index + len(dataset)).turns for index in range(len(dataset))] == [
        plan.turns for plan in plans
    ]
    assert dataset.plan(1).targets == [[3], [4], [5]]


def test_how_items_are_cut_does_not_change_the_questions():
    one, many = (dataset_of(picture(objects=6), train=False, max_expressions=n) for n in (1, 6))
    assert [one.plan(n).turns[0] for n in range(6)] == many.plan(0).turns


def test_evaluation_spreads_the_frames_evenly():
    dataset = dataset_of(clip("c", ["x" * 11]), num_frames=3, train=False)
    assert dataset.plan(0).frames == [0, 5, 10]
    assert dataset_of(clip("c", ["xx"]), num_frames=3, train=False).plan(0).frames == [0, 1]
    # truncated where they do not come out even, as the frames that inference reads
    assert dataset_of(clip("c", ["x" * 8]), num_frames=5, train=False).plan(0).frames == [0, 1, 3, 5, 7]


def test_evaluation_asks_one_by_one_where_objects_are_not_annotated_together():
    dataset = dataset_of(clip("c", ["xx...", "...xx"]), num_frames=2, train=False)
    assert [(spoken(dataset.plan(n)), dataset.plan(n).frames) for n in range(2)] == [([0], [0, 1]), ([1], [3, 4])]


# ---------------------------------------------------------------- lengths


def test_drawn_turns_are_left_out_until_the_rest_fits():
    sizes = Counter()
    for limit in (1000, 40, 30):
        dataset = dataset_of(picture(objects=9), max_length=limit, max_expressions=5)
        for epoch in range(30):
            plan = dataset.plan(epoch)
            assert 1 <= len(plan.turns) <= 5 and dataset.lengths(epoch)[0] <= limit
            assert all(answer.count("[SEG]") == 1 for _, answer in plan.turns)
            sizes[limit] += len(plan.turns)
    assert sizes[1000] == 150 > sizes[40] > sizes[30] >= 30


def test_the_last_turns_of_a_dialogue_are_left_out():
    dataset = dataset_of(talk(turns=9), max_length=30)
    assert [question for question, _ in dataset.plan(0).turns] == ["why 0?", "why 1?", "why 2?"]  # 1 + 3 * (2 + 6 + 2)
    assert dataset.lengths(0).tolist() == [25]


def test_an_expression_that_fits_is_found_when_the_drawn_one_does_not():
    long = Expression("thing 0 " + "very " * 30, [0])
    dataset = dataset_of(picture(expressions=[long, Expression("thing 1", [1])]), max_length=24)
    for epoch in range(20):
        assert spoken(dataset.plan(epoch)) == [1] and dataset.lengths(epoch)[0] <= 24


def test_rows_that_cannot_fit_are_rejected_once_and_listed(caplog):
    long = picture("long", expressions=[Expression("thing " + "very " * 50, [0])])
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(picture("good"), long, talk("chat", 2), max_length=40)
    assert [reject.id for reject in dataset.rejected] == ["long"]
    assert "tokens, max_length is 40" in dataset.rejected[0].reason
    assert [record.message for record in caplog.records if "1 rows cannot be used" in record.message]
    assert {dataset.plan(index).sample_id for index in range(len(dataset))} == {"good", "chat"}


@pytest.mark.parametrize(
    ("share", "items"), [(Share(samples=30), 30), (Share(samples=3), 3), (Share(2.5), 15), (Share(), 6), (2.5, 15)]
)
def test_a_stated_share_holds_over_the_rows_that_can_be_used(share, items):
    """6 of 10 rows: `samples` is the number of items, `repeats` counts the usable rows."""
    bad = [picture(f"bad{n}", expressions=[]) for n in range(4)]
    rows = cache([picture(f"good{n}") for n in range(6)] + bad)
    dataset = Sa2VADataset([(rows, share)], WordProcessor())
    assert len(dataset) == items and len(dataset.rejected) == 4


@pytest.mark.parametrize(
    ("samples", "share", "words"),
    [
        (
            [picture("bad", expressions=[])],
            Share(samples=5),
            r"entry 2 of 2 has no row that can be used, 1 rows rej.*bad",
        ),
        ([picture("good")], Share(samples=0.2), "entry 2 of 2: its share of the epoch is less than one of its 1 rows"),
    ],
)
def test_an_entry_that_gives_nothing_is_an_error_beside_one_that_does(samples, share, words):
    with pytest.raises(ValueError, match=words):
        Sa2VADataset([(cache([picture("other")]), 1), (cache(samples), share)], WordProcessor())


def test_the_log_lists_twenty_rejects_and_counts_the_others(caplog, monkeypatch):
    samples = [picture("good"), *(picture(f"bad{n}", expressions=[]) for n in range(30))]
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(*samples)
    (message,) = [record.message for record in caplog.records if "cannot be used" in record.message]
    assert message.startswith("30 rows") and message.count("bad") == 20 and message.endswith("; and 10 more")
    assert len(dataset.rejected) == 30
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.WARNING):
        dataset_of(*samples)
    assert not caplog.records, "once, not per process"


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"num_frames": 4}, {"max_expressions": 2}, {"max_length": 60}, {"repeats": 2}]
)
def test_the_fingerprint_covers_all_that_changes_items(change, monkeypatch):
    monkeypatch.setattr(dataset_module, "processor_fingerprint", lambda processor: "words")
    rows = cache([picture("a"), clip("b", ["xxxxxx"])])

    def fingerprint(repeats=1, rows=rows, **options):
        return Sa2VADataset([(rows, repeats)], WordProcessor(), **options).fingerprint

    assert fingerprint() == fingerprint() != fingerprint(**change)
    assert fingerprint(rows=cache([picture("a")])) != fingerprint()


def test_evaluation_cuts_where_it_must_and_rejects_single_expressions(caplog):
    expressions = [Expression(f"thing {n}", [n % 3]) for n in range(6)]
    expressions.insert(2, Expression("thing 9 " + "very " * 50, [0]))
    dataset = dataset_of(picture("p", expressions=expressions), train=False, max_length=50, max_expressions=5)
    asked = [spoken(dataset.plan(index)) for index in range(len(dataset))]
    assert sorted(sum(asked, [])) == [0, 1, 2, 3, 4, 5]
    assert max(dataset.lengths(0)) <= 50
    assert [reject.id for reject in dataset.rejected] == ["p, expression 2"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("processor", "max_length"),
    [
        (tiny_processor(tile_size=224), 8192),
        (tiny_processor(tile_size=224), 400),
        (tiny_processor("qwen2_5_vl"), 8192),
        (tiny_processor("qwen3_vl"), 60),
    ],
    ids=["InternVL", "InternVL, short", "Qwen2.5-VL", "Qwen3-VL, short"],
)
def test_lengths_are_what_the_processor_makes(train, processor, max_length):
    """Over every task of the drawn world, clips, several sizes, region prompts and text, by the real processor."""
    samples = [
        *shapes(None, "train", count=24, tasks=("referring", "region_caption", "question", "grounded_caption")),
        *shapes(None, "train", count=8, clip_fraction=1.0, num_frames=4, size=64),
        picture("wide", frames=[png(size=(200, 60))], turns=[Turn("Where is this <image> from?", "There.")]),
        talk("chat", 3),
        clip("holes", ["xx.x", ".xxx"]),
    ]
    samples[-3].width, samples[-3].height, samples[-3].objects = 200, 60, []
    dataset = dataset_of(*samples, processor=processor, num_frames=3, train=train, max_length=max_length)
    collator = Sa2VACollator(processor, max_length)
    regions = 0
    for epoch in (0, 1):
        lengths = dataset.lengths(epoch)
        assert len(lengths) == len(dataset)
        for number in range(len(dataset)):
            batch = collator([dataset[epoch * len(dataset) + number]])
            assert batch["attention_mask"].sum() == lengths[number], batch["sample_ids"]
            segs = int((batch["input_ids"] == processor.seg_token_id).sum())
            assert segs == len(batch["mask_labels"][0])
            regions += "region_masks" in batch
    assert bool(regions) == processor.takes_regions
    assert processor.takes_regions == (NO_REGIONS not in {reject.reason for reject in dataset.rejected})
    assert lengths.max() > 400 or max_length < 8192 or not processor.takes_regions


def test_modalities():
    box_only = picture("box")
    box_only.objects = [Object([None], [(0.0, 0.0, 1.0, 1.0)])] * 3
    dataset = dataset_of(
        talk("text"), picture("dialogue", turns=[Turn("?", "!")]), picture("masks"), box_only,
        picture("none", expressions=[Expression("ghost", [])]), clip("clip", ["xx"]),
    )  # fmt: skip
    for epoch in (0, 1):
        assert dataset.modalities(epoch).tolist() == [0, 1, 2, 2, 1, 4]


# ---------------------------------------------------------------- errors


def test_a_missing_or_changed_file_names_sample_and_file(tmp_path):
    path = tmp_path / "gone.png"
    path.write_bytes(png())
    dataset = dataset_of(picture("p", frames=[str(path)]))
    dataset[0]
    path.write_bytes(png(size=(10, 10)))
    with pytest.raises(ValueError, match="'p': .*gone.png: frame 0 is 10 x 10, expected 40 x 30"):
        dataset[0]
    path.write_bytes(png()[:60])
    with pytest.raises(ValueError, match="'p': .*gone.png: cannot be read"):
        dataset[0]
    path.unlink()
    with pytest.raises(ValueError, match="'p': .*gone.png: no such file"):
        dataset[0]


def test_rows_that_have_no_form_are_rejected_with_the_reason():
    silent = picture("silent", expressions=[])
    pointed = clip("pointed", ["xx"])
    pointed.expressions, pointed.turns, pointed.regions = [], [Turn("What is region1?", "It.")], [0]
    small = picture("small", turns=[Turn("What are region1 and region2?", "It.")], regions=[0, 1])
    dataset = dataset_of(silent, picture("good"), pointed, small)
    assert {reject.id: reject.reason for reject in dataset.rejected} == {
        "silent": "it has neither expressions nor turns",
        "pointed": "region prompts need a single image, it is a clip",
        "small": "region2 is too small: it covers no cell of the model's grid",
    }
    assert len(dataset) == 1


def test_an_empty_dataset_is_an_error():
    with pytest.raises(ValueError, match="the dataset is empty: expected at least one entry"):
        Sa2VADataset([], WordProcessor())
    with pytest.raises(ValueError, match="entry 1 of 1 has no row that can be used, 0 rows rejected"):
        Sa2VADataset([(cache([talk()]).select([]), 1)], WordProcessor())
    with pytest.raises(ValueError, match="1 rows rejected: t: its shortest .* max_length is 5"):
        dataset_of(talk(), max_length=5)


@pytest.mark.parametrize("repeats", [0, -1, float("nan"), float("inf")])
def test_repeats_must_be_positive(repeats):
    with pytest.raises(ValueError, match="entry 1: repeats must be positive"):
        dataset_of(talk(), repeats=repeats)


def test_evaluation_counts_every_row_once():
    with pytest.raises(ValueError, match="in evaluation every row counts once, got repeats 2"):
        dataset_of(talk(), repeats=2, train=False)


def test_a_dataset_of_another_schema_is_an_error():
    with pytest.raises(ValueError, match="not a prepared dataset: columns"):
        Sa2VADataset([(datasets.Dataset.from_dict({"text": ["a"]}), 1)], WordProcessor())
