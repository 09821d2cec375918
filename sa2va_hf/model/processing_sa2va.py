"""Messages, images, videos and region masks -> tensors: the only door to Sa2VA, for training and inference alike.

What the released model was trained on, and so what this must produce: no system prompt, one template per checkpoint,
one block of picture tokens per image or video frame, and a separate square picture for SAM 2. How a picture becomes
pixels and tokens for the LLM is in `pictures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .configuration_sa2va import IGNORE_INDEX, SEG_TOKEN, Sa2VAConfig, bundled
from .pictures import PICTURES, InternVLPictures, QwenVLPictures
from .visuals import Clip, open_image

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Template:
    """How a turn is written: instruction(input) + answer + suffix + separator; only answer + suffix are learned."""

    instruction: str
    suffix: str
    separator: str = "\n"
    stop_words: tuple[str, ...] = ()


_CHATML = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES: dict[str, Template] = {
    "qwen_chat": Template(_CHATML, "<|im_end|>", stop_words=("<|im_end|>", "<|endoftext|>")),
    "internlm2_chat": Template(_CHATML, "<|im_end|>", stop_words=("<|im_end|>",)),
    "phi3_chat": Template("<|user|>\n{input}<|end|>\n<|assistant|>\n", "<|end|>", stop_words=("<|end|>",)),
}


@dataclass
class Conversation:
    """One conversation taken apart: its turns, and the frames and regions they speak of."""

    turns: list[tuple[str, str | None]]
    frames: list[Image.Image] = field(default_factory=list)
    is_video: bool = False
    regions: list[np.ndarray] = field(default_factory=list)


def get_template(name: str) -> Template:
    """The template of that name; released configs write "-" for "_"."""
    template = TEMPLATES.get(name.replace("-", "_"))
    if template is None:
        raise ValueError(f"template: expected one of {sorted(TEMPLATES)}, got {name!r}")
    return template


class Sa2VAProcessor(ProcessorMixin):
    """Tokenizer, the LLM's pictures and SAM 2's in one.

    Args:
        tokenizer: with the picture tokens of the backbone and the special tokens of `SPECIAL_TOKENS`.
        template: a name of `TEMPLATES`.
        backbone: `model_type` of the multimodal LLM, a name of `PICTURES`. The fields below that are its own default
            to its released values, and are None where they mean nothing to it.
        patch_size, downsample_ratio: the vision tower's patch in pixels, and how many tokens per side it leaves.
        tile_size, min_tiles, max_tiles, use_thumbnail: InternVL's dynamic tiling of images; a video frame is always
            one tile. A tile becomes (tile_size / patch_size * downsample_ratio)^2 tokens.
        image_pixels, frame_pixels: Qwen-VL's least and most pixels of an image and of a frame of a clip; a token
            stands for (patch_size / downsample_ratio)^2 of them.
        pixel_mean, pixel_std: per channel, of pixels from 0 to 1.
        grounding_image_size: side of SAM 2's square picture.
        add_bos: write the tokenizer's bos once at the start (InternLM2, Phi-3; not Qwen).
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: Any,
        template: str = "qwen_chat",
        backbone: str = "internvl",
        patch_size: int | None = None,
        downsample_ratio: float | None = None,
        tile_size: int | None = None,
        min_tiles: int | None = None,
        max_tiles: int | None = None,
        use_thumbnail: bool | None = None,
        image_pixels: Sequence[int] | None = None,
        frame_pixels: Sequence[int] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        grounding_image_size: int = 1024,
        add_bos: bool = False,
    ) -> None:
        super().__init__(tokenizer)
        get_template(template)
        self.template = template
        if backbone not in PICTURES:
            raise ValueError(f"backbone: expected one of {sorted(PICTURES)}, got {backbone!r}")
        self.backbone = backbone
        given = {
            "patch_size": patch_size,
            "downsample_ratio": downsample_ratio,
            "tile_size": tile_size,
            "min_tiles": min_tiles,
            "max_tiles": max_tiles,
            "use_thumbnail": use_thumbnail,
            "image_pixels": image_pixels,
            "frame_pixels": frame_pixels,
            "pixel_mean": pixel_mean,
            "pixel_std": pixel_std,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        unknown = sorted(chosen.keys() - {item.name for item in fields(PICTURES[backbone])})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: {backbone} has no such field")
        pictures = PICTURES[backbone](**chosen)
        for name in given:
            setattr(self, name, getattr(pictures, name) if name in vars(pictures) else None)
        self.grounding_image_size = grounding_image_size
        self.add_bos = add_bos
        missing = [t for t in (SEG_TOKEN, pictures.context) if len(self._ids(t)) != 1]
        if missing:
            raise ValueError(f"tokenizer: {missing} must be single tokens; add them as special tokens first")

    @classmethod
    def for_model(cls, config: Sa2VAConfig, tokenizer: Any, **overrides: Any) -> Sa2VAProcessor:
        """The processor that fits a model; `overrides` are arguments of `__init__`."""
        decided = {
            "template": config.template,
            "backbone": config.mllm_config.model_type,
            "grounding_image_size": config.grounding_config.image_size,
            **PICTURES[config.mllm_config.model_type].settings(config.mllm_config),
        }
        return cls(tokenizer, **(decided | overrides))

    @classmethod
    def from_pretrained(cls, path: Any, template: str | None = None, **kwargs: Any) -> Sa2VAProcessor:
        """Load from a folder or the Hub; `template` overrides the checkpoint's."""
        processor = super().from_pretrained(bundled(path), **kwargs)
        if template is not None:
            get_template(template)
            processor.template = template
        return processor

    # ---------------------------------------------------------------- sizes
    @property
    def pictures(self) -> InternVLPictures | QwenVLPictures:
        """What the LLM reads of a picture."""
        kind = PICTURES[self.backbone]
        return kind(**{item.name: getattr(self, item.name) for item in fields(kind)})

    @property
    def tokens_per_tile(self) -> int:
        return self.pictures.region_grid**2

    @property
    def takes_regions(self) -> bool:
        """Whether regions of a picture can be pointed at."""
        return self.pictures.takes_regions

    @cached_property
    def seg_token_id(self) -> int:
        return self._ids(SEG_TOKEN)[0]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end generation; stop words of several tokens are matched as `stop_strings` instead."""
        ids = [self._ids(word) for word in get_template(self.template).stop_words]
        single = [i[0] for i in ids if len(i) == 1]
        eos = self.tokenizer.eos_token_id
        return single + [eos] if eos is not None and eos not in single else single

    @property
    def stop_strings(self) -> list[str]:
        return [word for word in get_template(self.template).stop_words if len(self._ids(word)) > 1]

    def num_tokens(
        self,
        turns: Sequence[tuple[str, str]],
        image_size: tuple[int, int] | None = None,
        num_frames: int = 1,
        video: bool = False,
        region_masks: Sequence[np.ndarray] | None = None,
    ) -> int:
        """Exact length of a training conversation, without its pixels: turns of (question, answer), size (w, h)."""
        cells = [int(self.region_cells(mask).sum()) for mask in region_masks or []]
        blocks = num_frames if video else 1
        # every context token but one per block is counted by hand: they are the bulk, and one token each
        visual = "" if image_size is None else self._visual_text([1] * blocks, [1] * len(cells))
        pieces = self._pieces(list(turns), visual)
        short = sum(len(ids) for text, _ in pieces for ids in [self._ids(text)]) + self.add_bos
        if image_size is None:
            return short
        return short + blocks * (self.pictures.block(*image_size, video) - 1) + sum(n - 1 for n in cells)

    # ---------------------------------------------------------------- text
    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _visual_text(self, tokens_per_block: Sequence[int], tokens_per_region: Sequence[int]) -> str:
        """Image blocks (one per image, or one per frame), then the sentence that names the regions."""
        pictures = self.pictures
        blocks = "\n".join(f"{pictures.start}{pictures.context * n}{pictures.end}" for n in tokens_per_block)
        if not tokens_per_region:
            return blocks
        regions = ", ".join(f"region{i}<vp>{pictures.context * n}</vp>" for i, n in enumerate(tokens_per_region, 1))
        return f"{blocks}\nThere are {len(tokens_per_region)} part regions in the picture: {regions}.\n"

    def _pieces(self, turns: list[tuple[str, str | None]], visual: str) -> list[tuple[str, bool]]:
        """(text, learned?) in order. Every piece is tokenised alone, as the released models were trained."""
        template = get_template(self.template)
        if visual:
            place = next((i for i, (question, _) in enumerate(turns) if PLACEHOLDER in question), None)
            if place is None:
                place, question = 0, turns[0][0]
                question = visual + question if visual.endswith("\n") else f"{visual}\n{question}"
            else:
                question = turns[place][0].replace(PLACEHOLDER, visual, 1)
            turns = turns[:place] + [(question, turns[place][1])] + turns[place + 1 :]
        if any(PLACEHOLDER in question for question, _ in turns):
            raise ValueError(f"messages: {PLACEHOLDER!r} is in the text, but there is no picture for it")
        pieces = []
        for question, answer in turns:
            pieces.append((template.instruction.replace("{input}", question), False))
            if answer is not None:
                pieces += [(answer.strip() + template.suffix, True), (template.separator, False)]
        return pieces

    def _tokenize(self, pieces: list[tuple[str, bool]], join_history: bool) -> tuple[list[int], list[int]]:
        if join_history:  # released inference encodes the prompt as one string; only the answer under test is apart
            last = max((i for i, (_, learned) in enumerate(pieces) if learned), default=len(pieces))
            last = last if last >= len(pieces) - 2 else len(pieces)
            pieces = [("".join(text for text, _ in pieces[:last]), False), *pieces[last:]]
        ids = [self.tokenizer.bos_token_id] if self.add_bos else []
        labels = [IGNORE_INDEX] * len(ids)
        for text, learned in pieces:
            piece = self._ids(text)
            ids += piece
            labels += piece if learned else [IGNORE_INDEX] * len(piece)
        return ids, labels

    # ---------------------------------------------------------------- pixels
    def region_cells(self, mask: np.ndarray) -> np.ndarray:
        """bool (H, W) -> bool (grid, grid): nearest, as torch's interpolate picks source cells."""
        if not self.takes_regions:
            raise ValueError(f"regions: {self.backbone} has no form for them; use a model on InternVL")
        mask, grid = np.asarray(mask, dtype=bool), self.pictures.region_grid
        rows, columns = (np.arange(grid) * side // grid for side in mask.shape)
        return mask[np.ix_(rows, columns)]

    def grounding_pixels(self, frames: Sequence[Image.Image]) -> torch.Tensor:
        """uint8 (F, 3, S, S) for SAM 2, aspect ratio not kept; the model normalises."""
        size = (self.grounding_image_size, self.grounding_image_size)
        squares = [np.asarray(frame if frame.size == size else frame.resize(size)) for frame in frames]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()

    # ---------------------------------------------------------------- conversations
    def read_messages(self, messages: list[dict[str, Any]]) -> Conversation:
        """One chat in the Hugging Face form -> its turns, frames and regions."""
        conversation = Conversation(turns=[])
        for number, message in enumerate(messages):
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text = "".join(item["text"] for item in content if item["type"] == "text")
            if message["role"] == "user":
                for item in content:
                    self._read_visual(item, conversation, number)
                conversation.turns.append((text, None))
            elif message["role"] == "assistant":
                if not conversation.turns or conversation.turns[-1][1] is not None:
                    raise ValueError(f"messages[{number}]: an assistant turn must follow a user turn")
                conversation.turns[-1] = (conversation.turns[-1][0], text)
            else:
                raise ValueError(f"messages[{number}].role: expected 'user' or 'assistant', got {message['role']!r}")
        if not conversation.turns:
            raise ValueError("messages: expected at least one user turn, got none")
        unanswered = [i for i, (_, answer) in enumerate(conversation.turns[:-1]) if answer is None]
        if unanswered:
            raise ValueError(f"messages: user turn {unanswered[0]} has no answer, but another user turn follows it")
        return conversation

    def _read_visual(self, item: dict[str, Any], conversation: Conversation, number: int) -> None:
        kind = item["type"]
        if kind == "text":
            return
        where = f"messages[{number}]"
        if kind in ("image", "video") and conversation.frames:
            raise ValueError(f"{where}: one image or one video per conversation, got a second {kind}")
        if kind == "image":
            conversation.frames = [open_image(item["image"])]
        elif kind == "video":
            conversation.frames = list(Clip(item["video"]))
            conversation.is_video = True
        elif kind == "region":
            mask = np.asarray(item["mask"], dtype=bool)
            if len(conversation.frames) != 1 or conversation.is_video:
                raise ValueError(f"{where}: a region needs one image before it")
            if not self.takes_regions:
                raise ValueError(f"{where}: {self.backbone} has no form for regions; use a model on InternVL")
            width, height = conversation.frames[0].size
            if mask.shape != (height, width):
                raise ValueError(f"{where}: region mask is {mask.shape}, its image is {(height, width)} (H, W)")
            cells = self.region_cells(mask)
            if not cells.any():
                raise ValueError(f"{where}: the region mask covers no cell of the {len(cells)} grid; enlarge it")
            conversation.regions.append(mask)
        else:
            raise ValueError(f"{where}: content type must be image, video, region or text, got {kind!r}")

    def apply_chat_template(  # the chat template is a `Template`, not jinja: visuals and labels belong to it
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        add_generation_prompt: bool = True,
        padding: bool = False,
        return_labels: bool = False,
        **kwargs: Any,
    ) -> BatchFeature | str | list[str]:
        """One chat, or a batch (a list of chats), -> model inputs.

        Returns a `BatchFeature` with `input_ids`, `attention_mask` (B, L), padded on the right with 0; with pictures
        `pixel_values` (tiles, 3, s, s) (Qwen-VL: (patches, P) and `image_grid_thw` (pictures, 3)),
        `grounding_pixel_values` uint8 (frames, 3, S, S), `num_frames` (B,); with regions `region_masks` bool (R, g, g)
        and `region_tiles` (R,), the tile each is pooled from; with `return_labels` also `labels` (B, L): -100 but on
        the answers and their suffix.
        `tokenize=False` returns the prompt text.
        """
        if kwargs:
            raise TypeError(f"apply_chat_template: unknown arguments {sorted(kwargs)}")
        if not len(conversation):
            raise ValueError("messages: expected at least one user turn, got none")
        single = isinstance(conversation[0], dict)
        chats = [self.read_messages(chat) for chat in ([conversation] if single else conversation)]
        for chat in chats:
            answered = chat.turns[-1][1] is not None
            if answered == add_generation_prompt:
                state = "answered" if answered else "not answered"
                raise ValueError(f"messages: the last turn is {state}, but {add_generation_prompt=}")
        blocks = [[self.pictures.block(*frame.size, chat.is_video) for frame in chat.frames] for chat in chats]
        cells = [[self.region_cells(mask) for mask in chat.regions] for chat in chats]
        visual = [self._visual_text(b, [int(c.sum()) for c in r]) for b, r in zip(blocks, cells, strict=True)]
        pieces = [self._pieces(chat.turns, v) for chat, v in zip(chats, visual, strict=True)]
        if not tokenize:
            texts = ["".join(text for text, _ in p) for p in pieces]
            return texts[0] if single else texts
        rows = [self._tokenize(p, join_history=not return_labels) for p in pieces]
        if len({len(ids) for ids, _ in rows}) > 1 and not padding:
            raise ValueError("a batch of different lengths needs padding=True")
        data = self._pad(rows, return_labels)
        if any(chat.frames for chat in chats):
            data |= self._visual_inputs(chats, blocks, cells)
        return BatchFeature(data) if return_dict else data["input_ids"]

    def _pad(self, rows: list[tuple[list[int], list[int]]], return_labels: bool) -> dict[str, torch.Tensor]:
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORE_INDEX)
        for i, (ids, targets) in enumerate(rows):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            attention_mask[i, : len(ids)] = 1
            labels[i, : len(ids)] = torch.tensor(targets)
        data = {"input_ids": input_ids, "attention_mask": attention_mask}
        return data | {"labels": labels} if return_labels else data

    def _visual_inputs(
        self, chats: list[Conversation], blocks: list[list[int]], cells: list[list[np.ndarray]]
    ) -> dict[str, torch.Tensor]:
        data = self.pictures.inputs([(chat.frames, chat.is_video) for chat in chats])
        data["grounding_pixel_values"] = self.grounding_pixels([frame for chat in chats for frame in chat.frames])
        data["num_frames"] = torch.tensor([len(chat.frames) for chat in chats])
        if any(cells):  # a region reads the last tile of its image: the thumbnail, or the only one
            ends = np.cumsum([sum(tokens) for tokens in blocks]) // self.pictures.region_grid**2
            data["region_masks"] = torch.from_numpy(np.stack([c for sample in cells for c in sample]))
            data["region_tiles"] = torch.tensor(
                [end - 1 for end, sample in zip(ends, cells, strict=True) for _ in sample]
            )
        return data

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "grounding_pixel_values", "num_frames"]


__all__ = ["Sa2VAProcessor", "TEMPLATES", "Template"]
