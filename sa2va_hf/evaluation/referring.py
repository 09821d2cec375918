"""Referring segmentation benchmarks: the mask of an expression in an image or a clip, one question per expression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.media import Frames
from sa2va_hf.data.schema import Expression, Sample
from sa2va_hf.evaluation import video_conventions
from sa2va_hf.evaluation.box_baseline import ask_for_boxes, box_prompt
from sa2va_hf.evaluation.items import POSITIONS, Answer, Item, Settings, encode_tracks, percent
from sa2va_hf.evaluation.metrics import CumulativeIoU, GeneralizedIoU, intersection_union, mean, ratio
from sa2va_hf.inference import Prediction, Sa2VAPredictor
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

# As released, spaces and all (Sa2VA projects/sa2va/evaluation: dataset/RES.py, dataset/refVOS.py)
PICTURE_PROMPT = "<image>\n Please segment {} in this image."
CLIP_PROMPT = "<image>\nPlease segment {}."
QUESTION_PROMPT = "<image>\n {} Please respond with a segmentation mask."
SHAPES_PROMPT = "Please segment {}."
GIVEN_ANSWER = f"Sure, {SEG_TOKEN}."  # of mode "teacher"

ALL = "all"


def picture_prompt(expression: Expression) -> str:
    return PICTURE_PROMPT


def clip_prompt(expression: Expression) -> str:
    """Questions are asked as they are."""
    return QUESTION_PROMPT if "?" in expression.text else CLIP_PROMPT


def reasoning_prompt(expression: Expression) -> str:
    """Sentences, which are usually questions, are asked as they are; phrases are put into the template of images."""
    return QUESTION_PROMPT if expression.kind == "sentence" else PICTURE_PROMPT


def shapes_prompt(expression: Expression) -> str:
    return SHAPES_PROMPT


@dataclass(frozen=True)
class Referring:
    """One question per expression.

    prompt: the template of an expression. prompts: all that it may return, for the record. first_expression: only one
    per sample (LISA's ReasonSeg). summary: figures from (kind, per frame figures) of clips. In a picture the masks of
    all [SEG] are one, in a clip only the first one counts; both as released. absent_clips: expressions of clips may
    mean nothing, and whether that was understood has figures of its own (MeViS's second version).
    """

    prompt: Callable[[Expression], str]
    prompts: tuple[str, ...]
    first_expression: bool = False
    no_target: bool = False
    robustness: bool = False
    absent_clips: bool = False
    summary: Callable[[Sequence[tuple[str, Mapping[str, np.ndarray]]]], dict[str, Any]] = field(
        default=lambda rows: video_conventions.summarize_mevis(scores for _, scores in rows)
    )

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        expressions = sample.expressions[: 1 if self.first_expression else None]
        for number, expression in enumerate(expressions):
            prompt = box_prompt(settings) if settings.baseline == "box" else self.prompt(expression)
            question = prompt.format(expression.text)
            yield Item(f"{sample.id}/{number}", sample, question, expression.kind, tuple(expression.targets))

    def record(self, settings: Settings) -> dict[str, Any]:
        """What the questions were, for metrics.json."""
        if settings.baseline in POSITIONS:
            raise ValueError(f"--baseline {settings.baseline} is of boxes: give --answer_with boxes")
        prompts = (box_prompt(settings),) if settings.baseline == "box" else self.prompts
        return {"prompts": list(prompts)} | ({"answer": GIVEN_ANSWER} if settings.mode == "teacher" else {})

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        """The figures of items that are all images or all clips."""
        if settings.baseline == "box":
            return ask_for_boxes(predictor, items, settings)
        clips = items[0].sample.num_frames > 1
        frames = {item.media: Frames(item.sample) for item in items}
        shown = {media: found if clips else found[0] for media, found in frames.items()}
        given: dict[str, Any] = {"video" if clips else "image": [shown[item.media] for item in items]}
        given |= {"text": [item.question for item in items]}
        given |= {"num_frames": settings.num_frames, "video_mode": settings.video_mode}
        if clips:
            given["max_objects"] = 1  # no more of them count
        if settings.mode == "teacher":
            predictions = predictor.segment(**given, answer=[GIVEN_ANSWER] * len(items))
        else:
            predictions = predictor(**given, max_new_tokens=settings.max_new_tokens)
        return [_answer(prediction, clips) for prediction in predictions]

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        sample = item.sample
        said = answer.more.get("said", bool(answer.masks))
        if sample.num_frames == 1:
            ignore = masks.decode(sample.ignore[0]) if sample.ignore and sample.ignore[0] else None
            target = item.truth(0).any(0)
            counts = [int(count) for count in intersection_union(answer.mask(item, 0), target, ignore)]
            empty = {"nothing_true": not item.targets, "nothing_said": not answer.mask(item, 0).any()}
            return {"score": float(ratio(*counts)), "counts": counts, "said": said} | empty
        frames = range(len(sample.annotated))
        drawn: list[bool] = []
        predictions = (_noted(answer.mask(item, sample.annotated[place]), drawn) for place in frames)
        around = (_foreground(sample, place) for place in frames) if self.robustness else None
        found = video_conventions.expression(predictions, map(item.truth, frames), around)
        rows = {name: values.tolist() for name, values in found.items()}
        empty = {"nothing_true": not item.targets, "nothing_said": not any(drawn)} if self.absent_clips else {}
        return {"score": (mean(rows["J"]) + mean(rows["F"])) / 2, "frames": rows, "said": said} | empty

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        """Figures of images ("cIoU", ...) and of clips ("J&F", ...), per kind of expression where there are kinds."""
        both = len({item.sample.num_frames > 1 for item in items}) > 1
        groups: dict[str, list[tuple[Item, dict]]] = defaultdict(list)
        for item, answer in zip(items, answers, strict=True):
            for name in _groups(item, both):
                groups[name].append((item, answer.figures))
        found = {name: self._figures(groups[name], name == ALL) for name in sorted(groups)}
        return found.pop(ALL) | ({"by_kind": found} if found else {})

    def _figures(self, group: Sequence[tuple[Item, dict]], every: bool) -> dict[str, Any]:
        """The figures of a group of expressions. every: the group is the whole benchmark, which may have its own
        summary."""
        found: dict[str, Any] = {"expressions": len(group)} | percent(_emission(group))
        if pictures := [figures for _, figures in group if "counts" in figures]:
            found |= self._pictures(pictures)
        if clips := [(item.kind, arrays(figures["frames"])) for item, figures in group if "frames" in figures]:
            found |= self.summary(clips) if every else video_conventions.summarize_mevis(rows for _, rows in clips)
        if self.absent_clips and every:
            found |= _absence([figures for _, figures in group], found["J&F"])
        return found

    def _pictures(self, rows: Sequence[dict]) -> dict[str, float]:
        if self.no_target:
            scores = GeneralizedIoU()
            for row in rows:
                scores.add_counts(*row["counts"], row["nothing_true"], row["nothing_said"])
            return percent(scores.result())
        sums = CumulativeIoU()
        for row in rows:
            sums.add_counts(*row["counts"])
        return percent(sums.result())


def _absence(rows: Sequence[Mapping[str, Any]], total: float) -> dict[str, Any]:
    """Figures of expressions that may mean nothing, in percent: N_acc and T_acc, the shares of those without and with
    a target that were answered with an empty and a drawn mask; the mean of both and J&F, `total`; and J&F of those
    with a target alone."""
    without, having = ([row for row in rows if row["nothing_true"] == absent] for absent in (True, False))
    found: dict[str, Any] = {}
    if without:
        found["N_acc"] = 100 * mean(row["nothing_said"] for row in without)
    if having:
        found["T_acc"] = 100 * mean(not row["nothing_said"] for row in having)
        of_targets = video_conventions.summarize_mevis(arrays(row["frames"]) for row in having)
        found["any with a target"] = {"expressions": len(having)} | of_targets
    if without and having:
        found["total"] = mean((total, found["N_acc"], found["T_acc"]))
    return found


def _noted(mask: np.ndarray, drawn: list[bool]) -> np.ndarray:
    """The mask; whether it has a pixel is added to `drawn`."""
    drawn.append(bool(mask.any()))
    return mask


def _groups(item: Item, both: bool) -> Iterator[str]:
    """The groups that an expression is counted in. both: the benchmark has images and clips, kept apart by kind."""
    medium = ("clips, " if item.sample.num_frames > 1 else "pictures, ") if both else ""
    yield ALL
    if item.kind:
        yield medium + item.kind
    if both and item.targets:
        yield medium + "any with a target"


def arrays(rows: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in rows.items()}


def _answer(prediction: Prediction, clip: bool) -> Answer:
    if clip:
        return Answer(prediction.text, prediction.to_rle()[:1])
    found = prediction.masks
    return Answer(prediction.text, encode_tracks(found.any(0, keepdims=True)[: len(found)]))


def _emission(group: Sequence[tuple[Item, dict]]) -> dict[str, float]:
    """Shares of the expressions with a target that are answered with [SEG], and of those without that are not."""
    found = {}
    for name, wanted in (("emission", True), ("silence", False)):
        rows = [figures["said"] == wanted for item, figures in group if bool(item.targets) == wanted]
        if rows:
            found[name] = mean(rows)
    return found


def _foreground(sample: Sample, place: int) -> np.ndarray:
    """The union of the targets of all expressions of the clip, as ReVOS's mask_dict_foreground."""
    used = {target for expression in sample.expressions for target in expression.targets}
    item = Item("", sample, "", targets=tuple(sorted(used)))
    return item.truth(place).any(0)
