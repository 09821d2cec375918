"""Templates: each fits its phrase, tells targets from no targets, and is drawn by the generator alone.

Run: pytest tests/data/prompts/test_templates.py
"""

import numpy as np
import pytest

from sa2va_hf.data.prompts import templates as prompts
from sa2va_hf.data.prompts.templates import clean_phrase, fill, referring_turn, region_question


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "pool", ["SEG_QUESTIONS", "SEG_ANSWERS", "NO_TARGET_ANSWERS", "GCG_QUESTIONS", "REGION_QUESTIONS"]
)
def test_pools_hold_distinct_entries_of_their_form(pool):
    entries = getattr(prompts, pool)
    assert len(set(entries)) == len(entries) >= 3
    for entry in entries:
        assert entry.count("[SEG]") == (pool == "SEG_ANSWERS")
        assert ("{phrase}" in entry) == (pool in ("SEG_QUESTIONS", "NO_TARGET_ANSWERS"))
        assert ("{n}" in entry) == (pool == "REGION_QUESTIONS")


def test_the_answers_are_those_that_released_weights_give():
    assert prompts.SEG_ANSWERS == (
        "It is [SEG].",
        "Sure, [SEG].",
        "Sure, it is [SEG].",
        "Sure, the segmentation result is [SEG].",
        "[SEG].",
    )


def test_a_turn_has_one_seg_exactly_when_there_is_a_target():
    generator = rng()
    for _ in range(100):
        question, answer = referring_turn("Left vase.", True, generator)
        assert answer.count("[SEG]") == 1 and "the left vase" in question and "[SEG]" not in question
        assert "{" not in question + answer and "vase.." not in question
        question, answer = referring_turn("Left vase.", False, generator)
        assert "[SEG]" not in answer and "left vase" in answer and answer[0].isupper()


def test_a_question_is_used_verbatim():
    question, answer = referring_turn("Which dog runs? It is Big.", True, rng())
    assert question == "Which dog runs? It is Big." and "[SEG]" in answer
    question, answer = referring_turn("Which dog runs?", False, rng())
    assert question == "Which dog runs?" and "[SEG]" not in answer


def test_phrases_lose_case_and_full_stop_but_nothing_inside():
    assert clean_phrase(" The 2.5 m Pole. ") == "the 2.5 m pole"
    assert clean_phrase("dog..") == "dog"


def test_determiners_do_not_double_and_braces_do_no_harm():
    template = "Segment the {phrase}."
    assert fill(template, "the dog") == "Segment the dog."
    assert fill(template, "every dog") == "Segment every dog."
    assert fill(template, "dog") == "Segment the dog."
    assert fill(template, "thermos") == "Segment the thermos."
    assert fill(template, "{phrase} {0} %s") == "Segment the {phrase} {0} %s."


def test_drawing_depends_on_the_generator_alone_and_reaches_every_entry():
    def turns(seed):
        generator = rng(seed)
        return [referring_turn("dog", True, generator) for _ in range(400)]

    assert turns(1) == turns(1) != turns(2)
    questions, answers = zip(*turns(3), strict=True)
    assert len(set(questions)) == len(prompts.SEG_QUESTIONS) and len(set(answers)) == len(prompts.SEG_ANSWERS)


def test_region_questions_name_their_region():
    generator = rng()
    assert all("region12" in region_question(12, generator) for _ in range(30))
