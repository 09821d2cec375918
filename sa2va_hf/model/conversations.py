"""Chats in the Hugging Face form -> turns, frames and regions; and how a turn is written, a template per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .configuration_sa2va import PLACEHOLDER, break_control_tokens
from .frames import check_count, uniform_frames
from .visuals import Clip, fetch_image, open_base64

IMAGE_KEYS = ("image", "url", "path", "base64")  # under one of which an image item holds its picture
VIDEO_KEYS = ("video", "url", "path")


@dataclass(frozen=True)
class Template:
    """How a turn is written: instruction(input) + answer + suffix + separator; only answer + suffix are learned.
    `system` is written before the first turn where a chat has a system turn; the released models were trained without
    one."""

    instruction: str
    suffix: str
    separator: str = "\n"
    stop_words: tuple[str, ...] = ()
    system: str = "<|im_start|>system\n{input}<|im_end|>\n"


_CHATML = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES: dict[str, Template] = {
    "qwen_chat": Template(_CHATML, "<|im_end|>", stop_words=("<|im_end|>", "<|endoftext|>")),
    "internlm2_chat": Template(_CHATML, "<|im_end|>", stop_words=("<|im_end|>",)),
    "phi3_chat": Template(
        "<|user|>\n{input}<|end|>\n<|assistant|>\n",
        "<|end|>",
        stop_words=("<|end|>",),
        system="<|system|>\n{input}<|end|>\n",
    ),
    "vicuna": Template("USER: {input} ASSISTANT:", "</s>", system="{input}\n"),
}


@dataclass
class Conversation:
    """One conversation taken apart: its turns (question, answer), frames and regions."""

    turns: list[tuple[str, str | None]]
    system: str = ""
    frames: list[Image.Image] = field(default_factory=list)
    is_video: bool = False
    regions: list[np.ndarray] = field(default_factory=list)


def get_template(name: str) -> Template:
    """The template of that name; released configs write "-" for "_". Raises: ValueError listing those there are."""
    template = TEMPLATES.get(name.replace("-", "_"))
    if template is None:
        raise ValueError(f"template: expected one of {sorted(TEMPLATES)}, got {name!r}")
    return template


def read_messages(
    messages: list[dict[str, Any]], check_region: Callable[[np.ndarray], None] = lambda mask: None
) -> Conversation:
    """One chat in the Hugging Face form -> its turns, frames and regions.

    check_region: called with every region mask; raises ValueError where the model cannot read it.

    Raises:
        ValueError: naming the message, for turns in another order, an item of unknown form, a second picture.
    """
    conversation = Conversation(turns=[])
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: expected a dict with role and content, got {message!r:.80}")
        content = message["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(break_control_tokens(_text(item, where)) for item in content if _kind(item, where) == "text")
        if message["role"] == "user":
            for item in content:
                _read_visual(item, conversation, where, check_region)
            conversation.turns.append((text, None))
        elif message["role"] == "assistant":
            if not conversation.turns or conversation.turns[-1][1] is not None:
                raise ValueError(f"{where}: an assistant turn must follow a user turn")
            conversation.turns[-1] = (conversation.turns[-1][0], text)
        elif message["role"] == "system":
            if index:
                raise ValueError(f"{where}: a system turn must come first")
            conversation.system = text
        else:
            raise ValueError(f"{where}.role: expected 'system', 'user' or 'assistant', got {message['role']!r}")
    if not conversation.turns:
        raise ValueError("messages: expected at least one user turn, got none")
    unanswered = [i for i, (_, answer) in enumerate(conversation.turns[:-1]) if answer is None]
    if unanswered:
        raise ValueError(f"messages: user turn {unanswered[0]} has no answer, but another user turn follows it")
    return conversation


def check_last_turn(chat: Conversation, add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Raises: ValueError where the last turn is answered and should not be, or the other way round."""
    answered = chat.turns[-1][1] is not None
    if answered != (continue_final_message or not add_generation_prompt):
        state = "answered" if answered else "not answered"
        raise ValueError(
            f"messages: the last turn is {state}, but {add_generation_prompt=}, {continue_final_message=}"
        )


def _kind(item: Any, where: str) -> str:
    if not isinstance(item, Mapping) or "type" not in item:
        raise ValueError(f"{where}: expected content items with a type, got {item!r:.80}")
    return item["type"]


def _text(item: Mapping[str, Any], where: str) -> str:
    if not isinstance(item.get("text"), str):
        raise ValueError(f"{where}: a text item needs a string under 'text', got {item.get('text')!r}")
    return item["text"]


def _one_of(item: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    """The one of `keys` that the item has."""
    given = [key for key in keys if item.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"{where}: an item of type {item['type']} needs one of {', '.join(keys)}, got {sorted(item)}")
    return given[0]


def _read_visual(
    item: Mapping[str, Any], conversation: Conversation, where: str, check_region: Callable[[np.ndarray], None]
) -> None:
    kind = item["type"]
    if kind == "text":
        return
    if kind in ("image", "video") and conversation.frames:
        raise ValueError(f"{where}: one image or one video per conversation, got a second {kind}")
    if kind == "image":
        key = _one_of(item, IMAGE_KEYS, where)
        conversation.frames = [open_base64(item[key]) if key == "base64" else fetch_image(item[key])]
    elif kind == "video":
        clip = Clip(item[_one_of(item, VIDEO_KEYS, where)])
        count = item.get("num_frames")
        count = len(clip) if count is None else check_count(f"{where}.num_frames", count)
        conversation.frames = [clip[index] for index in uniform_frames(len(clip), count)]
        conversation.is_video = True
    elif kind == "region":
        mask = np.asarray(item["mask"], dtype=bool)
        if len(conversation.frames) != 1 or conversation.is_video:
            raise ValueError(f"{where}: a region needs one image before it")
        width, height = conversation.frames[0].size
        if mask.shape != (height, width):
            raise ValueError(f"{where}: region mask is {mask.shape}, its image is {(height, width)} (H, W)")
        try:
            check_region(mask)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        conversation.regions.append(mask)
    else:
        raise ValueError(f"{where}: content type must be image, video, region or text, got {kind!r}")


__all__ = ["PLACEHOLDER", "TEMPLATES", "Conversation", "Template", "get_template", "read_messages"]
