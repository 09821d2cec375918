"""What the body of a chat completion means, and that what it cannot mean is refused by name.

Run: pytest tests/serving/test_messages.py
"""

import json

import pytest
from chats import body, data_url, noise, png, user

from sa2va_hf.masks import encode
from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.messages import ChatRequest, read_chat
from sa2va_hf.serving.session import phrases_of
from sa2va_hf.serving.sources import Sources

PNG = png(noise())
ASSISTANT = {"role": "assistant", "content": "Sure, [SEG]."}
LIMITS = Limits(max_text=1000, max_regions=2, max_new_tokens=40)


def read(asked: object, limits: Limits = LIMITS) -> ChatRequest:
    raw = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return read_chat(raw, limits, Sources(), cells=1024)


def test_a_conversation_becomes_turns_and_a_question():
    again = user("and the cat?", image=PNG)  # clients that send the image with every turn
    chat = read(body(user("the dog?", image=PNG), ASSISTANT, again, temperature=0.5, stream=True))
    question = chat.question
    assert (question.turns, question.text) == ((("the dog?", "Sure, [SEG]."),), "and the cat?")
    assert question.visual.size == (100, 60) and not question.regions
    assert (question.temperature, question.max_new_tokens, chat.stream) == (0.5, 40, True)


def test_text_alone_and_strings_are_questions_too():
    question = read(body({"role": "user", "content": "What is this?"}, max_tokens=7)).question
    assert (question.text, question.visual, question.max_new_tokens) == ("What is this?", None, 7)


def test_what_has_no_effect_may_be_sent():
    read(body(user("a?"), n=1, user="me", stop=None, tools=[], presence_penalty=0.0, response_format={"type": "text"}))


def test_regions_are_checked_against_the_image():
    box = {"type": "region", "box": [10, 10, 30, 20]}
    question = read(body(user("region1?", box, image=PNG))).question
    rle = {"type": "region", "rle": encode(question.regions[0].mask((100, 60)))}
    assert (read(body(user("?", rle, image=PNG))).question.open().regions[0].sum()) == 200


def region(**fields):
    return body(user("?", {"type": "region", **fields}, image=PNG))


BOX = {"type": "region", "box": [1, 1, 9, 9]}
REFUSED = {
    "no JSON": (b'{"messages": [', 400, "not JSON"),
    "deep JSON": (b"[" * 100_000, 400, "not JSON"),
    "a list": ([], 400, "the body: expected a JSON object"),
    "no messages": ({"model": "x"}, 400, "messages: expected a list"),
    "unknown parameter": (body(user("?"), best_of=3), 400, "not supported here: best_of"),
    "several answers": (body(user("?"), n=2), 400, "not supported here: n"),
    "tools": (body(user("?"), tools=[{}]), 400, "not supported here: tools"),
    "seed": (body(user("?"), seed=1), 400, "not supported here: seed"),
    "system prompt": (body({"role": "system", "content": "be kind"}), 400, r"messages\[0\].role: expected 'user'"),
    "two questions": (body(user("?"), user("?")), 400, r"messages\[1\].role: expected 'assistant'"),
    "answer last": (body(user("?"), ASSISTANT), 400, "the question is last"),
    "empty text": (body(user("  ")), 400, "a text that is not empty"),
    "no content": (body({"role": "user"}), 400, "a text or a list"),
    "audio": (body(user("?", {"type": "input_audio"})), 400, "image_url, video_url or region"),
    "image of the assistant": (
        body(user("?"), {**ASSISTANT, "content": user("?", image=PNG)["content"]}, user("?")),
        400,
        r"messages\[1\].content\[0\].type: expected text",
    ),
    "second image": (body(user("?", image=PNG), ASSISTANT, user("?", image=png(noise(1)))), 400, "one image"),
    "later image": (body(user("?"), ASSISTANT, user("?", image=PNG)), 400, "in its first message"),
    "url of no type": (body(user("?", {"type": "image_url", "image_url": 3})), 400, "an object with a url"),
    "a path": (body(user("?", image="/etc/passwd")), 403, r"messages\[0\].content\[0\]: this server does not open"),
    "an internal address": (body(user("?", image="http://169.254.169.254/")), 403, "does not open"),
    "an image as video": (
        body(user("?", {"type": "video_url", "video_url": {"url": data_url(PNG)}})),
        415,
        "MP4, WebM, AVI or GIF",
    ),
    "long text": (body(user("a" * 1001)), 413, "1001 characters"),
    "many tokens": (body(user("?"), max_tokens=41), 413, "at most 40 tokens"),
    "no tokens": (body(user("?"), max_tokens=0), 400, "a positive integer"),
    "heat": (body(user("?"), temperature="hot"), 400, "temperature: expected a number from 0 to 2"),
    "stream": (body(user("?"), stream="yes"), 400, "stream: expected true or false"),
    "region of nothing": (body(user("?", BOX)), 422, "there is none"),
    "many regions": (body(user("?", *[BOX] * 3, image=PNG)), 413, "3 regions"),
    "region outside": (region(box=[200, 0, 300, 9]), 422, "covers no pixel"),
    "region of numbers": (region(box=[1, 2, 3]), 400, "x0, y0, x1, y1"),
    "region not finite": (region(box=[1, 2, 3, float("nan")]), 400, "x0, y0, x1, y1"),
    "region of another size": (region(rle={"size": [9, 9], "counts": "Q1"}), 422, r"\[60, 100\]"),
    "region of a large size": (region(rle={"size": [10**9, 10**9], "counts": "Q1"}), 422, r"\[60, 100\]"),
    "region of both": (region(box=[1, 1, 9, 9], rle={}), 400, "one of rle and box"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_mean_is_refused_by_name(name):
    asked, status, words = REFUSED[name]
    with pytest.raises(Refused, match=words) as caught:
        read(asked)
    assert caught.value.status == status and len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Sure, [SEG].", [None]),
        ("<p> a dog </p> [SEG] and <p> cats </p> [SEG], [SEG].", ["a dog", "cats", "cats"]),
        ("<p> a dog </p> runs [SEG]", [None]),
        ("<p> a dog [SEG].", ["a dog"]),
        ("nothing <p> here </p>", []),
    ],
)
def test_a_phrase_belongs_to_the_seg_behind_it(text, phrases):
    assert phrases_of(text) == phrases
