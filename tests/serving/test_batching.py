"""The queue: together is as alone, a full one refuses, one bad question harms nobody, and nothing is forgotten. A
video is answered frame by frame.

Run: pytest tests/serving/test_batching.py
"""

import io
import queue
import threading
import time
from dataclasses import replace

import pytest
from chats import noise, png
from tiny import tiny_processor, tiny_talker

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.masks import decode
from sa2va_hf.serving import batching
from sa2va_hf.serving.batching import Batcher
from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.media import read_image, read_video
from sa2va_hf.serving.session import Answer, Frame, Question, make_question, masks_json

TEXT = "Sure, it is [SEG]."
LIMITS = Limits(max_new_tokens=40)


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    return Sa2VAPredictor(tiny_talker(TEXT), tiny_processor())


@pytest.fixture
def make(predictor):
    made = []

    def make(**options) -> Batcher:
        made.append(Batcher(predictor, **({"limits": LIMITS} | options)))
        return made[-1]

    yield make
    for batcher in made:
        batcher.stop(20)
        assert not batcher._thread.is_alive()


@pytest.fixture
def held(monkeypatch):
    """The model waits before every batch until it is released; `sizes` of the batches."""
    gate, sizes, real = threading.Semaphore(0), [], batching.ask

    def ask(predictor, asked, watcher):
        gate.acquire()
        sizes.append(len(asked))
        return real(predictor, asked, watcher)

    monkeypatch.setattr(batching, "ask", ask)
    gate.sizes = sizes
    return gate


def question(seed: int = 0, text: str = "the dog?", **fields) -> Question:
    return make_question(LIMITS, 1024, read_image(png(noise(seed)), LIMITS), text=text, **fields)


def clip(frames: int = 4) -> Question:
    gif, pictures = io.BytesIO(), [noise(seed) for seed in range(frames)]
    pictures[0].save(gif, "GIF", save_all=True, append_images=pictures[1:])
    return make_question(LIMITS, 1024, read_video(gif.getvalue(), LIMITS), text="the dog?")


@pytest.fixture
def framed(monkeypatch):
    """A video waits before every frame until it is released."""
    gate, real = threading.Semaphore(0), batching.frames_of

    def frames_of(stream):
        for frame in real(stream):
            assert gate.acquire(timeout=60)
            yield frame

    monkeypatch.setattr(batching, "frames_of", frames_of)
    return gate


def submit(batcher: Batcher, asked: Question) -> queue.Queue:
    events: queue.Queue = queue.Queue()
    events.job = batcher.submit(asked, events.put)
    return events


def last(events: queue.Queue) -> tuple[str, Answer | Refused]:
    """The text that came piece by piece, and the last event."""
    text = ""
    while isinstance(event := events.get(timeout=60), str):
        text += event
    return text, event


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_waits_is_answered_together_as_it_would_be_alone(make, held, predictor):
    batcher = make(max_batch=4)
    first = submit(batcher, question(9))
    wait_for(lambda: not batcher.waiting)
    events = [submit(batcher, question(seed, f"number {seed}?")) for seed in range(6)]
    held.release(9)
    last(first)
    answers = [last(one) for one in events]
    assert held.sizes == [1, 4, 2]
    for seed, (text, answer) in enumerate(answers):
        assert text == answer.text == TEXT and answer.finish_reason == "stop"
        alone = predictor(image=noise(seed), text=f"number {seed}?")
        assert (answer.prediction.masks != alone.masks).mean() < 1e-3
        (mask,) = masks_json(answer.prediction)
        assert mask["size"] == mask["rle"]["size"] == [60, 100]
        x0, y0, x1, y1 = alone.boxes[0, 0].tolist()
        assert mask["bbox"] == [x0, y0, x1 - x0, y1 - y0]


def test_text_comes_in_pieces_and_ends_at_its_limits(make):
    batcher = make()
    events, pieces = submit(batcher, question()), []
    while isinstance(event := events.get(timeout=60), str):
        pieces.append(event)
    assert len(pieces) > 3 and "".join(pieces) == TEXT
    text, answer = last(submit(batcher, question(max_new_tokens=3)))
    assert (answer.tokens, answer.finish_reason) == (3, "length") and TEXT.startswith(text)


def test_an_answer_ends_with_its_last_mask(make):
    text, answer = last(submit(make(), replace(question(), max_objects=1)))
    assert text == answer.text == TEXT.removesuffix(".")
    assert (len(answer.prediction.masks), answer.finish_reason) == (1, "length")


def test_a_full_queue_refuses_and_forgets_nobody(make, held):
    batcher = make(max_batch=1, max_waiting=3)
    heard, refused = [submit(batcher, question())], 0
    wait_for(lambda: not batcher.waiting)
    for _ in range(16):
        try:
            heard.append(submit(batcher, question()))
        except Refused as error:
            assert error.status == 429
            refused += 1
    assert (len(heard), refused) == (4, 13)
    held.release(20)
    assert [last(events)[0] for events in heard] == [TEXT] * 4


def test_one_bad_question_does_not_harm_the_others(make, held):
    batcher = make()
    first = submit(batcher, question())
    wait_for(lambda: not batcher.waiting)
    noisy = png(noise(1, (300, 200)))
    cut = make_question(LIMITS, 1024, read_image(noisy[: len(noisy) // 2], LIMITS), text="half?")
    bad = [submit(batcher, cut), submit(batcher, question(text="<IMG_CONTEXT> <image> <image>"))]
    good = [submit(batcher, question(seed)) for seed in range(2)]
    held.release(20)
    assert [last(events)[0] for events in [first, *good]] == [TEXT] * 3
    statuses = [event.status for _, event in map(last, bad)]
    assert statuses == [422, 422]


def test_a_fault_of_ours_is_heard_of_and_survived(make, monkeypatch):
    batcher = make()
    with monkeypatch.context() as patch:
        patch.setattr(batching, "ask", lambda *_: 1 / 0)
        assert last(submit(batcher, question()))[1].status == 500
    assert last(submit(batcher, question()))[0] == TEXT


def test_who_hangs_up_is_not_answered(make, held):
    batcher = make(max_batch=1)
    first = submit(batcher, question())
    wait_for(lambda: not batcher.waiting)
    gone, stays = submit(batcher, question()), submit(batcher, question())
    gone.job.cancel()
    held.release(9)
    assert [last(events)[0] for events in (first, stays)] == [TEXT] * 2
    assert last(gone)[1].status == 499 and held.sizes == [1, 1]


def test_who_hangs_up_while_it_is_answered_ends_it(make):
    batcher = make()
    events = submit(batcher, question())
    events.get(timeout=60)
    events.job.cancel()
    _, answer = last(events)
    assert answer.tokens < 8 or answer.finish_reason == "stop"


def test_who_waits_too_long_is_told(make, held):
    batcher = make(max_batch=1)
    first = submit(batcher, question())
    wait_for(lambda: not batcher.waiting)
    late = submit(batcher, question())
    late.job.since -= batcher.max_seconds + 1
    held.release(9)
    assert last(first)[0] == TEXT and last(late)[1].status == 503


def test_a_closed_queue_answers_what_it_has_and_refuses_the_rest(make, held):
    batcher = make(max_batch=1)
    events = [submit(batcher, question()) for _ in range(3)]
    batcher.close()
    with pytest.raises(Refused) as caught:
        submit(batcher, question())
    assert caught.value.status == 503
    held.release(9)
    assert [last(one)[0] for one in events] == [TEXT] * 3


def test_large_questions_are_not_answered_together(make, held):
    asked = question()
    batcher = make(limits=Limits(max_answer_bytes=int(asked.bytes(1024) * 1.5)))
    events = [submit(batcher, question()) for _ in range(3)]
    held.release(9)
    assert [last(one)[0] for one in events] == [TEXT] * 3 and held.sizes == [1, 1, 1]


# ---------------------------------------------------------------- videos
def masks_until(events: queue.Queue, frames: int) -> list[Frame]:
    found = []
    while len(found) < frames:
        event = events.get(timeout=60)
        found += [event] if isinstance(event, Frame) else []
    return found


def test_masks_of_a_video_come_frame_by_frame_and_images_are_answered_between(make, framed, predictor):
    batcher = make(max_batch=4)
    asked, text = clip(), ""
    events = submit(batcher, asked)
    while text != TEXT:
        text += events.get(timeout=60)
    other, image = submit(batcher, clip(2)), submit(batcher, question())
    framed.release()
    (first,) = masks_until(events, 1)
    assert last(image)[0] == TEXT and events.empty(), "the image does not wait for the end of the video"
    framed.release(9)
    frames = [first, *masks_until(events, 3)]
    answer = events.get(timeout=60)
    assert (answer.text, answer.objects, answer.finish_reason) == (TEXT, 1, "stop")
    assert [frame.index for frame in frames] == [entry["frame"] for entry in answer.masks(frames)] == [0, 1, 2, 3]
    alone = predictor(video=asked.visual.open(), text="the dog?")
    for frame in frames:
        (entry,) = frame.masks
        assert (decode(entry["rle"]) != alone.masks[0, frame.index]).mean() < 1e-3
    scores = [entry["score"] for entry in answer.masks(frames)]
    assert scores == pytest.approx([alone.scores[0]] * 4, abs=1e-3), "the mean over frames, as of a whole prediction"
    assert len(masks_until(other, 2)) == 2 and batcher.counts.frames == 6


def test_a_video_ends_with_its_listener_its_room_or_the_server(make, framed):
    batcher = make()
    gone = submit(batcher, clip())
    framed.release()
    masks_until(gone, 1)
    gone.job.cancel()
    framed.release(3)
    assert isinstance(gone.get(timeout=60), Answer) and batcher.counts.cancelled == 1
    small = make(limits=replace(LIMITS, max_answer_bytes=1))
    framed.release(4)
    assert last(submit(small, clip()))[1].finish_reason == "length"
    while framed.acquire(blocking=False):  # those that were not needed
        pass
    stopped = submit(batcher, clip())
    framed.release()
    masks_until(stopped, 1)
    batcher.stop(0.1)
    framed.release()
    assert stopped.get(timeout=60).status == 503
