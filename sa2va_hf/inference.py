"""Image or video and text -> answer and masks, with one object to hold: `Sa2VAPredictor`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sa2va_hf.locating.predictions import locate, segment_boxes
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN
from sa2va_hf.model.frames import check_count
from sa2va_hf.model.modeling_sa2va import Sa2VAForConditionalGeneration
from sa2va_hf.model.processing_sa2va import Sa2VAProcessor
from sa2va_hf.model.video_modes import get_video_mode
from sa2va_hf.model.visuals import Clip
from sa2va_hf.prediction import History, Prediction, boxes_of, packed_boxes
from sa2va_hf.streaming import MaskStream

logger = logging.getLogger(__name__)
Picture = Image.Image | str | Path
HUB_OPTIONS = {"revision", "cache_dir", "token", "subfolder", "local_files_only"}
FOR_SAM2 = ("grounding_pixel_values", "num_frames")  # of a processor's inputs: SAM 2 gets all frames, later
MAX_OBJECTS = 100  # [SEG] of an answer that get masks
DESCRIBE = "Please give me a short description of the region in the picture marked by region1."


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
    """Answers questions about images and clips, with a mask per [SEG] of the answer.

    Args:
        num_frames: how many frames of a clip the LLM reads (5 in training); masks are predicted on all of them.
    """

    def __init__(self, model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, num_frames: int = 5) -> None:
        self.model, self.processor = model.eval(), processor
        self.num_frames = check_count("num_frames", num_frames)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        num_frames: int = 5,
        quantization_config: Any = None,
        device_map: Any = None,
        **options: Any,
    ) -> Sa2VAPredictor:
        """Load a folder or a Hub repository.

        Args:
            device: default CUDA if there is one, else the CPU.
            dtype: default the checkpoint's, but float32 on a CPU.
            num_frames: see the class.
            quantization_config: of transformers, for the LLM; SAM 2 and the projection stay as they are.
            device_map: "auto", or which part goes where; parts may be offloaded to the CPU or to the disk. Not with
                `device`.
            options: further arguments of `from_pretrained`, as `revision` or `offload_folder`.

        Raises:
            ValueError: no GPU where one is asked for, or another kind of model.
        """
        if device_map is not None and device is not None:
            raise ValueError("give device or device_map, not both")
        device = choose_device(device)
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
            device_map = {"": device} if device_map is None else device_map  # some layers cannot be moved later
        elif dtype is None:
            dtype = torch.float32 if device.type == "cpu" else "auto"
        if dtype is not None:
            options["dtype"] = dtype
        if device_map is not None:
            options["device_map"] = device_map
        model = Sa2VAForConditionalGeneration.from_pretrained(path, **options)
        model = model if device_map is not None else model.to(device)
        hub = {name: options[name] for name in HUB_OPTIONS & options.keys()}
        return cls(model, Sa2VAProcessor.from_pretrained(path, **hub), num_frames)

    def compile(self, **options: Any) -> Sa2VAPredictor:
        """Compile the two image encoders, where the time goes, in place; options: those of `torch.compile`.

        The first picture (and the first clip) takes minutes longer, and so does every new number of frames at once:
        with windows of an unknown number the compiler did not end within a quarter of an hour.
        """
        self.model.backbone.vision(self.model.mllm)[0].compile(**options)
        self.model.grounding_encoder.image_encoder.compile(**({"dynamic": False} | options))
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
        max_objects: int | None = None,
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
            max_objects: how many [SEG] of an answer get masks, the first ones. Default: `MAX_OBJECTS`, with a warning
                where there are more.
            generation: further arguments of `generate` (greedy by default).

        Raises:
            ValueError: an argument out of range, or inputs that do not fit each other.
        """
        check_count("max_new_tokens", max_new_tokens)
        requests = self._requests(image, video, text, regions, history, num_frames, video_mode)
        inputs = self._inputs([request.messages() for request in requests], add_generation_prompt=True)
        answers = self.model.answer(self.processor, inputs, max_new_tokens=max_new_tokens, **generation)
        texts, states = [answer.text for answer in answers], [answer.states for answer in answers]
        predictions = self._predict(requests, texts, states, video_mode, max_objects)
        for prediction, answer in zip(predictions, answers, strict=True):
            prediction.prompt_tokens = answer.prompt_tokens
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
        max_objects: int | None = None,
    ) -> Prediction | list[Prediction]:
        """The masks of a given answer ("Sure, [SEG]."): nothing is generated. Else as calling the predictor."""
        requests = self._requests(image, video, text, regions, history, num_frames, video_mode)
        answers = _texts("answer", answer, text)
        chats = [request.messages(reply) for request, reply in zip(requests, answers, strict=True)]
        inputs = self._inputs(chats, add_generation_prompt=False)
        states = self.model.seg_states(inputs, [reply.count(SEG_TOKEN) for reply in answers])
        predictions = self._predict(requests, [reply.strip() for reply in answers], states, video_mode, max_objects)
        return predictions if isinstance(text, list) else predictions[0]

    @torch.no_grad()
    def describe(
        self,
        image: Picture,
        regions: Sequence[np.ndarray],
        text: str = DESCRIBE,
        max_new_tokens: int = 512,
        batch_size: int = 8,
        **generation: Any,
    ) -> list[str]:
        """One caption per region of a picture.

        Args:
            regions: bool masks (H, W); each is asked about by itself, as region1.
            text: the question; default that of the released evaluation of region captions.
            batch_size: regions that the LLM answers together.

        Raises:
            ValueError: no region, or one that the model cannot read (of another size, or below a cell of its grid);
                before any is described.
        """
        clip, captions = Clip([image]), []
        regions = list(regions)
        self._check_regions(regions, clip.size)
        for start in range(0, len(regions), check_count("batch_size", batch_size)):
            asked = [
                _Request(History(clip, regions=(mask,)), text, []) for mask in regions[start : start + batch_size]
            ]
            inputs = self._inputs([request.messages() for request in asked], add_generation_prompt=True)
            answers = self.model.answer(self.processor, inputs, max_new_tokens=max_new_tokens, **generation)
            captions += [answer.text.replace(SEG_TOKEN, "").strip() for answer in answers]
        return captions

    def _check_regions(self, regions: list[np.ndarray], size: tuple[int, int]) -> None:
        """Raises: ValueError naming the mask that is wrong for a picture of `size` (width, height)."""
        if not regions:
            raise ValueError("regions: expected at least one mask (H, W), got none")
        for number, mask in enumerate(regions):
            if np.shape(mask) != size[::-1]:
                raise ValueError(
                    f"regions[{number}]: expected a mask of the picture's (H, W), {size[::-1]}, got {np.shape(mask)}"
                )
            try:
                self.processor.check_region(mask)
            except ValueError as error:
                raise ValueError(f"regions[{number}]: {error}") from error

    @torch.no_grad()
    def stream(
        self,
        video: Any,
        text: str,
        answer: str | None = None,
        max_new_tokens: int = 512,
        num_frames: int | None = None,
        video_mode: str | None = None,
        max_objects: int = MAX_OBJECTS,
        history: History | None = None,
        **generation: Any,
    ) -> MaskStream:
        """The answer about a clip, and its masks frame by frame, in constant memory.

        The answer is there on return; masks of a frame come as soon as SAM 2 has seen it (in the mode "consistent": it
        and the key frames). Arguments as in a call of the predictor; answer: as in `segment`; history: the turns
        before this one, about the same clip.

            for index, masks, scores in predictor.stream(video="clip.mp4", text="Please segment the dog."):
                ...  # bool (objects, H, W), float (objects,)
        """
        limit = check_count("max_objects", max_objects)
        [request] = self._requests(None, video, text, None, history, num_frames, video_mode)
        if not request.history.is_video:
            raise ValueError("video: expected a clip, or a history about one")
        inputs = self._inputs([request.messages(answer)], add_generation_prompt=answer is None)
        read = None
        if answer is None:
            [said] = self.model.answer(self.processor, inputs, max_new_tokens=max_new_tokens, **generation)
            reply, states, read = said.text, said.states, said.prompt_tokens
        else:
            reply = answer.strip()
            [states] = self.model.seg_states(inputs, [answer.count(SEG_TOKEN)])
        clip = request.history.clip
        steps = self.model.stream_clip(self.processor, clip, request.key_frames, states[:limit], video_mode)
        return MaskStream(reply, clip, steps, read)

    def locate(
        self,
        image: Picture | list[Picture | None] | None = None,
        video: Any = None,
        text: str | list[str] = "",
        question: str | None = None,
        masks: bool = False,
        num_frames: int | None = None,
        max_new_tokens: int = 512,
        **generation: Any,
    ) -> Prediction | list[Prediction]:
        """The boxes that the model writes of what a text means, on the frames that it reads.

        A model trained to answer with boxes is asked once; every other one in the form of its family of LLMs, about
        the frames of a clip one by one (see `locating.styles`). What cannot be read is in `Prediction.problems`.

        Args:
            text: what is to be located, "the dog". A list makes a batch, as in a call of the predictor.
            question: how it is asked, with {} in the place of the text; default: the form of the model.
            masks: also predict masks, as `segment_boxes`. Without them a prediction has none.
            num_frames: how many frames of a clip the LLM reads; default the predictor's.
            generation: further arguments of `generate` (greedy by default).

        Returns a prediction whose `boxes` (objects, frames, 4) are those that are written: NaN where an object has
        none, and on frames that were not read. An object is known by its position among the boxes of a frame.

        Raises:
            ValueError: an empty text, not exactly one of image and video, or an LLM whose form is not known.
        """
        texts, images, videos = (
            _texts("text", text, text),
            _listed("image", image, text),
            _listed("video", video, text),
        )
        count = self.num_frames if num_frames is None else num_frames
        asked_for = list(zip(texts, images, videos, strict=True))
        found = locate(self, asked_for, question, masks, count, max_new_tokens=max_new_tokens, **generation)
        return found if isinstance(text, list) else found[0]

    def segment_boxes(self, image: Picture | None = None, video: Any = None, boxes: Any = None) -> Prediction:
        """The masks that SAM 2 makes of boxes, followed through the clip; the LLM is not asked.

        A frame gets its masks from the last frame with boxes up to it, those before the first one from the first. An
        object without a box on a frame with boxes has no mask from there on, until it has a box again.

        Args:
            boxes: {frame index: [x0, y0, x1, y1] in pixels per object, None where it is absent}; of a picture the
                list alone will do. What reaches beyond the picture is cut.

        Raises:
            ValueError: not exactly one of image and video, no boxes, a frame that the clip does not have, or a box
                that is not finite or has no area in the picture.
        """
        return segment_boxes(self, image, video, boxes)

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
        count = self.num_frames if num_frames is None else check_count("num_frames", num_frames)
        requests: list[_Request] = []
        opened: dict[Any, Clip] = {}
        for question, *inputs in zip(questions, *columns, strict=True):
            now = _look(*inputs, opened)
            numbers = choose(len(now.clip), count) if now.is_video else []
            requests.append(_Request(now, question, numbers))
        return requests

    def _inputs(self, chats: list[list[dict[str, Any]]], add_generation_prompt: bool) -> dict[str, Tensor]:
        inputs = self.processor.apply_chat_template(chats, add_generation_prompt=add_generation_prompt, padding=True)
        return {name: value.to(self.model.device) for name, value in inputs.items() if name not in FOR_SAM2}

    # ---------------------------------------------------------------- states -> masks
    def _predict(
        self,
        requests: list[_Request],
        texts: list[str],
        states: list[Tensor],
        video_mode: str | None,
        max_objects: int | None,
    ) -> list[Prediction]:
        limit = MAX_OBJECTS if max_objects is None else check_count("max_objects", max_objects)
        if max_objects is None and (most := max(map(len, states))) > limit:
            logger.warning("an answer has %d [SEG]; the first %d get masks (max_objects)", most, limit)
        clips, key_frames = [r.history.clip for r in requests], [r.key_frames for r in requests]
        states = [state[:limit] for state in states]
        found = self.model.predict_clips(self.processor, clips, key_frames, states, video_mode)
        predictions = []
        for request, text, masks in zip(requests, texts, found, strict=True):
            history = replace(request.history, turns=(*request.history.turns, (request.text, text)))
            boxes = packed_boxes(masks.masks)
            ious, present = masks.scores.T
            prediction = Prediction(text, masks.masks, boxes, ious, history, masks.logits, object_scores=present)
            predictions.append(prediction)
        return predictions


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; default CUDA if there is one, else the CPU.

    Raises: ValueError for a name that torch does not know, or a GPU where there is none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:INDEX', got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} is asked for, but torch finds no GPU; use 'cpu'")
    return chosen


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
