"""Benchmarks whose answer is text: grounded captions (GCG), captions of regions, multiple choice (V*Bench)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from sa2va_hf import masks
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Sample
from sa2va_hf.evaluation.boxes import choice_accuracy
from sa2va_hf.evaluation.captions import GroundedCaptions, caption_scores, phrase_similarity
from sa2va_hf.evaluation.items import Answer, Item, Settings, checked_mask, percent
from sa2va_hf.evaluation.searching import focus, search_figures
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

# As released (sa2va_eval_gcg.py, region_cap_refcocog_eval.py); the five spaces come from a line continued there
GCG_PROMPT = (
    "<image>\nCould you please give me a brief description of the image? Please respond with interleaved     "
    "segmentation masks for the corresponding parts of the answer."
)
REGION_PROMPT = "<image>\nPlease give me a short description of the region in the picture marked by region1."
CHOICE_PROMPT = "<image>\n{}"
REGION_CLEANED = ("region1", "Region1", "The region marked by", "The region marked as", "The region marked")
REGION_CLEANED += ("is", "shows", ":")


class _Describing:
    """A task whose answer is generated text: the mode "teacher" and the baselines do not apply."""

    prompts: tuple[str, ...]

    def record(self, settings: Settings) -> dict[str, Any]:
        if settings.mode != "generate" or settings.baseline is not None:
            raise ValueError("this benchmark scores generated text: mode 'teacher' and baselines do not apply")
        return {"prompts": list(self.prompts)}


class GroundedCaption(_Describing):
    """GCG: a caption whose phrases are followed by masks. `Sample.turns[0]` is the true one: answer and targets."""

    prompts = (GCG_PROMPT,)

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        targets = tuple(range(len(sample.objects)))
        yield Item(sample.id, sample, GCG_PROMPT, targets=targets, right=sample.turns[0].answer)

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        images = [load_frames(item.sample, [0])[0] for item in items]
        texts = [item.question for item in items]
        predictions = predictor(image=images, text=texts, max_new_tokens=settings.max_new_tokens)
        answers = [Answer(said.text, said.to_rle(), {"scores": said.scores.tolist()}) for said in predictions]
        return self.with_likeness(items, answers, settings)

    def with_likeness(self, items: Sequence[Item], answers: list[Answer], settings: Settings) -> list[Answer]:
        """The answers with the similarity of predicted and reference phrases, if there is a `text_encoder`."""
        if settings.text_encoder is None:
            return answers
        embed = text_encoder(settings.text_encoder)
        for item, answer in zip(items, answers, strict=True):
            phrases, true = phrases_of(answer.text), [one.category or "" for one in item.sample.objects]
            answer.more["similarities"] = phrase_similarity(embed, phrases, true).tolist()
        return answers

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        true = item.truth(0)
        predicted = [checked_mask(track, item, 0) for track in answer.masks]
        ious = [[masks.iou(mask, target) for target in true] for mask in predicted]
        best = np.array(ious).reshape(-1, len(true)).max(0, initial=0.0)
        return {"score": float(best.mean()) if len(true) else float(not predicted), "ious": ious}

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        scores = GroundedCaptions()
        for item, answer in zip(items, answers, strict=True):
            alike = answer.more.get("similarities")
            if alike is not None:
                alike = np.array(alike).reshape(len(phrases_of(answer.text)), len(item.targets))
            ious = np.array(answer.figures["ious"]).reshape(len(answer.masks), len(item.targets))
            scores.add(item.key, ious, alike)
        found: dict[str, Any] = {"captions": len(items)} | percent(scores.result())
        if "recall" not in found:
            found["recall_missing"] = "comparing phrases needs --text_encoder, a folder of bert-base-uncased"
        true = {item.key: [item.sample.turns[0].answer] for item in items}
        said = {item.key: clean_caption(answer.text) for item, answer in zip(items, answers, strict=True)}
        return found | _caption_figures(true, said)


class RegionCaption(_Describing):
    """A region is shown as a mask and described once; each expression that means it alone (RefCOCOg) is the one
    reference of a pair, as in the published annotation file, which has an entry per sentence."""

    prompts = (REGION_PROMPT,)

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        for number in range(len(sample.objects)):
            references = [one.text for one in sample.expressions if one.targets == [number]]
            if references:
                how = {"more": {"references": references}, "right": " / ".join(references), "draws": False}
                yield Item(f"{sample.id}/{number}", sample, REGION_PROMPT, targets=(number,), **how)

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for index, item in enumerate(items):
            try:
                predictor.processor.check_region(item.truth(0)[0])
            except ValueError as error:  # a region too small for the model's grid: it is counted, with no caption
                answers[index] = Answer("", more={"unanswered": str(error)})
        if asked := [index for index in range(len(items)) if index not in answers]:
            given = {"image": [load_frames(items[index].sample, [0])[0] for index in asked]}
            given |= {"text": [items[index].question for index in asked]}
            given |= {"regions": [list(items[index].truth(0)) for index in asked]}
            said = predictor(**given, max_new_tokens=settings.max_new_tokens)
            answers |= {index: Answer(one.text) for index, one in zip(asked, said, strict=True)}
        return [answers[index] for index in range(len(items))]

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        words = set(clean_region_caption(answer.text).lower().split())
        shared = [
            len(words & set(text.lower().split())) / len(words | set(text.lower().split())) for text in _texts(item)
        ]
        return {"score": max(shared)}  # only to find the worst and the best ones

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        true, said = {}, {}
        for item, answer in zip(items, answers, strict=True):
            for number, text in enumerate(_texts(item)):
                true[f"{item.key}/{number}"] = [text]
                said[f"{item.key}/{number}"] = clean_region_caption(answer.text)
        unanswered = sum("unanswered" in answer.more for answer in answers)
        counts = {"regions": len(items), "sentences": len(true), "unanswered": unanswered}
        return counts | _caption_figures(true, said)


class Choice(_Describing):
    """V*Bench: the model chooses the option with the lowest mean cross-entropy per token; the first one is right.

    If another option has the same cross-entropy as the first one, the answer counts as wrong.
    """

    prompts = (CHOICE_PROMPT,)

    def items(self, sample: Sample, settings: Settings) -> Iterator[Item]:
        options = [turn.answer for turn in sample.turns]
        question = CHOICE_PROMPT.format(sample.turns[0].question)
        how = {"more": {"options": options}, "right": options[0], "draws": False}
        yield Item(sample.id, sample, question, sample.id.split("/")[0], **how)

    def ask(self, predictor: Sa2VAPredictor, items: Sequence[Item], settings: Settings) -> list[Answer]:
        answers = []
        for item in items:
            picture, question, more = load_frames(item.sample, [0])[0], item.question, {}
            if settings.search:
                targets = [one.category for one in item.sample.objects]
                picture, question, more["search"] = focus(predictor, picture, question, targets)
            options = item.more["options"]
            losses = [answer_loss(predictor, picture, question, option) for option in options]
            answers.append(Answer(options[int(np.argmin(losses))], more=more | {"losses": losses}))
        return answers

    def score(self, item: Item, answer: Answer) -> dict[str, Any]:
        if "losses" not in answer.more:
            raise ValueError(
                f"more: expected 'losses' with a value for each of the {len(item.more['options'])} options, got "
                f"the keys {sorted(answer.more)}"
            )
        first, *others = answer.more["losses"]
        return {"score": float(first < min(others)), "right": first < min(others)}

    def summarize(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
        pairs = [(item.kind, answer.figures["right"]) for item, answer in zip(items, answers, strict=True)]
        records = [answer.more.get("search", []) for answer in answers]
        searched = search_figures([item.sample for item in items], records)
        return {"questions": len(items)} | percent(choice_accuracy(pairs)) | searched


@torch.no_grad()
def answer_loss(predictor: Sa2VAPredictor, picture: Any, question: str, answer: str) -> float:
    """Mean cross-entropy of the tokens of an answer, with its stop string, to a question about an image."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    inputs = predictor.processor.apply_chat_template(chat, add_generation_prompt=False, return_labels=True)
    inputs = {name: value for name, value in inputs.items() if name not in ("grounding_pixel_values", "num_frames")}
    labels = inputs.pop("labels")[0, 1:].to(predictor.model.device)
    logits = predictor.model(**{name: value.to(predictor.model.device) for name, value in inputs.items()}).logits
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels))


# ---------------------------------------------------------------- texts


def phrases_of(text: str) -> list[str]:
    return [phrase.strip() for phrase in re.findall(r"<p>(.*?)</p>", text.replace("\n", ""))]


def clean_caption(text: str) -> str:
    """The words of a grounded caption: without tags and [SEG]."""
    text = re.sub(r"<.*?>", "", text.replace("\n", "").replace("  ", " ")).replace(SEG_TOKEN, "")
    return " ".join(text.split()).strip("'").strip()


def clean_region_caption(text: str) -> str:
    """The caption without introductory words; as in the released code, anywhere in the text (even "is" in "this")."""
    text = text.replace("\n", "")
    for words in REGION_CLEANED:
        text = text.replace(words, "")
    return clean_caption(text)


def _texts(item: Item) -> list[str]:
    return item.more["references"]


def _caption_figures(true: dict[str, list[str]], said: dict[str, str]) -> dict[str, Any]:
    try:
        return percent(caption_scores(true, said))
    except ImportError as error:
        return {"captions_missing": str(error)}


@lru_cache(maxsize=1)
def text_encoder(folder: str) -> Callable[[Sequence[str]], np.ndarray]:
    """texts -> (n, d): the mean over tokens of the last states of a BERT, as GLaMM compares phrases."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> np.ndarray:
        states = [model(**tokenizer(text, return_tensors="pt", max_length=512, truncation=True)) for text in texts]
        return np.stack([state.last_hidden_state[0].mean(0).double().numpy() for state in states])

    return embed
