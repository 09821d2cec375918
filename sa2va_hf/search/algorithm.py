"""The search of V* (arXiv 2312.14135, algorithm 1), best crop first, over any model that can locate and answer.

A crop is looked at. If the target is there, the search ends. If not, the crop is split, and its parts wait with a
priority: the share of the heat of the crop, and of all crops around it, that is in the part. The heat is the target's
own where that is strong enough, else that of the place where the model expects the target. Where V*'s program is
followed exactly, and where it is corrected, is written in docs/boxes_and_search.md.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np

from sa2va_hf.boxes import Box, to_pixels
from sa2va_hf.search.patches import Crop, Heat
from sa2va_hf.search.phrases import cue_phrase, question_about
from sa2va_hf.search.result import NEAR_MISSES, Found, SearchResult, Visit, covered, distinct
from sa2va_hf.search.settings import QUESTION, Located, SearchModel, SearchSettings


def search(
    picture: Any,
    target: str,
    model: SearchModel,
    settings: SearchSettings | None = None,
    priority: Callable[[Visit], float] | None = None,
    phrase_of: Callable[[str, str], str | None] = cue_phrase,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Search a picture for a target.

    Args:
        picture: a `LargePicture`, or whatever has a `size` (width, height) and the model can read.
        target: what is searched, "red mug".
        priority: of a crop that waits, the highest first; by default the share of heat (see above).
        phrase_of: the phrase of a contextual answer and the target, or None.
        clock: seconds, for the budget.

    Raises:
        ValueError: for an empty target, a picture without pixels, or a model's output that is not usable.
    """
    if not target.strip():
        raise ValueError("target: expected the name of what is searched, got an empty text")
    if min(picture.size) < 1:
        raise ValueError(f"picture: expected at least one pixel, got a size of {picture.size}")
    run = _Search(picture, target.strip(), model, settings or SearchSettings(), priority, phrase_of, clock)
    return run.run()


class _Search:
    def __init__(self, picture, target, model, settings, priority, phrase_of, clock) -> None:
        self.picture, self.target, self.model, self.settings = picture, target, model, settings
        self.priority, self.phrase_of, self.clock = priority, phrase_of, clock
        self.start, self.order = clock(), count()
        self.heap: list[tuple[float, int, Visit]] = []
        self.heats: dict[int, Heat] = {}  # by index of the visit
        self.hits: list[Found] = []
        self.best: list[Found] = []  # the best candidate of every crop
        self.result = SearchResult(target, tuple(picture.size), calls={"locate": 0, "ask": 0, "locate_cue": 0})
        self.smallest = settings.smallest_side(*picture.size)

    @property
    def visits(self) -> list[Visit]:
        return self.result.visits

    def run(self) -> SearchResult:
        batch = [Visit(Crop(0, 0, *self.picture.size, self.picture), 1, -1, None)]
        while batch:
            self._look(batch)
            if self.hits and self.settings.instances == "first":
                self.result.ended = "found"
                break
            self._split(batch)
            if self.heap and (spent := self._spent()):
                self.result.ended = spent
                break
            batch = self._next()
        return self._finish()

    # ---------------------------------------------------------------- the queue
    def _spent(self) -> str | None:
        limits = self.settings
        if limits.max_crops is not None and len(self.visits) >= limits.max_crops:
            return "crops"
        if limits.max_seconds is not None and self.clock() - self.start >= limits.max_seconds:
            return "seconds"
        return None

    def _next(self) -> list[Visit]:
        at_once = self.settings.crops_at_once
        if self.settings.max_crops is not None:
            at_once = min(at_once, self.settings.max_crops - len(self.visits))
        batch = [heapq.heappop(self.heap)[2] for _ in range(min(at_once, len(self.heap)))]
        self.result.queue += [("get", visit.crop, visit.priority) for visit in batch]
        return batch

    def _put(self, visit: Visit) -> None:
        if self.priority is None:
            visit.priority, at = 0.0, visit.parent
            while at >= 0:
                visit.priority += self.heats[at].share(visit.crop) / 4 ** self.visits[at].level
                at = self.visits[at].parent
        else:
            visit.priority = self.priority(visit)
        heapq.heappush(self.heap, (-visit.priority, next(self.order), visit))  # of equals the first that came
        self.result.queue.append(("put", visit.crop, visit.priority))

    # ---------------------------------------------------------------- one batch of crops
    def _look(self, batch: list[Visit]) -> None:
        self.result.calls["locate"] += len(batch)
        located = self.model.locate([visit.crop for visit in batch], [self.target] * len(batch))
        for visit, found in zip(batch, located, strict=True):
            visit.index = len(self.visits)
            self.visits.append(visit)
            self._note(visit, _checked(found, visit.crop))

    def _note(self, visit: Visit, found: Located) -> None:
        visit.candidates, visit.heat = len(found.scores), float(found.heat.max())
        visit.leaf = min(visit.crop.width, visit.crop.height) <= self.smallest
        self.heats[visit.index] = Heat(found.heat, visit.crop, self.settings.empty_heat)
        if not len(found.scores):
            return
        visit.best = int(found.scores.argmax())
        visit.score = float(found.scores[visit.best])
        candidates = [
            Found(_in_picture(box, visit.crop), float(score), visit.index)
            for box, score in zip(found.boxes, found.scores, strict=True)
        ]
        self.best.append(candidates[visit.best])
        visit.hit = bool(found.scores[visit.best] > np.float32(self.settings.confidence_high))
        if visit.hit:
            least = self.settings.list_threshold
            least = np.float32(self.settings.confidence_high if least is None else least)
            listed = [one for one, score in zip(candidates, found.scores, strict=True) if score > least]
            self.hits += listed or [candidates[visit.best]]

    def _split(self, batch: list[Visit]) -> None:
        waiting = [visit for visit in batch if not visit.leaf]
        for visit in waiting:
            visit.threshold = self.settings.cue_threshold(visit.level)
            visit.cue = "target" if visit.heat > visit.threshold else "context"
        self._ask([visit for visit in waiting if visit.cue == "context"])
        for visit in waiting:
            for crop in visit.crop.parts(self.settings.overlap):
                self._put(Visit(crop, visit.level + 1, visit.index, None))

    def _ask(self, visits: list[Visit]) -> None:
        """Puts the heat of the expected place in the place of the target's own, for crops where that is weak."""
        if not self.settings.contextual_cue or self.priority is not None:
            for visit in visits:
                visit.cue = "none"
            return
        if not visits:
            return
        questions = [question_about(QUESTION, self.target)] * len(visits)
        self.result.calls["ask"] += len(visits)
        answers = self.model.ask([visit.crop for visit in visits], questions)
        for visit, answer in zip(visits, answers, strict=True):
            visit.answer, visit.phrase = answer, self.phrase_of(answer, self.target)
        named = [visit for visit in visits if visit.phrase is not None]
        for visit in visits:
            visit.cue = "context" if visit.phrase is not None else "none"
        if not named:
            return
        self.result.calls["locate_cue"] += len(named)
        located = self.model.locate([visit.crop for visit in named], [visit.phrase for visit in named])
        for visit, found in zip(named, located, strict=True):
            heat = _checked(found, visit.crop).heat
            visit.cue_heat = float(heat.max())
            self.heats[visit.index] = Heat(heat, visit.crop, self.settings.empty_heat)

    # ---------------------------------------------------------------- the end
    def _finish(self) -> SearchResult:
        result, settings = self.result, self.settings
        result.seconds = self.clock() - self.start
        leaves = [visit.crop for visit in self.visits if visit.leaf]
        result.covered, result.path_length = covered(leaves, result.size), len(self.visits)
        best = max(self.best, key=lambda one: one.score, default=None)  # of equals the first that was seen
        low = np.float32(settings.confidence_low)
        if self.hits:
            result.instances = distinct(self.hits) if settings.instances == "all" else self._listed()
            first = min(one.visit for one in self.hits)
            result.path_length = len(self.visits) if settings.instances == "first" else first + 1
            self._found(max((one for one in self.best if self.visits[one.visit].hit), key=lambda one: one.score))
        elif best is not None and best.score > 0 and np.float32(best.score) >= low:
            result.instances, result.path_length = [best], best.visit + 1
            self._found(best)
        elif best is not None and best.score > 0:
            result.near_misses, result.path_length = distinct(self.best)[:NEAR_MISSES], best.visit + 1
        return result

    def _listed(self) -> list[Found]:
        """The boxes of the crop with the best hit, in the model's order: several crops of a batch may have one."""
        best = max(self.hits, key=lambda one: one.score).visit
        return [one for one in self.hits if one.visit == best]

    def _found(self, best: Found) -> None:
        self.result.found, self.result.box, self.result.score = True, best.box, best.score


def _in_picture(box: Sequence[float], crop: Crop) -> Box:
    x0, y0, x1, y1 = to_pixels(box, crop.width, crop.height)
    return x0 + crop.x, y0 + crop.y, x1 + crop.x, y1 + crop.y


def _checked(found: Located, crop: Crop) -> Located:
    """float32 scores, as V* compares them. ValueError for what is not finite, or other shapes."""
    scores, boxes, heat = (np.asarray(value, dtype=np.float32) for value in (found.scores, found.boxes, found.heat))
    if scores.ndim != 1 or boxes.shape != (len(scores), 4) or heat.ndim != 2 or not heat.size:
        raise ValueError(
            f"crop {crop.xywh}: expected scores (n,), boxes (n, 4) and a heat (h, w), got the shapes {scores.shape}, "
            f"{boxes.shape} and {heat.shape}"
        )
    if not all(np.isfinite(value).all() for value in (scores, boxes, heat)):
        raise ValueError(f"crop {crop.xywh}: the model's scores, boxes or heat are not finite")
    return Located(scores, boxes, heat)
