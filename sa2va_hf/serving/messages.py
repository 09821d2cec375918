"""The body of an OpenAI chat completion -> a question. What it cannot mean here is refused by name, never ignored."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.media import Region, Visual, read_image, read_video
from sa2va_hf.serving.session import Question, make_question
from sa2va_hf.serving.sources import Sources

READ = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p"}
# Of no effect on an answer, so that clients which send them need no change.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier"}
# Asking for what an answer is anyway; with another value they are refused.
NEUTRAL = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "tools": [], "logit_bias": {}}
NEUTRAL |= {"seed": None, "stop": [], "response_format": {"type": "text"}, "tool_choice": "none"}


@dataclass(frozen=True)
class ChatRequest:
    question: Question
    stream: bool = False
    include_usage: bool = False


@dataclass
class _Seen:
    """What the messages read so far look at."""

    visual: Visual | None = None
    data: bytes = b""
    regions: list[Region] = field(default_factory=list)


def read_chat(body: bytes, limits: Limits, sources: Sources, cells: int) -> ChatRequest:
    """The body of POST /v1/chat/completions, checked.

    Raises:
        Refused: 400 it is not such a body; what `Sources.read`, `read_image`, `read_video`, `make_question` raise.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(asked, dict):
        raise _wrong("the body", "a JSON object", asked)
    _check_parameters(asked)
    seen = _Seen()
    turns, text = _turns(asked.get("messages"), seen, limits, sources)
    question = make_question(
        limits,
        cells,
        seen.visual,
        seen.regions,
        text=text,
        turns=turns,
        max_new_tokens=_max_tokens(asked, limits),
        temperature=_number(asked, "temperature", 0.0, 2.0, default=0.0),
        top_p=_number(asked, "top_p", 1e-6, 1.0, default=1.0),
    )
    return ChatRequest(question, _flag(asked, "stream"), _include_usage(asked))


# -------------------------------------------------------------------- parameters
def _check_parameters(asked: dict[str, Any]) -> None:
    unknown = []
    for name, value in asked.items():
        neutral = name in NEUTRAL and (value is None or value == NEUTRAL[name])
        if name not in READ and name not in IGNORED and not neutral:
            unknown.append(name)
    if unknown:
        shown = ", ".join(sorted(unknown)[:20])
        raise Refused(400, "unsupported_parameter", f"not supported here: {shown:.400}", param=sorted(unknown)[0][:80])


def _max_tokens(asked: dict[str, Any], limits: Limits) -> int:
    name = "max_completion_tokens" if asked.get("max_completion_tokens") is not None else "max_tokens"
    value = asked.get(name)
    if value is None:
        return limits.max_new_tokens
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(name, "a positive integer", value)
    if value > limits.max_new_tokens:
        message = f"{name}: {value}; this server writes at most {limits.max_new_tokens} tokens"
        raise Refused(413, "too_large", message, param=name)
    return value


def _number(asked: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return bool(value)


def _include_usage(asked: dict[str, Any]) -> bool:
    options = asked.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object", options)
    return _flag(options, "include_usage")


# -------------------------------------------------------------------- messages
def _turns(messages: Any, seen: _Seen, limits: Limits, sources: Sources) -> tuple[tuple[tuple[str, str], ...], str]:
    """(question, answer) pairs, and the question that is last."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list that is not empty", messages)
    texts = []
    for index, message in enumerate(messages):
        name, role = f"messages[{index}]", ("user", "assistant")[index % 2]
        if not isinstance(message, dict):
            raise _wrong(name, "an object with role and content", message)
        if message.get("role") != role:
            expected = f"{role!r}: user and assistant take turns, and the model has no system prompt"
            raise _wrong(f"{name}.role", expected, message.get("role"))
        texts.append(_content(message.get("content"), f"{name}.content", index, seen, limits, sources))
    if len(messages) % 2 == 0:
        raise _wrong(f"messages[{len(messages) - 1}].role", "'user': the question is last", "assistant")
    return tuple(zip(texts[::2], texts[1::2], strict=False)), texts[-1]


def _content(content: Any, name: str, index: int, seen: _Seen, limits: Limits, sources: Sources) -> str:
    """The text of a message; what it shows goes into `seen`."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise _wrong(name, "a text or a list of objects with a type", content)
    texts = []
    for place, item in enumerate(content):
        kind, where = item.get("type"), f"{name}[{place}]"
        if kind == "text" and isinstance(item.get("text"), str):
            texts.append(item["text"])
        elif kind in ("image_url", "video_url") and index % 2 == 0:
            _show(kind, item.get(kind), where, index, seen, limits, sources)
        elif kind == "region" and index % 2 == 0:
            seen.regions.append(_region(item, where))
        else:
            expected = "text, image_url, video_url or region" if index % 2 == 0 else "text"
            raise _wrong(f"{where}.type", f"{expected}, with its value", kind)
    text = "\n".join(texts)
    if not text.strip():
        raise _wrong(name, "a text that is not empty", text)
    return text


def _show(kind: str, url: Any, where: str, index: int, seen: _Seen, limits: Limits, sources: Sources) -> None:
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str) or not url:
        raise _wrong(f"{where}.{kind}", "an object with a url", url)
    try:
        data = sources.read(url, limits)
        if seen.visual is not None and data == seen.data:  # clients that send it again with every turn
            return
        if seen.visual is not None or index:
            message = "one image or clip per conversation, in its first message: begin a new one"
            raise Refused(400, "unsupported_content", message)
        seen.visual = (read_image if kind == "image_url" else read_video)(data, limits)
        seen.data = data
    except Refused as refused:
        raise Refused(refused.status, refused.code, f"{where}: {refused.message}", param=where) from refused


def _region(item: dict[str, Any], where: str) -> Region:
    rle, box = item.get("rle"), item.get("box")
    if (rle is None) == (box is None):
        raise _wrong(where, "a region with one of rle and box", sorted(map(str, item)))
    if rle is not None:
        if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str):
            raise _wrong(f"{where}.rle", "an object with size and counts (a text)", rle)
        return Region(rle=rle)
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in box):
        raise _wrong(f"{where}.box", "[x0, y0, x1, y1] in pixels", box)
    return Region(box=tuple(map(float, box)))


def _wrong(name: str, expected: str, got: Any) -> Refused:
    return Refused(400, "invalid_request", f"{name}: expected {expected}, got {repr(got)[:80]}", param=name)
