"""From a processor's inputs to an answer, its [SEG] states, and masks: what predictor and `predict_forward` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .processing_sa2va import Sa2VAProcessor
from .video_modes import clip_masks, picture_masks
from .visuals import Clip

if TYPE_CHECKING:
    from .modeling_sa2va import Sa2VAForConditionalGeneration

PICTURES_AT_ONCE = 8  # that go through SAM 2 together on a GPU; a CPU's caches like them one by one better


@dataclass
class Answer:
    """`text` without and `raw_text` with the stop word; `states` (num_seg, D), the hidden states of its [SEG]."""

    text: str
    raw_text: str
    states: Tensor


@dataclass
class Drawing:
    """`masks` bool (objects, frames, H, W) at the size of the input, `logits` float32 (objects, frames, h, w), and
    `scores` (objects,), the IoU that SAM 2 expects, mean over frames."""

    masks: np.ndarray
    logits: np.ndarray
    scores: np.ndarray


# -------------------------------------------------------------------- text
@torch.no_grad()
def generate_answers(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, inputs: dict[str, Tensor], **options: Any
) -> list[Answer]:
    """Answer a batch of prompts, greedily unless `options` of `generate` say otherwise.

    The LLM runs once: a [SEG] state is kept when its token is read. Only where that never happens (a [SEG] as the very
    last token, or beams, which change places) one more pass over prompt and answer finds it.
    """
    stops = processor.stop_ids
    with _last_states(model) as steps:
        generated = model.generate(**inputs, **_generation_options(model, processor) | options)
    ids = [_cut(row, stops) for row in generated.tolist()]
    segs = [[place for place, token in enumerate(row) if token == processor.seg_token_id] for row in ids]
    read = len(steps) - 1  # the first step reads the prompt, every further one a token
    straight = len(generated) == len(inputs["input_ids"]) == len(steps[0]) and read == generated.shape[1] - 1
    if straight and all(place < read for places in segs for place in places):
        none = steps[0][:0]
        states = [
            torch.stack([steps[place + 1][row] for place in places]) if places else none
            for row, places in enumerate(segs)
        ]
    elif any(segs):
        states = _states_of(model, processor, inputs, ids)
    else:
        states = [steps[0][:0]] * len(ids)
    raws = [_decode(processor, _cut(row, stops, keep=True)) for row in generated.tolist()]
    texts = [_without_stop(_decode(processor, row), processor.stop_strings) for row in ids]
    return [Answer(text, raw, state) for text, raw, state in zip(texts, raws, states, strict=True)]


@torch.no_grad()
def read_answers(model: Sa2VAForConditionalGeneration, inputs: dict[str, Tensor], counts: list[int]) -> list[Tensor]:
    """The [SEG] states (num_seg, D) of answers that are part of `inputs`; counts: how many [SEG] each answer has.

    The answer is last, so its [SEG] are: earlier ones belong to the history or the question.
    """
    is_seg = inputs["input_ids"] == model.config.seg_token_id
    if not any(counts):
        return [torch.empty(0, model.config.hidden_size, device=is_seg.device) for _ in counts]
    _, states = model.read(**inputs)
    return [h[at][int(at.sum()) - n :] for h, at, n in zip(states, is_seg, counts, strict=True)]


@contextmanager
def _last_states(model: Sa2VAForConditionalGeneration) -> Iterator[list[Tensor]]:
    """The LLM's last hidden state (B, D) after every step of a generation, of its last layer only."""
    steps: list[Tensor] = []
    hook = model.watch_states(lambda states: steps.append(states[:, -1]))
    try:
        yield steps
    finally:
        hook.remove()


def _states_of(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    inputs: dict[str, Tensor],
    answers: list[list[int]],
) -> list[Tensor]:
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [
        torch.cat([prompt[:length], prompt.new_tensor(answer)])
        for prompt, length, answer in zip(inputs["input_ids"], lengths, answers, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ends = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < ends.unsqueeze(1)).long()
    counts = [answer.count(processor.seg_token_id) for answer in answers]
    return read_answers(model, inputs | {"input_ids": ids, "attention_mask": mask}, counts)


def _generation_options(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor) -> dict[str, Any]:
    stops = processor.stop_ids
    options: dict[str, Any] = {"eos_token_id": stops, "pad_token_id": stops[0] if stops else 0}
    options["suppress_tokens"] = [model.config.mllm_config.image_token_id]  # would ask for a picture's features
    if processor.stop_strings:  # matched on the last few tokens, whatever the length of the answer
        options |= {"stop_strings": processor.stop_strings, "tokenizer": processor.tokenizer}
    return options


def _cut(ids: list[int], stops: list[int], keep: bool = False) -> list[int]:
    """An answer's tokens up to its stop token; what follows it is padding."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + keep]


def _decode(processor: Sa2VAProcessor, ids: list[int]) -> str:
    return processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()


def _without_stop(text: str, stop_strings: Sequence[str]) -> str:
    for word in stop_strings:
        text = text.split(word)[0]
    return text.strip()


# -------------------------------------------------------------------- masks
@torch.no_grad()
def draw(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    clips: Sequence[Clip | None],
    key_frames: Sequence[list[int]],
    states: Sequence[Tensor],
    video_mode: str | None = None,
) -> list[Drawing]:
    """Draw what the [SEG] states (num_seg, D) of every question mean on its clip; a picture is a clip of one frame.

    What several questions look at (one `Clip`, with the same key frames) is encoded once and drawn on for all of them.
    Pictures go through SAM 2 together; of a clip only a few frames are on the device at a time. `video_mode` None: the
    model's own.
    """
    counts = [len(state) for state in states]
    embeddings = list(model.project(torch.cat(list(states))).split(counts)) if any(counts) else list(states)
    drawings = [_blank(model, clip, count) for clip, count in zip(clips, counts, strict=True)]
    looking_at: dict[tuple, list[int]] = {}  # questions, by what they look at
    for i, drawing in enumerate(drawings):
        if drawing.masks.size:
            looking_at.setdefault((id(clips[i]), *key_frames[i]), []).append(i)

    def put(questions: list[int], frames: slice, logits: Tensor, ious: Tensor) -> None:
        sizes = [counts[i] for i in questions]
        for i, low, expected in zip(questions, logits.split(sizes), ious.split(sizes), strict=True):
            _put(model, drawings[i], frames, low, expected)

    pictures = [questions for questions in looking_at.values() if len(clips[questions[0]]) == 1]
    at_once = PICTURES_AT_ONCE if model.device.type == "cuda" else 1
    for start in range(0, len(pictures), at_once):
        together = pictures[start : start + at_once]
        pixels = processor.grounding_pixels([clips[questions[0]][0] for questions in together])
        prompts = [torch.cat([embeddings[i] for i in questions]) for questions in together]
        for questions, low, expected in zip(together, *picture_masks(model, pixels, prompts, video_mode), strict=True):
            put(questions, slice(0, 1), low.unsqueeze(1), expected.unsqueeze(1))
    for questions in looking_at.values():
        clip, done = clips[questions[0]], 0
        if len(clip) == 1:
            continue

        def load(numbers: list[int], clip: Clip = clip) -> Tensor:
            return processor.grounding_pixels([clip[number] for number in numbers])

        prompts = torch.cat([embeddings[i] for i in questions])
        for low, expected in clip_masks(model, load, len(clip), key_frames[questions[0]], prompts, video_mode):
            put(questions, slice(done, done := done + low.shape[1]), low, expected)
        assert done == len(clip), f"{video_mode} drew {done} of {len(clip)} frames"
    return drawings


def _blank(model: Sa2VAForConditionalGeneration, clip: Clip | None, objects: int) -> Drawing:
    side = model.grounding_encoder.mask_size
    frames, (width, height) = (0, (0, 0)) if clip is None else (len(clip), clip.size)
    return Drawing(
        masks=np.zeros((objects, frames, height, width), dtype=bool),
        logits=np.zeros((objects, frames, side, side), dtype=np.float32),
        scores=np.zeros(objects, dtype=np.float32),
    )


def _put(model: Sa2VAForConditionalGeneration, drawing: Drawing, frames: slice, logits: Tensor, ious: Tensor) -> None:
    """Write the masks of some frames, enlarged by way of SAM 2's input size as in the released model."""
    side, size = model.grounding_encoder.config.image_size, drawing.masks.shape[-2:]
    drawing.logits[:, frames] = logits.cpu().numpy()
    if not np.isfinite(drawing.logits[:, frames]).all():
        raise ValueError("mask logits are not finite: load the model with dtype=torch.float32 or bfloat16")
    square = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    full = F.interpolate(square, size=size, mode="bilinear", align_corners=False)
    drawing.masks[:, frames] = (full > 0).cpu().numpy()
    drawing.scores += ious.sum(1).cpu().numpy() / drawing.masks.shape[1]
