"""Counts equal the processor's whatever is counted; the cheap bound is never too low."""

import numpy as np
import pytest
from words import WordProcessor

from sa2va_hf.data.dataset.planning import Planner
from sa2va_hf.data.dataset.rows import Facts
from sa2va_hf.data.dataset.token_counts import TokenCounter

TURNS = [
    ("Segment the dog.", "It is [SEG]."),
    (" what is\nit?", "\n a  dog "),
    ("\n\nlook", "Nothing."),
    ("", "ok"),
    ("Where is the <image> taken?", "Here."),
    ("ünïcödé 狗 <|im_end|>", "[SEG][SEG]"),
]
SQUARE = np.zeros((60, 60), bool)
SQUARE[10:40, 20:50] = True


@pytest.fixture(params=["words", "tiny", "tiny with bos", "tiny phi3"])
def processor(request, tiny_processor):
    if request.param == "words":
        return WordProcessor()
    tiny_processor.add_bos = "bos" in request.param
    tiny_processor.template = "phi3_chat" if "phi3" in request.param else "qwen_chat"
    return tiny_processor


@pytest.mark.parametrize(
    "visuals",
    [
        {},
        {"image_size": (60, 60)},
        {"image_size": (200, 60)},
        {"image_size": (60, 60), "num_frames": 1, "video": True},
        {"image_size": (90, 60), "num_frames": 3, "video": True},
        {"image_size": (60, 60), "region_masks": [SQUARE, ~SQUARE]},
    ],
    ids=["text", "image", "wide image", "one frame", "clip", "regions"],
)
@pytest.mark.parametrize("first", range(len(TURNS)))
def test_remembered_counts_are_exact(processor, visuals, first):
    counter = TokenCounter(processor)
    for turns in (TURNS[first:], TURNS[first : first + 1], [TURNS[first]] + TURNS[:3]):
        turns = [turns[0]] + [turn for turn in turns[1:] if "<image>" not in turn[0]]
        if "<image>" in turns[0][0] and not visuals:
            continue
        for _ in range(2):  # looked up the second time
            counted = counter.count(
                turns,
                visuals.get("image_size"),
                visuals.get("num_frames", 1),
                visuals.get("video", False),
                visuals.get("region_masks", ()),
            )
            assert counted == processor.num_tokens(turns=turns, **visuals)


def test_the_bound_is_never_too_low(processor):
    counter = TokenCounter(processor)
    for turns in (TURNS, TURNS[:1], TURNS * 5, [("🦆" * 50, "é" * 99)]):
        turns = [turn for turn in turns if "<image>" not in turn[0]]
        text = sum(len(f"{question}{answer}".encode()) for question, answer in turns)
        assert processor.num_tokens(turns=turns) <= counter.bound(np.array(text), np.array(len(turns)))


def facts_of(**columns) -> Facts:
    empty = {name: np.zeros(len(next(iter(columns.values()))), int) for name in Facts.__dataclass_fields__}
    return Facts(**(empty | {name: np.array(values) for name, values in columns.items()}))


def test_rows_that_may_be_too_long_are_found_by_pictures_and_by_text():
    planner = Planner(TokenCounter(WordProcessor()), num_frames=5, max_expressions=2, max_length=450, train=True)
    facts = facts_of(
        width=[0, 0, 9, 9, 9, 9],
        height=[0, 0, 9, 9, 9, 9],
        num_frames=[0, 0, 1, 1, 400, 1],
        num_turns=[1, 1, 1, 0, 1, 0],
        turn_bytes=[400, 500, 410, 0, 399, 0],
        num_expressions=[0, 0, 0, 90, 0, 90],
        expression_bytes=[0, 0, 0, 10, 0, 100],
        is_video=np.array([0, 0, 0, 0, 1, 0], bool),
    )
    assert planner.may_be_too_long(facts).tolist() == [False, True, False, False, False, True]
    planner.max_length = 430
    assert planner.may_be_too_long(facts).tolist() == [False, True, True, False, True, True]
    planner.max_expressions = 4
    assert planner.may_be_too_long(facts).tolist() == [False, True, True, True, True, True]
