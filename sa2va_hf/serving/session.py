"""From checked questions to a predictor's answers, and from answers to JSON. What knows the predictor is here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from sa2va_hf.inference import History, Prediction, Sa2VAPredictor
from sa2va_hf.masks import encode
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN
from sa2va_hf.serving.limits import Limits, Refused, object_bytes
from sa2va_hf.serving.media import Region, Video, Visual

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
        width, height = self.visual.size
        return width * height * (3 + len(self.regions)) + self.max_objects * object_bytes(
            self.visual.frames, width * height, cells
        )

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
class Answer:
    """finish_reason: "stop", or "length" when the limit of tokens or of [SEG] ended it."""

    prediction: Prediction
    tokens: int
    finish_reason: str

    @property
    def text(self) -> str:
        return self.prediction.text


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
        objects = limits.objects(visual.frames, width * height, cells, len(regions))
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
    """Answer questions of one `temperature` and `top_p` as a batch."""
    questions = [opened.question for opened in asked]
    options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([watcher])}
    if questions[0].temperature > 0:
        options |= {"do_sample": True, "temperature": questions[0].temperature, "top_p": questions[0].top_p}
    moving = [isinstance(question.visual, Video) for question in questions]
    predictions = predictor(
        image=[None if video else opened.pixels for opened, video in zip(asked, moving, strict=True)],
        video=[opened.pixels if video else None for opened, video in zip(asked, moving, strict=True)],
        text=[question.text for question in questions],
        regions=[opened.regions or None for opened in asked],
        history=[History(turns=question.turns) for question in questions],
        max_new_tokens=max(question.max_new_tokens for question in questions),
        max_objects=max(question.max_objects for question in questions),
        **options,
    )
    return [
        Answer(prediction, len(ids), "length" if cut else "stop")
        for prediction, ids, cut in zip(predictions, watcher.ids, watcher.cut, strict=True)
    ]


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
            entry = {"index": index, "phrase": phrases[index], "frame": frame, "rle": encode(mask)}
            entry["bbox"] = _coco_box(prediction.boxes[index, frame])
            entry["score"] = round(float(prediction.scores[index]), 4)
            entries.append(entry | {"size": list(mask.shape)})
    return sorted(entries, key=lambda entry: entry["index"])


def _coco_box(box: np.ndarray) -> list[float] | None:
    if np.isnan(box).any():
        return None
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
