"""One queue before one model: what waits is answered together, what does not fit is refused, nothing is forgotten.

A video is answered by itself, a frame at a time: its masks go out as they are predicted and are not kept. Questions
about images and text that come meanwhile are answered between its frames.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.session import Answer, Frame, Opened, Question, Watcher, ask, begin, frames_of, logit_cells

logger = logging.getLogger(__name__)

Event = str | Frame | Answer | Refused  # new text, then masks of a video; at last the answer, or why there is none


@dataclass(eq=False)
class Job:
    """A question in the queue. tell: called from the model's thread with every `Event`; the last is an `Answer` or a
    `Refused`."""

    question: Question
    tell: Callable[[Event], None]
    cancelled: bool = False
    said: str = ""
    since: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """The answer so far: what of it is new goes out. Twice the same (after a batch failed) is heard once."""
        if len(text) > len(self.said) and text.startswith(self.said):
            new, self.said = text[len(self.said) :], text
            self.hear(new)

    def hear(self, event: Event) -> None:
        """A listener that has gone must not stop the others' answers."""
        try:
            self.tell(event)
        except RuntimeError as error:  # its event loop is closed
            logger.debug("nobody listens: %s", error)

    def cancel(self) -> None:
        """Nobody waits any more: it is not begun, or ends with the next token."""
        self.cancelled = True


@dataclass
class Counts:
    """What /metrics says of the queue."""

    batches: int = 0
    answers: int = 0
    failures: int = 0
    cancelled: int = 0
    tokens: int = 0
    objects: int = 0
    frames: int = 0  # of videos
    busy_seconds: float = 0.0


class Batcher:
    """Answers questions in the order in which they come, up to `max_batch` at once, in a thread of its own.

    Args:
        max_waiting: questions in the queue; one more is refused with 429.
        max_seconds: that a question may wait; then it is refused with 503.
    """

    def __init__(
        self,
        predictor: Sa2VAPredictor,
        limits: Limits | None = None,
        max_batch: int = 8,
        max_waiting: int = 64,
        max_seconds: float = 60.0,
    ) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        self.max_batch, self.max_waiting, self.max_seconds = max_batch, max_waiting, max_seconds
        self.cells, self.counts = logit_cells(predictor), Counts()
        self._waiting: deque[Job] = deque()
        self._changed, self._stopping, self._ended = threading.Condition(), False, False
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether it takes questions."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, question: Question, tell: Callable[[Event], None]) -> Job:
        """`Refused` with 429 when the queue is full and with 503 when it closes; else `tell` hears of it."""
        job = Job(question, tell)
        with self._changed:
            if not self.alive:
                raise stopping()
            if len(self._waiting) >= self.max_waiting:
                raise busy(len(self._waiting))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """No new questions; those that wait are still answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self, seconds: float = 30.0) -> None:
        """Close, wait for what is being answered, and refuse with 503 what still waits after `seconds`; a video ends
        with its next frame then."""
        self.close()
        self._thread.join(seconds)
        with self._changed:
            left, self._waiting, self._ended = list(self._waiting), deque(), True
        for job in left:
            job.hear(stopping())
        self._thread.join(seconds)
        self._decoders.shutdown(wait=False)

    # ---------------------------------------------------------------- the model's thread
    def _run(self) -> None:
        while (batch := self._next()) is not None:
            start = time.monotonic()
            self._try(batch)
            self.counts.busy_seconds += time.monotonic() - start
            del batch

    def _try(self, batch: list[Job]) -> None:
        try:
            self._answer(batch)
        except Exception:  # a fault of ours: those who asked hear of it, and the thread lives on
            logger.exception("a batch of %d failed", len(batch))
            for job in batch:
                self._fail(job, Refused(500, "internal_error", "the server failed to answer; see its log"))

    def _next(self) -> list[Job] | None:
        """What is answered next, None at the end: the longest waiting, and those behind it that can go with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            return self._taken() if self._waiting else None

    def _between(self) -> list[Job]:
        """What is answered between two frames of a video: as `_next`, but no other video, and without waiting."""
        with self._changed:
            return self._taken(videos=False)

    def _taken(self, videos: bool = True) -> list[Job]:
        """A batch from the queue: a video by itself, of everything else as much as has room together."""
        batch: list[Job] = []
        room, options = self.limits.max_answer_bytes, None
        late = time.monotonic() - self.max_seconds
        for job in list(self._waiting):
            question = job.question
            if job.cancelled or job.since < late:
                self._waiting.remove(job)
                self._drop(job)
                continue
            if question.is_video and not videos:
                continue
            asked = (question.temperature, question.top_p)
            room -= question.bytes(self.cells)
            if batch and (room < 0 or asked != options or question.is_video):
                break
            options = asked
            self._waiting.remove(job)
            batch.append(job)
            if question.is_video or len(batch) == self.max_batch:
                break
        return batch

    def _answer(self, batch: list[Job]) -> None:
        opened = [(job, found) for job, found in zip(batch, self._decoders.map(_open, batch), strict=True)]
        ready = [(job, found) for job, found in opened if isinstance(found, Opened)]
        for job, found in opened:
            if isinstance(found, Refused):
                self._fail(job, found)
        if ready and batch[0].question.is_video:
            self._stream(*ready[0])
        elif ready:
            self._ask(ready)

    def _watch(self, jobs: list[Job]) -> Watcher:
        self.counts.batches += 1
        return Watcher(
            self.predictor,
            [job.question for job in jobs],
            tell=lambda row, text: jobs[row].say(text),
            gone=lambda row: jobs[row].cancelled,
        )

    def _stream(self, job: Job, opened: Opened) -> None:
        """A question about a video; others are answered between its frames."""
        watcher, room, objects = self._watch([job]), self.limits.max_answer_bytes, 0
        try:
            stream = begin(self.predictor, opened, watcher)
            job.say(stream.text)
            for frame in frames_of(stream):
                objects = len(frame.masks)
                room -= sum(len(entry["rle"]["counts"]) for entry in frame.masks)
                if job.cancelled or room < 0:
                    break
                if self._ended:
                    raise stopping()
                self.counts.frames += 1
                job.hear(frame)
                self._try(self._between())
        except (ValueError, torch.OutOfMemoryError) as error:
            self._fail(job, _refusal(error))
            return
        ended = "length" if watcher.cut[0] or room < 0 else "stop"
        answer = Answer(stream.text, objects, len(watcher.ids[0]), stream.prompt_tokens, ended)
        self._count(job, answer)
        job.hear(answer)

    def _ask(self, ready: list[tuple[Job, Opened]]) -> None:
        """Together; where one of them makes the batch fail, one by one, so that the others get their answers."""
        jobs = [job for job, _ in ready]
        watcher = self._watch(jobs)
        try:
            answers = ask(self.predictor, [opened for _, opened in ready], watcher)
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(ready) == 1:
                self._fail(jobs[0], _refusal(error))
                return
            for one in ready:
                self._ask([one])
            return
        for job, answer in zip(jobs, answers, strict=True):
            self._count(job, answer)
            job.say(answer.text)
            job.hear(answer)

    def _count(self, job: Job, answer: Answer) -> None:
        self.counts.tokens += answer.tokens
        self.counts.objects += answer.objects
        if job.cancelled:
            self.counts.cancelled += 1
        else:
            self.counts.answers += 1

    def _drop(self, job: Job) -> None:
        if job.cancelled:
            self.counts.cancelled += 1
            job.hear(Refused(499, "client_closed", "nobody waits for the answer any more"))
        else:
            self._fail(job, Refused(503, "overloaded", f"it waited {self.max_seconds:g} s in the queue: try again"))

    def _fail(self, job: Job, refused: Refused) -> None:
        self.counts.failures += 1
        job.hear(refused)


def _open(job: Job) -> Opened | Refused:
    try:
        return job.question.open()
    except Refused as refused:
        return refused


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError):
        return Refused(422, "unanswerable", str(error))
    return Refused(503, "out_of_memory", "the device has no memory left for this question: send it smaller")


def busy(waiting: int) -> Refused:
    return Refused(429, "queue_full", f"{waiting} questions are waiting, which is all this server keeps: try again")


def stopping() -> Refused:
    return Refused(503, "stopping", "this server is stopping and takes no new questions")
