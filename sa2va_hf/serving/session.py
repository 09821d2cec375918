"""From checked questions to a predictor's answers, and from answers to JSON. What knows the predictor is here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from sa2va_hf.inference import History, Prediction, Sa2VAPredictor, boxes_of
from sa2va_hf.masks import encode
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN
from sa2va_hf.serving.limits import Limits, Refused, object_bytes
from sa2va_hf.serving.media import Region, Video, Visual
from sa2va_hf.streaming import MaskStream

# "<p> dog </p> [SEG]"; small models forget the end mark
PARTS = re.compile(rf"(<p>.*?(?:</p>|(?={re.escape(SEG_TOKEN)}))|{re.escape(SEG_TOKEN)})", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One question of a conversation. The image is not decoded yet; regions and sizes are checked.

    Args:
        turns: (question, answer) pairs before this one.
        max_objects: how many [SEG] the answer may have, from `Limits.objects`.
    """

    text: str
    turns: tuple[tuple[str, str], ...] = ()
    visual: Visual | None = None
    regions: tuple[Region, ...] = ()
    max_new_tokens: int = 512
    max_objects: int = 16
    temperature: float = 0.0
    top_p: float = 1.0

    def bytes(self, cells: int) -> int:
        """Memory that it may take while it is answered; `cells` of a mask's logits."""
        if self.visual is None:
            return 0
        pixels = self.visual.size[0] * self.visual.size[1]
        return pixels * (3 + len(self.regions)) + self.max_objects * object_bytes(pixels, cells)

    @property
    def is_video(self) -> bool:
        return isinstance(self.visual, Video)

    def open(self) -> Opened:
        """Decode what it looks at. `Refused` when that is damaged."""
        if self.visual is None:
            return Opened(self)
        masks = [region.mask(self.visual.size) for region in self.regions]
        return Opened(self, self.visual.open(), masks)


@dataclass(frozen=True)
class Opened:
    """A question with its pixels: an image, a video or None, and a mask (H, W) per region."""

    question: Question
    pixels: Any = None
    regions: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Frame:
    """The masks of one frame of a video, as `masks_json` writes them, with the score that they have on this frame."""

    index: int
    masks: list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What ends a question. Masks of an image are in `prediction`; those of a video came before, as `Frame`s.

    Args:
        objects: how many have masks. tokens: of the answer; prompt_tokens: of what the LLM read before it.
        finish_reason: "stop", or "length" when the limit of tokens, of [SEG] or of bytes ended it.
    """

    text: str
    objects: int
    tokens: int
    prompt_tokens: int
    finish_reason: str
    prediction: Prediction | None = None

    def masks(self, frames: Sequence[Frame] = ()) -> list[dict[str, Any]]:
        """As `masks_json`; frames: those that came before."""
        return _together(frames) if self.prediction is None else masks_json(self.prediction)


def make_question(
    limits: Limits, cells: int, visual: Visual | None = None, regions: Sequence[Region] = (), **fields: Any
) -> Question:
    """A question that fits the limits. `Refused` when it does not; `cells` of a mask's logits."""
    if regions and (visual is None or isinstance(visual, Video)):
        raise Refused(422, "invalid_region", "region: region prompts are of an image, and there is none")
    if len(regions) > limits.max_regions:
        raise Refused(413, "too_large", f"{len(regions)} regions; this server takes {limits.max_regions}")
    turns = fields.get("turns", ())
    characters = len(fields["text"]) + sum(len(text) for turn in turns for text in turn)
    if characters > limits.max_text:
        raise Refused(413, "too_large", f"{characters} characters of text; this server takes {limits.max_text}")
    objects = limits.max_objects
    if visual is not None:
        width, height = visual.size
        objects = limits.objects(width * height, cells, len(regions))
    for region in regions:
        region.check(visual.size)
    return Question(visual=visual, regions=tuple(regions), max_objects=objects, **fields)


# -------------------------------------------------------------------- asking
class Watcher(StoppingCriteria):
    """What happens while a batch is generated: text goes out as it is written; a row ends at its own limits.

    A criterion and no streamer: `generate` tells a streamer of a token a step late, and asks a criterion at once.

    Args:
        questions: one per row of the batch.
        tell: called with (row, the answer so far). gone: whether nobody waits for the answer of a row any more.
    """

    def __init__(
        self,
        predictor: Sa2VAPredictor,
        questions: Sequence[Question],
        tell: Callable[[int, str], None] = lambda row, text: None,
        gone: Callable[[int], bool] = lambda row: False,
    ) -> None:
        self._processor, self._questions, self._tell, self._gone = predictor.processor, questions, tell, gone
        self._stops, self._stop_strings = set(predictor.processor.stop_ids), predictor.processor.stop_strings
        self.ids: list[list[int]] = [[] for _ in questions]
        self._ended = [False for _ in questions]
        self.cut = [False for _ in questions]

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """`generate` calls this with the tokens (B, length) so far: which rows end here, bool (B,)."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._ended[row]:
                self._read(row, token)
        return torch.tensor(self._ended, device=input_ids.device)

    def _read(self, row: int, token: int) -> None:
        if token in self._stops:
            self._ended[row] = True
            return
        self.ids[row].append(token)
        self._say(row)
        self._ended[row] = self.cut[row] = self._is_over(row, self._questions[row])

    def _is_over(self, row: int, question: Question) -> bool:
        ids = self.ids[row]
        objects = ids.count(self._processor.seg_token_id)
        return len(ids) >= question.max_new_tokens or objects >= question.max_objects or self._gone(row)

    def _say(self, row: int) -> None:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = self._processor.decode(self.ids[row], **options).strip()  # the answer has no space at its ends
        if not text.endswith("\ufffd") and not any(_may_begin(word, text) for word in self._stop_strings):
            self._tell(row, text)


def _may_begin(word: str, text: str) -> bool:
    """Whether `text` holds `word`, or ends with what may become it."""
    return word in text or any(text.endswith(word[:length]) for length in range(1, len(word)))


def ask(predictor: Sa2VAPredictor, asked: Sequence[Opened], watcher: Watcher) -> list[Answer]:
    """Answer questions of one `temperature` and `top_p` as a batch; none is about a video."""
    questions = [opened.question for opened in asked]
    predictions = predictor(
        image=[opened.pixels for opened in asked],
        text=[question.text for question in questions],
        regions=[opened.regions or None for opened in asked],
        history=[History(turns=question.turns) for question in questions],
        max_new_tokens=max(question.max_new_tokens for question in questions),
        max_objects=max(question.max_objects for question in questions),
        **_generation(questions[0], watcher),
    )
    return [
        Answer(found.text, len(found.scores), len(ids), found.prompt_tokens, "length" if cut else "stop", found)
        for found, ids, cut in zip(predictions, watcher.ids, watcher.cut, strict=True)
    ]


def begin(predictor: Sa2VAPredictor, opened: Opened, watcher: Watcher) -> MaskStream:
    """The text of an answer about a video; its masks are predicted as they are read (`frames_of`)."""
    question = opened.question
    return predictor.stream(
        video=opened.pixels,
        text=question.text,
        history=History(turns=question.turns),
        max_new_tokens=question.max_new_tokens,
        max_objects=question.max_objects,
        **_generation(question, watcher),
    )


def frames_of(stream: MaskStream) -> Iterator[Frame]:
    """The masks of a stream, frame by frame."""
    phrases = phrases_of(stream.text)
    for index, masks, scores in stream:
        found = zip(masks, boxes_of(masks), scores, strict=True)
        yield Frame(index, [_entry(row, phrases[row], index, *one) for row, one in enumerate(found)])


def _generation(question: Question, watcher: Watcher) -> dict[str, Any]:
    options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([watcher])}
    if question.temperature > 0:
        options |= {"do_sample": True, "temperature": question.temperature, "top_p": question.top_p}
    return options


def logit_cells(predictor: Sa2VAPredictor) -> int:
    """Of a mask's logits, which are kept beside the mask."""
    return predictor.model.grounding_encoder.mask_size**2


# -------------------------------------------------------------------- telling
def phrases_of(text: str) -> list[str | None]:
    """The phrase of every [SEG] of an answer: the <p> before it, with no word between; None where there is none.

    Several [SEG] in a row share their phrase.
    """
    phrases, current = [], None
    for part in PARTS.split(text):
        if part == SEG_TOKEN:
            phrases.append(current)
        elif part.startswith("<p>"):
            current = part.removeprefix("<p>").removesuffix("</p>").strip()
        elif part.replace(",", " ").replace(" and ", " ").strip():
            current = None
    return phrases


def masks_json(prediction: Prediction) -> list[dict[str, Any]]:
    """One entry per [SEG] and frame, in this order.

    index: of the [SEG] in the answer. phrase: or null. frame: 0 for an image. rle: COCO's compressed form. bbox: as
    COCO writes it, [x, y, width, height] in pixels; null where the mask is empty. score: 0..1, the IoU that SAM 2
    expects of the object, the same on all its frames. size: [height, width].
    """
    phrases, entries = phrases_of(prediction.text), []
    for frame in range(prediction.boxes.shape[1]):
        for index, mask in enumerate(prediction.frame(frame)):
            known = prediction.boxes[index, frame], prediction.scores[index]
            entries.append(_entry(index, phrases[index], frame, mask, *known))
    return sorted(entries, key=lambda entry: entry["index"])


def _entry(
    index: int, phrase: str | None, frame: int, mask: np.ndarray, box: np.ndarray, score: float
) -> dict[str, Any]:
    entry = {"index": index, "phrase": phrase, "frame": frame, "rle": encode(mask), "bbox": _coco_box(box)}
    return entry | {"score": round(float(score), 4), "size": list(mask.shape)}


def _together(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """The masks of frames in the order of `masks_json`, with the mean score of each object."""
    scores: dict[int, list[float]] = {}
    for frame in frames:
        for entry in frame.masks:
            scores.setdefault(entry["index"], []).append(entry["score"])
    means = {index: round(sum(of_object) / len(of_object), 4) for index, of_object in scores.items()}
    entries = [entry | {"score": means[entry["index"]]} for frame in frames for entry in frame.masks]
    return sorted(entries, key=lambda entry: entry["index"])


def _coco_box(box: np.ndarray) -> list[float] | None:
    if np.isnan(box).any():
        return None
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
