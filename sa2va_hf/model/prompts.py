"""`processor(text=..., images=...)`: prompts that are written already, with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature

from .configuration_sa2va import PLACEHOLDER
from .conversations import Conversation
from .visuals import Clip, fetch_image


class PromptMixin:
    """The call of a processor that has `tokenizer`, `pictures`, `add_bos` and the parts that make its tensors."""

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        padding: bool | str = False,
        padding_side: str = "right",
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts and their pictures -> model inputs, as every processor of transformers takes them.

        Args:
            text: a prompt, as `apply_chat_template(tokenize=False)` writes it, or a list of them. It is read as it is,
                without a template, control tokens included. A picture comes where it says `<image>`, where the blocks
                of its tokens are already, or first.
            images: a picture, path or URL per prompt that has one; a list for a list of prompts.
            videos: in the same way, a list of frames, a folder or a file.

        Returns: see `apply_chat_template`.

        Raises:
            ValueError: pictures and prompts that do not fit each other.
            TypeError: an argument that is not taken.
        """
        options = {"padding": padding, "padding_side": padding_side, "return_tensors": return_tensors} | kwargs
        check_options("processor", options)
        if text is None:
            raise ValueError("text: expected a prompt; a picture alone is no input")
        single = isinstance(text, str)
        prompts = [text] if single else list(text)
        chats = self._looking_at(prompts, _per_prompt("images", images, single), _per_prompt("videos", videos, single))
        blocks = [[self.pictures.block(*frame.size, chat.is_video) for frame in chat.frames] for chat in chats]
        rows = []
        for chat, block in zip(chats, blocks, strict=True):
            ids = self._ids(self._with_visual(chat.turns[0][0], block))
            rows.append(([self.tokenizer.bos_token_id, *ids] if self.add_bos else ids, []))
        data = self._pad(rows, False, options["padding"], options["padding_side"])
        if any(chat.frames for chat in chats):
            data |= self._visual_inputs(chats, blocks, [[] for _ in chats])
        return BatchFeature(data)

    def _looking_at(
        self, prompts: list[str], images: list[Any] | None, videos: list[Any] | None
    ) -> list[Conversation]:
        """Each prompt with its frames."""
        marks = [PLACEHOLDER in prompt or self.pictures.context in prompt for prompt in prompts]
        for name, given in (("images", images), ("videos", videos)):
            if given is not None and len(given) < len(prompts) and sum(marks) == len(given):
                rest = iter(given)  # a picture for those prompts that ask for one
                given[:] = [next(rest) if mark else None for mark in marks]
            if given is not None and len(given) != len(prompts):
                raise ValueError(f"{name}: expected one per prompt, {len(prompts)}, got {len(given)}")
        chats = []
        for i, prompt in enumerate(prompts):
            image, video = images and images[i], videos and videos[i]
            if image is not None and video is not None:
                raise ValueError(f"prompt {i}: give an image or a video, not both")
            chat = Conversation([(prompt, None)])
            if image is not None:
                chat.frames = [fetch_image(image)]
            elif video is not None:
                chat.frames, chat.is_video = list(Clip(video)), True
            chats.append(chat)
        return chats

    def _with_visual(self, prompt: str, blocks: list[int]) -> str:
        """The prompt with the tokens of its frames in it."""
        context, tokens = self.pictures.context, sum(blocks)
        written = prompt.count(context)
        if written == 1 and context == PLACEHOLDER:  # it stands for the tokens of all frames
            written = 0
        if written and written != tokens:
            raise ValueError(f"text: has {written} picture tokens, its images or videos need {tokens}")
        if not blocks or written:
            return prompt
        visual = self._visual_text(blocks, [])
        if prompt.count(PLACEHOLDER) > 1:
            raise ValueError(f"text: expected one {PLACEHOLDER}, for all frames, got {prompt.count(PLACEHOLDER)}")
        return prompt.replace(PLACEHOLDER, visual) if PLACEHOLDER in prompt else f"{visual}\n{prompt}"


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises: TypeError for an option that is not taken, ValueError for a value that is not."""
    unknown = sorted(options.keys() - {"padding", "padding_side", "return_tensors"})
    if unknown:
        raise TypeError(f"{name}: unknown arguments {unknown}")
    if options["return_tensors"] not in ("pt", None):
        raise ValueError(f"return_tensors: expected 'pt', got {options['return_tensors']!r}")
    if options["padding"] not in (True, False, "longest", "do_not_pad"):
        raise ValueError(f"padding: expected True or False, got {options['padding']!r}")


def _per_prompt(name: str, given: Any, single: bool) -> list[Any] | None:
    """One entry per prompt; of a single prompt a picture may come alone or in a list, also in a list of lists."""
    if given is None:
        return None
    if not single:
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"{name}: text is a list, so expected a list, got {type(given).__name__}")
        return [
            one[0] if name == "images" and isinstance(one, list | tuple) and len(one) == 1 else one for one in given
        ]
    if name == "videos":
        return [given]
    images = list(given) if isinstance(given, list | tuple) else [given]
    if len(images) != 1:
        raise ValueError(f"images: expected one for one prompt, got {len(images)}; several frames are a video")
    return images
