"""Messages, images, videos and region masks -> tensors: the only door to Sa2VA, for training and inference alike.

What the released model was trained on, and so what this must produce: no system prompt, one template per checkpoint,
PIL bicubic tiles of 448 px, one squashed tile per video frame, and a separate square picture for SAM 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SEG_TOKEN, bundled
from .visuals import Clip, open_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE_INDEX = -100
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


def choose_grid(width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """Columns and rows of the tile grid whose aspect ratio is nearest to the picture's (InternVL's rule).

    Of two equally near grids the larger wins only if the picture has more than half its pixels.
    """
    grids = {
        (i, j) for n in range(min_tiles, max_tiles + 1) for i in range(1, n + 1) for j in range(1, n + 1)
        if min_tiles <= i * j <= max_tiles
    }  # fmt: skip
    aspect, best, best_difference = width / height, (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(aspect - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > 0.5 * tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


def to_tiles(image: Image.Image, grid: tuple[int, int], size: int, thumbnail: bool) -> list[Image.Image]:
    """Row-major crops of the picture stretched over the grid, then the whole picture where there is more than one."""
    columns, rows = grid
    stretched = image.resize((size * columns, size * rows))
    tiles = [
        stretched.crop((size * c, size * r, size * (c + 1), size * (r + 1)))
        for r in range(rows)
        for c in range(columns)
    ]
    return tiles + [image.resize((size, size))] if thumbnail and len(tiles) > 1 else tiles


class Sa2VAProcessor(ProcessorMixin):
    """Tokenizer, tiles and SAM 2 pictures in one.

    Args:
        tokenizer: with `<img>`, `<IMG_CONTEXT>`, `</img>` and the special tokens of `SPECIAL_TOKENS`.
        template: a name of `TEMPLATES`.
        tile_size, patch_size, downsample_ratio: the vision tower's; a tile becomes
            (tile_size / patch_size * downsample_ratio)^2 tokens.
        min_tiles, max_tiles, use_thumbnail: dynamic tiling of images; a video frame is always one tile.
        grounding_image_size: side of SAM 2's square picture.
        add_bos: write the tokenizer's bos once at the start (InternLM2, Phi-3; not Qwen).
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: Any,
        template: str = "qwen_chat",
        tile_size: int = 448,
        patch_size: int = 14,
        downsample_ratio: float = 0.5,
        min_tiles: int = 1,
        max_tiles: int = 12,
        use_thumbnail: bool = True,
        grounding_image_size: int = 1024,
        add_bos: bool = False,
    ) -> None:
        super().__init__(tokenizer)
        get_template(template)
        self.template = template
        self.tile_size, self.patch_size, self.downsample_ratio = tile_size, patch_size, downsample_ratio
        self.min_tiles, self.max_tiles, self.use_thumbnail = min_tiles, max_tiles, use_thumbnail
        self.grounding_image_size = grounding_image_size
        self.add_bos = add_bos
        missing = [t for t in (SEG_TOKEN, IMAGE_CONTEXT) if len(self._ids(t)) != 1]
        if missing:
            raise ValueError(f"tokenizer: {missing} must be single tokens; add them as special tokens first")

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
    def region_grid(self) -> int:
        """Cells per side on which a region is marked: one cell per token of a tile."""
        return int(self.tile_size // self.patch_size * self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        return self.region_grid**2

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

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        return choose_grid(width, height, self.min_tiles, self.max_tiles, self.tile_size)

    def num_tiles(self, width: int, height: int) -> int:
        columns, rows = self._grid(width, height)
        return columns * rows + (self.use_thumbnail and columns * rows > 1)

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
        if image_size is None:
            visual = ""
        else:
            # every context token but one per block is counted by hand: they are the bulk, and one token each
            visual = self._visual_text([1] * (num_frames if video else 1), [1] * len(cells))
        pieces = self._pieces(list(turns), visual)
        short = sum(len(ids) for text, _ in pieces for ids in [self._ids(text)]) + self.add_bos
        if image_size is None:
            return short
        tiles = [1] * num_frames if video else [self.num_tiles(*image_size)]
        return short + sum(n * self.tokens_per_tile - 1 for n in tiles) + sum(n - 1 for n in cells)

    # ---------------------------------------------------------------- text
    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _visual_text(self, tokens_per_block: Sequence[int], tokens_per_region: Sequence[int]) -> str:
        """Image blocks (one per image, or one per frame), then the sentence that names the regions."""
        blocks = "\n".join(f"{IMAGE_START}{IMAGE_CONTEXT * n}{IMAGE_END}" for n in tokens_per_block)
        if not tokens_per_region:
            return blocks
        regions = ", ".join(f"region{i}<vp>{IMAGE_CONTEXT * n}</vp>" for i, n in enumerate(tokens_per_region, 1))
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
        mask = np.asarray(mask, dtype=bool)
        rows = np.arange(self.region_grid) * mask.shape[0] // self.region_grid
        columns = np.arange(self.region_grid) * mask.shape[1] // self.region_grid
        return mask[np.ix_(rows, columns)]

    def _tiles(self, conversation: Conversation) -> list[list[Image.Image]]:
        """Tiles per image block."""
        if conversation.is_video:
            return [[frame.resize((self.tile_size, self.tile_size))] for frame in conversation.frames]
        return [
            to_tiles(image, self._grid(*image.size), self.tile_size, self.use_thumbnail)
            for image in conversation.frames
        ]

    def _pixels(self, tiles: list[Image.Image]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (stacked.float() / 255 - mean) / std

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
            width, height = conversation.frames[0].size
            if mask.shape != (height, width):
                raise ValueError(f"{where}: region mask is {mask.shape}, its image is {(height, width)} (H, W)")
            if not self.region_cells(mask).any():
                raise ValueError(f"{where}: the region mask covers no cell of the {self.region_grid} grid; enlarge it")
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
        `pixel_values` (tiles, 3, s, s), `grounding_pixel_values` uint8 (frames, 3, S, S), `num_frames` (B,); with
        regions `region_masks` bool (R, g, g) and `region_tiles` (R,), the tile each is pooled from; with
        `return_labels` also `labels` (B, L): -100 but on the answers and their suffix.
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
        blocks = [self._tiles(chat) for chat in chats]
        cells = [[self.region_cells(mask) for mask in chat.regions] for chat in chats]
        visual = [
            self._visual_text([len(t) * self.tokens_per_tile for t in b], [int(c.sum()) for c in r])
            for b, r in zip(blocks, cells, strict=True)
        ]
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
        self, chats: list[Conversation], blocks: list[list[list[Image.Image]]], cells: list[list[np.ndarray]]
    ) -> dict[str, torch.Tensor]:
        ends = np.cumsum([sum(len(tiles) for tiles in sample) for sample in blocks])
        data = {
            "pixel_values": self._pixels([tile for sample in blocks for tiles in sample for tile in tiles]),
            "grounding_pixel_values": self.grounding_pixels([frame for chat in chats for frame in chat.frames]),
            "num_frames": torch.tensor([len(chat.frames) for chat in chats]),
        }
        if any(cells):  # a region reads the last tile of its image: the thumbnail, or the only one
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
