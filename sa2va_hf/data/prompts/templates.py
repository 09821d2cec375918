"""Questions and answers of every task, sampled with a generator that is passed in.

The wording is ours; the manner is that of Sa2VA's pools (projects/sa2va/datasets/common.py): an instruction or a
question that names the phrase, answered by a short sentence around [SEG]. The five answers are the reference's, since
released weights were trained to give them.
"""

import numpy as np

from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

SEG_QUESTIONS = (
    "Can you segment the {phrase} in this image?",
    "Please segment the {phrase} in this image.",
    "Segment the {phrase}.",
    "Where is the {phrase}? Please answer with a segmentation mask.",
    "Could you give me a mask of the {phrase}?",
    "Find the {phrase} in this picture and segment it.",
    "Please mark the {phrase} with a segmentation mask.",
    "Which pixels belong to the {phrase}? Please show them as a mask.",
    "I would like to see the {phrase} outlined. Please segment it.",
    "Locate and segment the {phrase}, please.",
)

SEG_ANSWERS = (
    f"It is {SEG_TOKEN}.",
    f"Sure, {SEG_TOKEN}.",
    f"Sure, it is {SEG_TOKEN}.",
    f"Sure, the segmentation result is {SEG_TOKEN}.",
    f"{SEG_TOKEN}.",
)

NO_TARGET_ANSWERS = (
    "I cannot find the {phrase} here.",
    "Nothing here matches the {phrase}.",
    "There is nothing to segment: the {phrase} is not there.",
)

GCG_QUESTIONS = (
    "Please describe this image in detail and give a segmentation mask for each thing you mention.",
    "What does this image show? Answer in detail, with a mask for every object in your answer.",
    "Give a detailed description of the picture, interleaved with masks of the things it names.",
    "Describe the image in detail. Follow each phrase that names an object with its mask.",
    "Can you describe this image in detail and segment the objects that the description names?",
    "Write a detailed caption of the image in which every object is grounded by a segmentation mask.",
)

REGION_QUESTIONS = (
    "Please describe region{n} in the image.",
    "What is in region{n}?",
    "Can you describe region{n} in detail?",
    "What can be seen in region{n} of this picture?",
    "Give a short caption of region{n}.",
    "Tell me what region{n} shows.",
)

# a phrase that brings its own determiner takes the place of "the {phrase}": no "the the dog", no "the every dog"
_DETERMINERS = frozenset(
    "the a an this that these those all every each both some any no one two three four five "
    "my your his her its our their someone something anyone anything everyone everything".split()
)


def fill(template: str, phrase: str) -> str:
    """The template with its {phrase}; a determiner of the phrase, in lower case, replaces the template's "the"."""
    first, *others = phrase.split(maxsplit=1) or [""]
    if first.lower() in _DETERMINERS:
        phrase = " ".join([first.lower(), *others])
        template = template.replace("the {phrase}", "{phrase}")
    return template.replace("{phrase}", phrase)  # not str.format: a phrase may hold braces


def clean_phrase(text: str) -> str:
    """A phrase as it goes into a template: stripped, without a full stop at the end, lower-cased."""
    return text.strip().rstrip(".").rstrip().lower()


def choose(pool: tuple[str, ...], rng: np.random.Generator) -> str:
    """One entry of a pool, each equally likely."""
    return pool[int(rng.integers(len(pool)))]


def referring_turn(text: str, has_target: bool, rng: np.random.Generator) -> tuple[str, str]:
    """Question and answer for an expression; the answer holds one [SEG], or none when nothing matches.

    A text with a question mark is a question already and is used as it is, as in the reference
    (projects/sa2va/datasets/sa2va_data_03_refvos.py).
    """
    phrase = clean_phrase(text)
    question = text if "?" in text else fill(choose(SEG_QUESTIONS, rng), phrase)
    if has_target:
        return question, choose(SEG_ANSWERS, rng)
    if "?" in text:
        return question, "There is nothing in the picture that answers this."
    answer = fill(choose(NO_TARGET_ANSWERS, rng), phrase)
    return question, answer[0].upper() + answer[1:]


def region_question(number: int, rng: np.random.Generator) -> str:
    """A request to describe region{number}; regions count from 1."""
    return choose(REGION_QUESTIONS, rng).replace("{n}", str(number))
