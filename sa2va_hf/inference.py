"""Image or video and text -> answer and masks, with one object to hold: `Sa2VAPredictor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va_hf.model.configuration_sa2va import SEG_TOKEN
from sa2va_hf.model.modeling_sa2va import Sa2VAForConditionalGeneration
from sa2va_hf.model.processing_sa2va import Sa2VAProcessor
from sa2va_hf.model.video_modes import get_video_mode
from sa2va_hf.model.visuals import Clip

Picture = Image.Image | str | Path


@dataclass(frozen=True)
class History:
    """A conversation so far: what it looks at (read again for every turn, not copied), and its turns."""

    clip: Clip | None = None
    is_video: bool = False
    regions: tuple[np.ndarray, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


@dataclass
class Prediction:
    """One answer. Objects are the [SEG] of `text` in order; a picture has one frame.

    Args:
        text: without the stop word; [SEG], <p> and </p> are kept.
        masks: bool (objects, frames, H, W) at the size of the input.
        boxes: float (objects, frames, 4), the masks' xyxy in pixels, x1 and y1 exclusive; NaN where a mask is empty.
        scores: float (objects,) in 0..1, the IoU that SAM 2 expects of its masks, mean over frames.
        history: give it with the next question.
        mask_logits: float32 (objects, frames, h, w) at a quarter of SAM 2's input side.
    """

    text: str
    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    history: History
    mask_logits: np.ndarray


@dataclass(frozen=True)
class _Request:
    history: History
    text: str
    key_frames: list[int]  # the frames that the LLM reads

    def messages(self, answer: str | None = None) -> list[dict[str, Any]]:
        """The whole conversation in the Hugging Face form, as the processor reads it."""
        clip, visuals = self.history.clip, []
        if clip is not None and self.history.is_video:
            visuals = [{"type": "video", "video": [clip[number] for number in self.key_frames]}]
        elif clip is not None:
            visuals = [{"type": "image", "image": clip[0]}]
        visuals += [{"type": "region", "mask": mask} for mask in self.history.regions]
        messages = []
        for question, reply in [*self.history.turns, (self.text, answer)]:
            messages.append({"role": "user", "content": [*visuals, {"type": "text", "text": question}]})
            visuals = []
            if reply is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
        return messages


class Sa2VAPredictor:
    """Answers questions about pictures and clips and draws what it speaks of.

    Args:
        num_frames: how many frames of a clip the LLM reads (5 in training); masks are drawn on all of them.
    """

    def __init__(self, model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, num_frames: int = 5) -> None:
        self.model, self.processor, self.num_frames = model.eval(), processor, num_frames

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        num_frames: int = 5,
    ) -> Sa2VAPredictor:
        """Load a folder or a Hub repository.

        device: default CUDA if there is one, else the CPU. dtype: default the checkpoint's, but float32 on a CPU.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else "auto"
        model = Sa2VAForConditionalGeneration.from_pretrained(path, dtype=dtype).to(device)
        return cls(model, Sa2VAProcessor.from_pretrained(path), num_frames)

    def compile(self, **options: Any) -> Sa2VAPredictor:
        """Compile the two image encoders, where the time goes, in place; options: those of `torch.compile`.

        The first picture (and the first clip) takes minutes longer, and so does every new number of frames at once:
        with windows of an unknown number the compiler did not end within a quarter of an hour.
        """
        self.model.backbone.vision(self.model.mllm)[0].compile(**options)
        self.model.grounding_encoder.sam2_model.image_encoder.compile(**({"dynamic": False} | options))
        return self

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture | None] | None = None,
        video: Any = None,
        text: str | list[str] | None = None,
        regions: Sequence[np.ndarray] | list[Sequence[np.ndarray] | None] | None = None,
        history: History | list[History | None] | None = None,
        max_new_tokens: int = 512,
        num_frames: int | None = None,
        video_mode: str | None = None,
        **generation: Any,
    ) -> Prediction | list[Prediction]:
        """Answer one question, or several at once.

        Args:
            image: a picture or a path. video: a list of frames (pictures or paths), a folder of frames, or a file.
            text: the question. A list makes a batch: every other input is then None or a list of the same length. A
                picture or clip that is there several times, as the same object or path, is encoded by SAM 2 once.
            regions: bool masks (H, W) of the image, called region1, region2 ... in the text.
            history: `Prediction.history` of the turn before; it brings its image or video along.
            num_frames: how many frames of a clip the LLM reads; default the predictor's.
            video_mode: a name of `model.video_modes.VIDEO_MODES`; default the model's, "consistent" as a rule.
            generation: further arguments of `generate` (greedy by default).
        """
        requests = self._requests(image, video, text, regions, history, num_frames, video_mode)
        inputs = self._inputs([request.messages() for request in requests], add_generation_prompt=True)
        answers = self.model.answer(self.processor, inputs, max_new_tokens=max_new_tokens, **generation)
        texts, states = [answer.text for answer in answers], [answer.states for answer in answers]
        predictions = self._predict(requests, texts, states, video_mode)
        return predictions if isinstance(text, list) else predictions[0]

    @torch.no_grad()
    def segment(
        self,
        image: Picture | list[Picture | None] | None = None,
        video: Any = None,
        text: str | list[str] | None = None,
        answer: str | list[str] | None = None,
        regions: Sequence[np.ndarray] | list[Sequence[np.ndarray] | None] | None = None,
        history: History | list[History | None] | None = None,
        num_frames: int | None = None,
        video_mode: str | None = None,
    ) -> Prediction | list[Prediction]:
        """The masks of a given answer ("Sure, [SEG]."): nothing is generated. Else as calling the predictor."""
        requests = self._requests(image, video, text, regions, history, num_frames, video_mode)
        answers = _texts("answer", answer, text)
        chats = [request.messages(reply) for request, reply in zip(requests, answers, strict=True)]
        inputs = self._inputs(chats, add_generation_prompt=False)
        states = self.model.seg_states(inputs, [reply.count(SEG_TOKEN) for reply in answers])
        predictions = self._predict(requests, [reply.strip() for reply in answers], states, video_mode)
        return predictions if isinstance(text, list) else predictions[0]

    # ---------------------------------------------------------------- questions -> tensors
    def _requests(
        self,
        image: Any,
        video: Any,
        text: Any,
        regions: Any,
        history: Any,
        num_frames: int | None,
        video_mode: str | None,
    ) -> list[_Request]:
        questions = _texts("text", text, text)
        given = {"image": image, "video": video, "regions": regions, "history": history}
        columns = [_listed(name, values, text) for name, values in given.items()]
        choose = get_video_mode(video_mode or self.model.config.video_mode).key_frames
        requests: list[_Request] = []
        opened: dict[Any, Clip] = {}
        for question, *inputs in zip(questions, *columns, strict=True):
            now = _look(*inputs, opened)
            numbers = choose(len(now.clip), num_frames or self.num_frames) if now.is_video else []
            requests.append(_Request(now, question, numbers))
        return requests

    def _inputs(self, chats: list[list[dict[str, Any]]], add_generation_prompt: bool) -> dict[str, Tensor]:
        inputs = self.processor.apply_chat_template(chats, add_generation_prompt=add_generation_prompt, padding=True)
        drawn_from = ("grounding_pixel_values", "num_frames")  # SAM 2 gets all frames, one by one, later
        return {name: value.to(self.model.device) for name, value in inputs.items() if name not in drawn_from}

    # ---------------------------------------------------------------- states -> masks
    def _predict(
        self, requests: list[_Request], texts: list[str], states: list[Tensor], video_mode: str | None
    ) -> list[Prediction]:
        clips, key_frames = [r.history.clip for r in requests], [r.key_frames for r in requests]
        drawings = self.model.predict_clips(self.processor, clips, key_frames, states, video_mode)
        predictions = []
        for request, text, drawn in zip(requests, texts, drawings, strict=True):
            history = replace(request.history, turns=(*request.history.turns, (request.text, text)))
            boxes = boxes_of(drawn.masks)
            predictions.append(Prediction(text, drawn.masks, boxes, drawn.scores, history, drawn.logits))
        return predictions


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of bool masks (..., H, W) -> float32 (..., 4): xyxy, x1 and y1 exclusive, NaN for an empty mask."""
    if not masks.size:
        return np.full((*masks.shape[:-2], 4), np.nan, dtype=np.float32)
    columns, rows = masks.any(-2), masks.any(-1)
    x0, y0 = columns.argmax(-1), rows.argmax(-1)
    x1 = columns.shape[-1] - columns[..., ::-1].argmax(-1)
    y1 = rows.shape[-1] - rows[..., ::-1].argmax(-1)
    boxes = np.stack([x0, y0, x1, y1], axis=-1).astype(np.float32)
    boxes[~columns.any(-1)] = np.nan
    return boxes


def _listed(name: str, values: Any, text: Any) -> list[Any]:
    """One value per question: where `text` is a list (a batch), values are None or a list as long."""
    if not isinstance(text, list):
        return [values]
    if values is None:
        return [None] * len(text)
    if not isinstance(values, list) or len(values) != len(text):
        got = f"a list of {len(values)}" if isinstance(values, list) else type(values).__name__
        raise ValueError(
            f"{name}: text is a list of {len(text)}, so expected None or a list of {len(text)}, got {got}"
        )
    return values


def _texts(name: str, values: Any, text: Any) -> list[str]:
    values = _listed(name, values, text)
    wrong = [value for value in values if not isinstance(value, str) or not value.strip()]
    if wrong or not values:
        raise ValueError(f"{name}: expected a text that is not empty (or a list of them), got {wrong or values}")
    return values


def _look(image: Any, video: Any, regions: Any, history: History | None, opened: dict[Any, Clip]) -> History:
    """What one question looks at. opened: what others of the batch look at."""
    if sum(source is not None for source in (image, video)) + (history is not None and history.clip is not None) > 1:
        raise ValueError("give one of image, video, or a history that has one (it brings its own along)")
    history = history or History()
    if image is not None:
        history = replace(history, clip=_open([image], ("image", _same(image)), opened))
    elif video is not None:
        history = replace(history, clip=_open(video, ("video", _same(video)), opened), is_video=True)
    regions = () if regions is None else tuple(regions)
    wrong = [np.shape(mask) for mask in regions if np.ndim(mask) != 2]
    if wrong:
        raise ValueError(f"regions: expected a list of masks (H, W), got the shapes {wrong[:3]}")
    return replace(history, regions=history.regions + regions)


def _same(source: Any) -> Any:
    """Equal for one path, and for one object."""
    return source if isinstance(source, str | Path) else id(source)


def _open(source: Any, key: Any, opened: dict[Any, Clip]) -> Clip:
    if key not in opened:
        opened[key] = Clip(source)
    return opened[key]


__all__ = ["History", "Prediction", "Sa2VAPredictor", "boxes_of"]
