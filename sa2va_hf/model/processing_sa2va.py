"""Messages, images, videos and region masks -> tensors: the only entry point of Sa2VA, for training and inference.

What the released model was trained on, and so what this must produce: no system prompt, one template per checkpoint,
one block of picture tokens per image or video frame, and a separate square picture for SAM 2. How a picture becomes
pixels and tokens for the LLM is in `pictures.py`, how chats are read in `conversations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .configuration_sa2va import (
    CONTROL_BREAK,
    CONTROL_TOKENS,
    IGNORE_INDEX,
    PLACEHOLDER,
    SEG_TOKEN,
    Sa2VAConfig,
    break_control_tokens,
    bundled,
    check_side,
)
from .conversations import TEMPLATES, Conversation, Template, check_last_turn, get_template, read_messages
from .pictures import PICTURES, InternVLPictures, LlavaPictures, QwenVLPictures
from .postprocessing import PostProcessingMixin
from .prompts import PromptMixin, check_options

MAX_TILES = 1024  # of a picture; more in a config would take all memory
Pieces = list[tuple[str, bool]]  # (text, whether it is learned), in order


class Sa2VAProcessor(PromptMixin, PostProcessingMixin, ProcessorMixin):
    """Tokenizer, the LLM's pictures and SAM 2's in one.

    Args:
        tokenizer: with the picture tokens of the backbone and the special tokens of `SPECIAL_TOKENS`.
        template: a name of `TEMPLATES`.
        backbone: `model_type` of the multimodal LLM, a name of `PICTURES`. The fields below that are its own default
            to its released values, and are None where they mean nothing to it.
        patch_size, downsample_ratio: the vision tower's patch in pixels, and how many tokens per side it leaves.
        tile_size, min_tiles, max_tiles, use_thumbnail: InternVL's dynamic tiling of images; a video frame is always
            one tile. A tile becomes (tile_size / patch_size * downsample_ratio)^2 tokens. LLaVA's one square has the
            first of these fields alone.
        image_pixels, frame_pixels: Qwen-VL's least and most pixels of an image and of a frame of a clip; a token
            stands for (patch_size / downsample_ratio)^2 of them.
        pixel_mean, pixel_std: per channel, of pixels from 0 to 1.
        grounding_image_size: side of the grounding encoder's square picture.
        add_bos: write the tokenizer's bos once at the start (InternLM2, Phi-3, LLaVA; not Qwen).
        box_form: the form in which the model was trained to answer with boxes (a name of `sa2va_hf.boxes.TEXT_FORMS`);
            None: it was not.
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
        box_form: str | None = None,
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
        check_side("grounding_image_size", grounding_image_size)
        if tile_size is not None:
            check_side("tile_size", tile_size)
        if max_tiles is not None and not 1 <= max_tiles <= MAX_TILES:
            raise ValueError(f"max_tiles: expected 1 to {MAX_TILES}, got {max_tiles!r}")
        pictures = PICTURES[backbone](**chosen)
        for name in given:
            setattr(self, name, getattr(pictures, name) if name in vars(pictures) else None)
        self.grounding_image_size = grounding_image_size
        self.add_bos = add_bos
        self.box_form = box_form
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
    def pictures(self) -> InternVLPictures | LlavaPictures | QwenVLPictures:
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
        written = [(break_control_tokens(q), break_control_tokens(a)) for q, a in turns]
        pieces = self._pieces(Conversation(written), visual)
        short = sum(len(ids) for text, _ in pieces for ids in [self._ids(text)]) + self.add_bos
        if image_size is None:
            return short
        return short + blocks * (self.pictures.block(*image_size, video) - 1) + sum(n - 1 for n in cells)

    def turn_pieces(self, turn: tuple[str, str]) -> list[str]:
        """The texts (question, answer, separator) of a turn without visuals, each of which is tokenised alone."""
        return [text for text, _ in self._pieces(Conversation([turn]), "")]

    # ---------------------------------------------------------------- text
    def _ids(self, text: str) -> list[int]:
        """Token ids; a control token that a user wrote was broken in two, so it stays text."""
        parts = text.split(CONTROL_BREAK)
        return [token for part in parts for token in self.tokenizer(part, add_special_tokens=False)["input_ids"]]

    @cached_property
    def _added_control_tokens(self) -> list[str]:
        """The control tokens that this tokenizer has, as one token each."""
        return [token for token in CONTROL_TOKENS if token in self.tokenizer.get_added_vocab()]

    def _visual_text(self, tokens_per_block: Sequence[int], tokens_per_region: Sequence[int]) -> str:
        """Image blocks (one per image, or one per frame), then the sentence that names the regions."""
        pictures = self.pictures
        blocks = "\n".join(f"{pictures.start}{pictures.context * n}{pictures.end}" for n in tokens_per_block)
        if not tokens_per_region:
            return blocks
        regions = ", ".join(f"region{i}<vp>{pictures.context * n}</vp>" for i, n in enumerate(tokens_per_region, 1))
        return f"{blocks}\nThere are {len(tokens_per_region)} part regions in the picture: {regions}.\n"

    def _pieces(self, conversation: Conversation, visual: str) -> Pieces:
        """Every piece is tokenised alone, as the released models were trained."""
        template, turns = get_template(self.template), conversation.turns
        if sum(question.count(PLACEHOLDER) for question, _ in turns) > bool(visual):
            raise ValueError(f"messages: {PLACEHOLDER!r} is in the text, but there is no picture for it")
        if self.pictures.context == PLACEHOLDER:  # elsewhere than in a question it is text
            turns = [(question, None if answer is None else _broken(answer)) for question, answer in turns]
        if visual:
            first = next((i for i, (question, _) in enumerate(turns) if PLACEHOLDER in question), None)
            if first is None:
                first, question = 0, turns[0][0]
                question = visual + question if visual.endswith("\n") else f"{visual}\n{question}"
            else:
                question = turns[first][0].replace(PLACEHOLDER, visual, 1)
            turns = turns[:first] + [(question, turns[first][1])] + turns[first + 1 :]
        system = _broken(conversation.system) if self.pictures.context == PLACEHOLDER else conversation.system
        pieces = [(template.system.replace("{input}", system), False)] if system else []
        for question, answer in turns:
            pieces.append((template.instruction.replace("{input}", question), False))
            if answer is not None:
                pieces += [(answer.strip() + template.suffix, True), (template.separator, False)]
        return pieces

    def _tokenize(self, pieces: Pieces, join_history: bool) -> tuple[list[int], list[int]]:
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
        """One chat in the Hugging Face form -> its turns, frames and regions. Raises: see `read_messages`."""
        return read_messages(messages, self.check_region)

    def check_region(self, mask: np.ndarray) -> None:
        """Raises: ValueError for a region mask (H, W) that the LLM cannot be shown."""
        if not self.takes_regions:
            raise ValueError(f"{self.backbone} has no form for regions; use a model on InternVL")
        cells = self.region_cells(mask)
        if not cells.any():
            raise ValueError(f"the region mask covers no cell of the {len(cells)} grid; enlarge it")

    def apply_chat_template(  # the chat template is a `Template`, not jinja: visuals and labels belong to it
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: None = None,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        padding: bool | str = False,
        padding_side: str = "right",
        return_labels: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> BatchFeature | str | list[str]:
        """One chat, or a batch (a list of chats), -> model inputs.

        Args:
            conversation: turns of the roles system (first), user and assistant; content as a string, or a list of
                {"type": "text", "text"}, {"type": "image", one of "image", "url", "path", "base64"}, {"type": "video",
                one of "video", "url", "path", and "num_frames"} and {"type": "region", "mask"} items.
            tokenize: False: the prompt text.
            continue_final_message: the last turn is the assistant's, and its text is to be continued.
            padding: batches of different lengths are padded with 0, on the `padding_side`.
            return_labels: also `labels` (B, L): -100 but on the answers and their suffix.
            processor_kwargs: `padding`, `padding_side` and `return_tensors` may come here as well.
            chat_template: accepted as None only.

        Returns:
            A `BatchFeature` with `input_ids`, `attention_mask` (B, L); with pictures `pixel_values` (tiles, 3, s, s)
            (Qwen-VL: (patches, P) and `image_grid_thw` (pictures, 3)), `grounding_pixel_values` uint8 (frames, 3, S,
            S), `num_frames` (B,); with regions `region_masks` bool (R, g, g) and `region_tiles` (R,), the tile each is
            pooled from.

        Raises:
            ValueError: a chat that cannot be read, or whose last turn does not fit the arguments.
            TypeError: an argument that is not taken.
        """
        options = {"padding": padding, "padding_side": padding_side, "return_tensors": return_tensors}
        options |= processor_kwargs or {}
        check_options("apply_chat_template", options)
        if chat_template is not None:
            raise TypeError("apply_chat_template: the template is a name, given to from_pretrained(template=)")
        if not len(conversation):
            raise ValueError("messages: expected at least one user turn, got none")
        single = isinstance(conversation[0], dict)
        chats = [self.read_messages(chat) for chat in ([conversation] if single else conversation)]
        for chat in chats:
            check_last_turn(chat, add_generation_prompt, continue_final_message)
        blocks = [[self.pictures.block(*frame.size, chat.is_video) for frame in chat.frames] for chat in chats]
        cells = [[self.region_cells(mask) for mask in chat.regions] for chat in chats]
        visual = [self._visual_text(b, [int(c.sum()) for c in r]) for b, r in zip(blocks, cells, strict=True)]
        pieces = [self._pieces(chat, v) for chat, v in zip(chats, visual, strict=True)]
        if continue_final_message:
            pieces = [[*p[:-2], (p[-2][0].removesuffix(get_template(self.template).suffix), True)] for p in pieces]
        if not tokenize:
            texts = [_prompt_text(p) for p in pieces]
            return texts[0] if single else texts
        rows = [self._tokenize(p, join_history=not return_labels) for p in pieces]
        data = self._pad(rows, return_labels, options["padding"], options["padding_side"])
        if any(chat.frames for chat in chats):
            data |= self._visual_inputs(chats, blocks, cells)
        return BatchFeature(data) if return_dict else data["input_ids"]

    def _pad(
        self, rows: list[tuple[list[int], list[int]]], return_labels: bool, padding: bool | str, side: str
    ) -> dict[str, torch.Tensor]:
        """Rows of (ids, labels) as tensors (B, L), 0 where there is padding."""
        if side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {side!r}")
        length = max(len(ids) for ids, _ in rows)
        if padding in (False, "do_not_pad") and any(len(ids) != length for ids, _ in rows):
            raise ValueError("a batch of different lengths needs padding=True")
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORE_INDEX)
        for i, (ids, targets) in enumerate(rows):
            real = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
            input_ids[i, real] = torch.tensor(ids, dtype=torch.long)
            attention_mask[i, real] = 1
            if return_labels:
                labels[i, real] = torch.tensor(targets, dtype=torch.long)
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


def _prompt_text(pieces: Pieces) -> str:
    """The prompt as one text. Raises: ValueError for texts of the user that would be read as control tokens in it."""
    text = "".join(piece for piece, _ in pieces)
    if CONTROL_BREAK in text:
        raise ValueError("messages: a text contains a control token of the model; that needs tokenize=True")
    return text


def _broken(text: str) -> str:
    """The text with every placeholder broken in two, so that it is tokenised as text."""
    return text.replace(PLACEHOLDER, PLACEHOLDER[0] + CONTROL_BREAK + PLACEHOLDER[1:])


__all__ = ["PLACEHOLDER", "TEMPLATES", "Conversation", "Sa2VAProcessor", "Template", "get_template"]
