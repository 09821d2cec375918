"""From a phrase to a question about it, and from what a model answers about a likely place to a phrase that can be
located, without a parser."""

import re

MARK = "most likely to appear"

_LEADING = re.compile(
    r"^(?:(?:on top of|in front of|next to|close to|on|in|at|near|inside|behind|under|below|above|over|by|beside|"
    r"around|along|within|against|between|the|a|an|its|it is|is|located|somewhere|probably|likely)\b\s*)+",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_ENDS = re.compile(r"[.,;:!?\n]|\s(?:or|and|but|because|since|where|which)\s")
_VAGUE = {"", "there", "here", "it", "unknown", "none", "nowhere", "image", "picture"}
MAX_WORDS = 8


def question_about(template: str, phrase: str) -> str:
    """The template with the phrase in place of its {}; a determiner of the phrase replaces the template's "the".

    Raises:
        ValueError: an empty phrase.
    """
    from sa2va_hf.data.prompts.templates import fill  # imports transformers, which the command's --help need not

    phrase = phrase.strip().rstrip(".").rstrip()
    if not phrase:
        raise ValueError("target: expected the name of what is searched, got an empty text")
    return fill(template.replace("{}", "{phrase}"), phrase)


def place_text(answer: str) -> str:
    """The part of an answer that names the place: after "most likely to appear", without a final full stop."""
    return answer.split(MARK)[-1].strip().removesuffix(".")


def cue_phrase(answer: str, target: str) -> str | None:
    """A short phrase for the place, or None where the answer names none ("there", the target itself, nothing).

    V* parses the sentence and takes what follows the last mention of the target; that leaves nothing of "next to the
    red mug". Here the place is what follows the leading prepositions, up to the first comma or conjunction.
    """
    text, name = place_text(answer), _ARTICLE.sub("", target.strip())
    if MARK not in answer:  # "The red mug is on the table": what comes before the verb is no place
        text = re.sub(
            rf"^(?:(?:the|a|an)\s+)?{re.escape(name)}\s+(?:is|are|would be|may be|could be)\s+", "", text, flags=re.I
        )
    phrase = _ENDS.split(_LEADING.sub("", text.strip()))[0].strip()
    phrase = " ".join(phrase.split()[:MAX_WORDS])
    return None if phrase.lower() in _VAGUE | {name.lower()} else phrase
