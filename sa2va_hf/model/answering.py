"""From a processor's inputs to an answer, its [SEG] states, and masks: what predictor and `predict_forward` share.

`AnsweringMixin` is a base class of the model, so that imports point one way: it uses `generate`, `read`, `project` and
the parts that the model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .packed import PackedMasks
from .placement import resident
from .processing_sa2va import Sa2VAProcessor
from .video_modes import clip_masks, picture_masks
from .visuals import Clip

# Options of `generate` under which it returns more than token ids.
REFUSED = {"return_dict_in_generate", "output_scores", "output_logits", "output_hidden_states", "output_attentions"}
PICTURES_AT_ONCE = 8  # that go through SAM 2 together on a GPU; on a CPU one by one is faster


@dataclass
class Answer:
    """`text` without and `raw_text` with the stop word; `states` (num_seg, D), the hidden states of its [SEG];
    `prompt_tokens`: how many the LLM read before it, with those of the images."""

    text: str
    raw_text: str
    states: Tensor
    prompt_tokens: int = 0


@dataclass
class PredictedMasks:
    """`masks` (objects, frames, H, W) at the size of the input, `logits` float32 (objects, frames, h, w), and
    `scores` (objects, 2), mean over frames: the IoU that SAM 2 expects, and its probability that the object is
    there."""

    masks: PackedMasks
    logits: np.ndarray
    scores: np.ndarray

    @classmethod
    def empty(cls, clip: Clip | None, objects: int, side: int) -> PredictedMasks:
        """Masks that are still to be filled in; without a clip there are no frames. side: of the logits."""
        frames, (width, height) = (0, (0, 0)) if clip is None else (len(clip), clip.size)
        return cls(
            masks=PackedMasks.empty(objects, frames, height, width),
            logits=np.zeros((objects, frames, side, side), dtype=np.float32),
            scores=np.zeros((objects, 2), dtype=np.float32),
        )

    def put(self, frames: slice, logits: Tensor, scores: Tensor, side: int) -> None:
        """Write the masks of some frames, and their scores (objects, n, 2). side: of SAM 2's input.

        Raises: see `full_masks`.
        """
        self.logits[:, frames] = logits.cpu().numpy()
        self.masks.put(frames, full_masks(logits, side, self.masks.shape[-2:]))
        self.scores += scores.sum(1).cpu().numpy() / self.masks.shape[1]


def full_masks(logits: Tensor, side: int, size: tuple[int, int]) -> np.ndarray:
    """Mask logits (objects, n, h, w) -> bool (objects, n, H, W), by way of SAM 2's input size as in the released code.

    Raises: ValueError for logits that are not finite.
    """
    if not torch.isfinite(logits).all():
        raise ValueError("mask logits are not finite: load the model with dtype=torch.float32 or bfloat16")
    square = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    return (F.interpolate(square, size=size, mode="bilinear", align_corners=False) > 0).cpu().numpy()


class AnsweringMixin:
    """Answers and masks of a model that has `generate`, `read`, `watch_states`, `project`, `compute_dtype`, `config`
    and `grounding_encoder`."""

    # ---------------------------------------------------------------- text
    @torch.no_grad()
    def answer(self, processor: Sa2VAProcessor, inputs: dict[str, Tensor], **options: Any) -> list[Answer]:
        """Answer a batch of prompts, greedily unless `options` of `generate` say otherwise.

        The LLM runs once: a [SEG] state is kept when its token is read. Only where that never happens (a [SEG] as the
        very last token, or beams, which change rows) one more pass over prompt and answer finds it.
        """
        refused = sorted(name for name in REFUSED & options.keys() if options[name])
        if options.get("num_return_sequences", 1) not in (None, 1):
            refused.append("num_return_sequences")
        if refused:
            raise ValueError(f"{', '.join(refused)}: one answer per question is read; call model.generate for more")
        stops = processor.stop_ids
        with self._last_states() as steps:
            generated = self.generate_new_tokens(**inputs, **self._generation_options(processor) | options)
        ids = [_cut(row, stops) for row in generated.tolist()]
        segs = [[step for step, token in enumerate(row) if token == processor.seg_token_id] for row in ids]
        read = len(steps) - 1  # the first step reads the prompt, every further one a token
        straight = len(generated) == len(inputs["input_ids"]) == len(steps[0]) and read == generated.shape[1] - 1
        if straight and all(step < read for row in segs for step in row):
            none = steps[0][:0]
            states = [
                torch.stack([steps[step + 1][row] for step in found]) if found else none
                for row, found in enumerate(segs)
            ]
        elif any(segs):
            states = self._states_of(processor, inputs, ids)
        else:
            states = [steps[0][:0]] * len(ids)
        raws = [_decode(processor, _cut(row, stops, keep=True)) for row in generated.tolist()]
        texts = [_without_stop(_decode(processor, row), processor.stop_strings) for row in ids]
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [Answer(*fields) for fields in zip(texts, raws, states, lengths, strict=True)]

    @torch.no_grad()
    def seg_states(self, inputs: dict[str, Tensor], counts: list[int]) -> list[Tensor]:
        """The [SEG] states (num_seg, D) of answers that are part of `inputs`; counts: how many [SEG] each answer has.

        The answer is last, so its [SEG] are: earlier ones belong to the history or the question.
        """
        is_seg = inputs["input_ids"] == self.config.seg_token_id
        if not any(counts):
            return [torch.empty(0, self.config.hidden_size, device=is_seg.device) for _ in counts]
        _, states = self.read(**inputs)
        is_seg = is_seg.to(states.device)
        return [h[at][int(at.sum()) - n :] for h, at, n in zip(states, is_seg, counts, strict=True)]

    @contextmanager
    def _last_states(self) -> Iterator[list[Tensor]]:
        """The LLM's last hidden state (B, D) after every step of a generation, of its last layer only."""
        steps: list[Tensor] = []
        hook = self.watch_states(lambda states: steps.append(states[:, -1]))
        try:
            yield steps
        finally:
            hook.remove()

    def _states_of(
        self, processor: Sa2VAProcessor, inputs: dict[str, Tensor], answers: list[list[int]]
    ) -> list[Tensor]:
        real = inputs["attention_mask"].bool()
        rows = [
            torch.cat([prompt[at], prompt.new_tensor(answer)])
            for prompt, at, answer in zip(inputs["input_ids"], real, answers, strict=True)
        ]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ends = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < ends.unsqueeze(1)).long()
        counts = [answer.count(processor.seg_token_id) for answer in answers]
        return self.seg_states(inputs | {"input_ids": ids, "attention_mask": mask}, counts)

    def _generation_options(self, processor: Sa2VAProcessor) -> dict[str, Any]:
        stops = processor.stop_ids
        options: dict[str, Any] = {"eos_token_id": stops, "pad_token_id": stops[0] if stops else 0}
        options["suppress_tokens"] = [self.config.mllm_config.image_token_id]  # would need a picture's features
        if processor.stop_strings:  # matched on the last few tokens, whatever the length of the answer
            options |= {"stop_strings": processor.stop_strings, "tokenizer": processor.tokenizer}
        return options

    # ---------------------------------------------------------------- masks
    @torch.no_grad()
    def predict_clips(
        self,
        processor: Sa2VAProcessor,
        clips: Sequence[Clip | None],
        key_frames: Sequence[list[int]],
        states: Sequence[Tensor],
        video_mode: str | None = None,
    ) -> list[PredictedMasks]:
        """Masks of the [SEG] states (num_seg, D) of every question on its clip; a picture is a clip of one frame.

        What several questions look at (one `Clip`, with the same key frames) is encoded once for all of them. Pictures
        go through SAM 2 together; of a clip only a few frames are on the device at a time. `video_mode` None: the
        model's own.
        """
        counts, encoder = [len(state) for state in states], self.grounding_encoder
        found = [
            PredictedMasks.empty(clip, count, encoder.mask_size) for clip, count in zip(clips, counts, strict=True)
        ]
        if not any(counts):
            return found
        embeddings = self.project(torch.cat(list(states))).split(counts)
        looking_at: dict[tuple, list[int]] = {}  # questions, by what they look at
        for i, masks in enumerate(found):
            if masks.masks.bits.size:
                looking_at.setdefault((id(clips[i]), *key_frames[i]), []).append(i)
        groups = list(looking_at.values())

        def put(questions: list[int], frames: slice, logits: Tensor, scores: Tensor) -> None:
            sizes = [counts[i] for i in questions]
            for i, low, of_low in zip(questions, logits.split(sizes), scores.split(sizes), strict=True):
                found[i].put(frames, low, of_low, encoder.image_size)

        with resident(encoder):
            mode = video_mode or self.config.video_mode
            pictures = [questions for questions in groups if len(clips[questions[0]]) == 1]
            for questions, logits, scores in self._pictures(processor, clips, pictures, embeddings, mode):
                put(questions, slice(0, 1), logits, scores)
            for questions in groups:
                clip = clips[questions[0]]
                if len(clip) > 1:
                    prompts = torch.cat([embeddings[i] for i in questions])
                    for frames, logits, scores in self._clip(processor, clip, key_frames[questions[0]], prompts, mode):
                        put(questions, frames, logits, scores)
        return found

    def stream_clip(
        self,
        processor: Sa2VAProcessor,
        clip: Clip,
        key_frames: list[int],
        states: Tensor,
        video_mode: str | None = None,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Masks of one clip as they are predicted: (frame index, bool (objects, H, W), expected IoU (objects,))."""
        if not len(states):
            return
        encoder, (width, height) = self.grounding_encoder, clip.size
        with torch.no_grad():
            prompts = self.project(states)
        with resident(encoder):
            steps = self._clip(processor, clip, key_frames, prompts, video_mode or self.config.video_mode)
            for frames, logits, scores in steps:
                masks = full_masks(logits, encoder.image_size, (height, width))
                for row, index in enumerate(range(frames.start, frames.stop)):
                    yield index, masks[:, row], scores[:, row, 0].cpu().numpy()

    def _pictures(
        self,
        processor: Sa2VAProcessor,
        clips: Sequence[Clip | None],
        groups: list[list[int]],
        embeddings: Sequence[Tensor],
        mode: str,
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Per group of questions about one picture: them, logits (objects, 1, h, w) and scores (objects, 1, 2)."""
        at_once = PICTURES_AT_ONCE if self.grounding_encoder.device.type == "cuda" else 1
        for start in range(0, len(groups), at_once):
            together = groups[start : start + at_once]
            pixels = processor.grounding_pixels([clips[questions[0]][0] for questions in together])
            prompts = [torch.cat([embeddings[i] for i in questions]) for questions in together]
            predicted = picture_masks(self.grounding_encoder, pixels, prompts, mode, self.compute_dtype)
            for questions, logits, scores in zip(together, *predicted, strict=True):
                yield questions, logits.unsqueeze(1), scores.unsqueeze(1)

    def _clip(
        self, processor: Sa2VAProcessor, clip: Clip, key_frames: list[int], prompts: Tensor, mode: str
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Frames of a clip in order: which, logits (objects, n, h, w) and scores (objects, n, 2)."""

        def load(indices: list[int]) -> Tensor:
            return processor.grounding_pixels([clip[index] for index in indices])

        done = 0
        steps = clip_masks(self.grounding_encoder, load, len(clip), key_frames, prompts, mode, self.compute_dtype)
        for logits, scores in steps:
            yield slice(done, done := done + logits.shape[1]), logits, scores
        assert done == len(clip), f"{mode} predicted {done} of {len(clip)} frames"


def _cut(ids: list[int], stops: list[int], keep: bool = False) -> list[int]:
    """An answer's tokens up to its stop token; what follows it is padding."""
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + keep]


def _decode(processor: Sa2VAProcessor, ids: list[int]) -> str:
    return processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()


def _without_stop(text: str, stop_strings: Sequence[str]) -> str:
    for word in stop_strings:
        text = text.split(word)[0]
    return text.strip()
