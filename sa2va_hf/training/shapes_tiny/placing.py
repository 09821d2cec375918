"""Lesson on boxes as text: the LLM on visual tokens that were computed once.

What a box costs is mostly its digits, and of those the first of each number decides. So the loss weighs them by what
they are worth, and attention heads are asked to look at the target while its numbers are written (`pointing.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...boxes import CLOSE, NEXT, OPEN, SEPARATOR, SINGLE_IMAGE, mention, switch_frames, write
from ...data.prompts.box_templates import box_answer, box_question
from ...model.configuration_sa2va import IGNORE_INDEX
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .chats import NAMING, Chat
from .lesson import Lesson
from .places import Asked, Place, placed_scenes
from .pointing import Look, Pointing
from .seen import seen_file
from .threads import Rows, Thread, ThreadWriter, read

KINDS = {"attribute": 3, "several": 1, "ordinal": 2, "relation": 2, "motion": 2, "no_target": 1}
KINDS |= {"absolute": 2, "relative": 2, "switch": 2}
DIGITS = (1.0, 0.6, 0.3, 0.3)  # weights of the decimals of a number; the last ones hold the form together
VARIANCE = 0.06  # of a corner, about
TEXT, FIRST, FRAME = 0.4, 0.5, 0.5  # of other tokens of an answer, its first one, the first one of a frame


@dataclass
class Written:
    """One box of an answer, or <no_box>: its tokens are start..end of the conversation's, the first decimals of its
    numbers are at `numbers`."""

    frame: int
    box: int
    start: int
    end: int
    numbers: list[int]


class Placing(Lesson):
    """See the module.

    Args:
        pictures, clips: scenes that are looked at once. batch, clip_batch: those of a step; every `clip_every`-th step
            is one of clips, 0 never. questions, clip_questions: expressions of a scene that a step asks for.
        objects: least and most shapes in a scene. kinds: how often each kind of expression is asked for.
        wordings: share of the questions that are worded by any template; the others are as inference asks.
        pointing: weight of the loss on attention. corners: of the one on numbers that a linear layer reads off the
            token in front of the decimals of each: all four of the box, and the one that is written there.
        form: weight of the tokens of a clip's answer that say whether a frame has a box and what follows that box.
    """

    name = "placing"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        pictures: int = 4000,
        clips: int = 400,
        batch: int = 10,
        clip_batch: int = 3,
        clip_every: int = 6,
        questions: int = 6,
        clip_questions: int = 4,
        objects: Sequence[int] = (1, 3),
        kinds: dict[str, float] | None = None,
        wordings: float = 0.3,
        pointing: float = 1.0,
        corners: float = 0.0,
        form: float = FRAME,
    ) -> None:
        super().__init__(model, processor)
        self.counts, self.objects = {False: pictures, True: clips}, tuple(objects)
        self.batch, self.clip_batch, self.clip_every = batch, clip_batch, clip_every
        self.questions = {False: questions, True: clip_questions}
        self.kinds, self.wordings = dict(kinds or KINDS), wordings
        self.pointing_weight, self.corners_weight, self.form = pointing, corners, form
        self.helpers["corners"] = nn.Linear(model.mllm.lm_head.in_features, 5)
        self.writer, self.language = ThreadWriter(processor), model.mllm.model.language_model
        self.pointing = Pointing(self.language)
        self.scenes: dict[bool, list[Asked]] = {}
        self.ids = {text: one_token(processor, text) for text in (OPEN, CLOSE, NEXT, SEPARATOR, ".")}
        model.requires_grad_(False)
        for module in self.trained():
            module.requires_grad_(True)

    def trained(self) -> Iterable[nn.Module]:
        return [self.language, self.model.mllm.lm_head]

    def prepare(self, folder: Path | None) -> None:
        """Looks at all scenes, or reads what an earlier stage of the same run kept beside its own folder."""
        for clip, count in self.counts.items():
            if count and (not clip or self.clip_every):
                name = f"places-{'clips' if clip else 'pictures'}-{count}-{'-'.join(map(str, self.objects))}"
                file = folder and seen_file(folder.parent, self.model, name)
                self.scenes[clip] = placed_scenes(self.model, self.processor, count, self.objects, clip, file)

    # ---------------------------------------------------------------- a step
    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        clip = bool(self.scenes.get(True)) and rng.random() < 1 / self.clip_every
        scenes = rng.sample(self.scenes[clip], self.clip_batch if clip else self.batch)
        places = [self._sampled(one, rng) for one in scenes]
        return self.loss_of(scenes, places, np.random.default_rng(rng.getrandbits(32)))

    def _sampled(self, one: Asked, rng: random.Random) -> list[Place]:
        """Places of a scene, without replacement, by the weights of their kinds."""
        known = [place for place in one.places if self.kinds.get(place.kind)]
        keys = {id(place): rng.random() ** (1 / self.kinds[place.kind]) for place in known}
        return sorted(known, key=lambda place: -keys[id(place)])[: self.questions[len(one.tokens) > 1]]

    def loss_of(
        self, scenes: list[Asked], places: list[list[Place]], words: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss on some places of each scene, asked for in words that are sampled."""
        threads = [[self.thread(place, words) for place in of_scene] for of_scene in places]
        rows = self.writer.rows(threads, len(scenes[0].tokens))
        with self.pointing:
            hidden = read(self.model, [one.tokens for one in scenes], rows)
        digits, weights = self._tokens(threads, places, rows)
        wanted = weights[:, 1:] > 0
        logits = self.model.mllm.lm_head(hidden[:, :-1][wanted]).float()
        losses = F.cross_entropy(logits, rows.labels[:, 1:][wanted], reduction="none")
        weights, decimals = weights[:, 1:][wanted], digits[:, 1:][wanted]
        total = (losses * weights).sum() / weights.sum()
        shown = {"lm": total.item()}
        shown |= {f"digit {n}": losses[decimals == n].mean().item() for n in (1, 2) if (decimals == n).any()}
        pointed = []
        for name, look in self._looks(threads, places, rows).items():
            loss, found = self.pointing.loss(look, rows)
            shown[name] = found.mean().item()
            pointed.append(loss)
        total = total + self.pointing_weight * sum(pointed) / max(len(pointed), 1)
        if self.corners_weight:
            corners = self._corners(hidden, threads, places, rows)
            total, shown["corners"] = total + self.corners_weight * corners, corners.item()
        return total, shown

    def thread(self, place: Place, words: np.random.Generator) -> Thread:
        """The question about a place and its answer."""
        clip = len(place.frames) > 1
        rng = words if words.random() < self.wordings else None
        known = [place.fallback() if of_frame is None else of_frame for of_frame in place.frames]
        frames = [[box for _, box in of_frame] for of_frame in known]
        present = [sorted(target for target, _ in of_frame or ()) for of_frame in place.frames]
        marked = switch_frames(present) if place.kind == "switch" else ()
        boxes = write(frames, 1, 1, self.processor.box_form, marked) + ("" if clip else SINGLE_IMAGE)
        text = mention(place.text, self.processor.box_form)
        question = box_question(text, place.kind, clip, rng=rng)
        answer = box_answer(text, place.kind, boxes, clip, bool(place.targets))
        return self.writer.thread(Chat([(question, answer)]), [])

    # ---------------------------------------------------------------- the tokens of the boxes
    def _tokens(self, threads: list[list[Thread]], places: list[list[Place]], rows: Rows) -> tuple[Tensor, Tensor]:
        """Per token of the rows: which decimal of a number it is (0: none), and its weight."""
        digits, weights = torch.zeros_like(rows.ids), torch.zeros(rows.ids.shape)
        for row, at, thread, place in _walk(threads, places, rows):
            first = next(index for index, token in enumerate(thread.labels) if token != IGNORE_INDEX)
            part = slice(at + first, at + len(thread.ids))
            weights[row, part] = TEXT
            weights[row, at + first] = FIRST
            for one in self.written(thread):
                known = float(place.frames[one.frame] is not None)
                starts, ends = (self.form, self.form) if len(place.frames) > 1 else (FRAME, TEXT)
                weights[row, at + one.start : at + one.end] = TEXT * known
                weights[row, at + one.start], weights[row, at + one.end] = starts * known, ends
                for number in one.numbers:
                    span = slice(at + number, at + number + len(DIGITS))
                    weights[row, span] = known * torch.tensor(DIGITS)
                    digits[row, span] = torch.arange(1, len(DIGITS) + 1)
        return digits, weights

    def written(self, thread: Thread) -> list[Written]:
        """The boxes of an answer as its tokens, frames without one too."""
        found: list[Written] = []
        frame = box = -1
        for index, token in enumerate(thread.labels):
            if token in (self.ids[OPEN], self.ids[NEXT]):
                frame, box = frame + 1, 0
            elif token == self.ids[SEPARATOR]:
                box += 1
            elif token == self.ids[CLOSE]:
                return found
            elif frame >= 0:
                if not found or (found[-1].frame, found[-1].box) != (frame, box):
                    found.append(Written(frame, box, index, index, []))
                found[-1].end = index + 1
                if token == self.ids["."]:
                    found[-1].numbers.append(index + 1)
        return found

    def _corners(self, hidden: Tensor, threads: list[list[Thread]], places: list[list[Place]], rows: Rows) -> Tensor:
        """Mean squared error of the numbers that the linear layer reads, as a share of their variance."""
        at, wanted = [], []
        for row, start, thread, place in _walk(threads, places, rows):
            for one in self.written(thread):
                if one.numbers and place.frames[one.frame] is not None:
                    box = place.frames[one.frame][one.box][1]
                    at += [(row, start + number - 1) for number in one.numbers]
                    wanted += [(*box, own) for own in box]
        if not at:
            return hidden.sum() * 0.0
        row, index = torch.tensor(at).unbind(1)
        return F.mse_loss(self.helpers["corners"](hidden[row, index]), torch.tensor(wanted)) / VARIANCE

    def _looks(self, threads: list[list[Thread]], places: list[list[Place]], rows: Rows) -> dict[str, Look]:
        """From the point of each number at the object whose box it is, in clips from the token before the box too.

        What is named by attributes is looked for in the layers before the last one too.
        """
        last = len(self.language.layers) - 1
        found: dict[str, list[tuple[Tensor, Tensor]]] = {"named": [], "group": [], "target": []}
        for row, at, thread, place in _walk(threads, places, rows):
            for one in self.written(thread):
                if not one.numbers or place.frames[one.frame] is None:
                    continue
                wanted = self._where(rows, place, one.frame, place.frames[one.frame][one.box][0])
                points = one.numbers + [one.start] * (len(place.frames) > 1)
                pairs = [(torch.tensor([row, at + point - 1]), wanted) for point in points]
                for name in ("target", "named", "group") if place.kind in NAMING else ("target",):
                    found[name] += pairs
        layers = {"named": (max(0, last - 2), 1), "group": (max(0, last - 1), 2), "target": (last, 2)}
        return {
            name: Look(*layers[name], *(torch.stack(part) for part in zip(*pairs, strict=True)))
            for name, pairs in found.items()
            if pairs
        }

    def _where(self, rows: Rows, place: Place, frame: int, target: int) -> Tensor:
        """(L,): the visual tokens of a target on one frame, as a distribution."""
        cover = place.cover[place.targets.index(target), frame].float()
        wanted = torch.zeros(rows.ids.shape[1])
        cells = rows.visual[frame * len(cover) : (frame + 1) * len(cover)]
        wanted[cells] = cover / cover.sum().clamp(min=1e-6)
        return wanted


def _walk(
    threads: list[list[Thread]], places: list[list[Place]], rows: Rows
) -> Iterable[tuple[int, int, Thread, Place]]:
    """(row, index of its first token there, thread, place) of all threads, as `ThreadWriter.rows` puts them."""
    for row, (of_row, of_scene) in enumerate(zip(threads, places, strict=True)):
        at = rows.head
        for thread, place in zip(of_row, of_scene, strict=True):
            yield row, at, thread, place
            at += len(thread.ids)


def one_token(processor: Sa2VAProcessor, text: str) -> int:
    """The id of a text that must be one token. ValueError where it is more."""
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{text}: expected one token of the tokenizer, got {len(ids)}; set `box_tokens: true`")
    return ids[0]
