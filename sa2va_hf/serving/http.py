"""OpenAI's chat completions over HTTP: POST /v1/chat/completions, GET /v1/models, /health and /metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sa2va_hf.serving.batching import Batcher, Job, busy, stopping
from sa2va_hf.serving.limits import Refused
from sa2va_hf.serving.messages import ChatRequest, read_chat
from sa2va_hf.serving.session import Answer, Frame
from sa2va_hf.serving.sources import Sources

READERS = 2  # bodies that are parsed at once: base64 and JSON take three times their bytes
DRAIN_BYTES, DRAIN_SECONDS = 128 * 2**20, 10.0  # of a body that is refused
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


@dataclass(frozen=True)
class Service:
    """What the server is run with.

    Args:
        name: of the model, in answers and in /v1/models.
        api_key: every request but /health needs it as `Authorization: Bearer KEY`; None = no key.
        body_seconds: that a client may take to send its body. max_open: requests between their first byte and their
            answer; one more is refused with 429 before its body is read.
        max_open_bytes: of the bodies of all of them.
    """

    batcher: Batcher
    name: str
    sources: Sources = Sources()
    api_key: str | None = None
    body_seconds: float = 30.0
    max_open: int = 128
    max_open_bytes: int = 512 * 2**20


@dataclass
class _State:
    """What changes while it runs; only the event loop touches it."""

    open: int = 0
    open_bytes: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0


def create_app(service: Service) -> FastAPI:
    """The ASGI application. It stops the batcher when it is shut down."""
    state, readers = _State(), asyncio.Semaphore(READERS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.stop)

    app = FastAPI(title="Sa2VA", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.serving = state
    for kind in (Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _error(state))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _check_key(request, service)
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise Refused(415, "unsupported_media", "expected Content-Type: application/json")
        return await _chat(request, service, state, readers)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _check_key(request, service)
        model = {"id": service.name, "object": "model", "created": 0, "owned_by": "sa2va_hf"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/health")
    async def health() -> Response:
        if not service.batcher.alive:
            raise stopping()
        return JSONResponse({"status": "ok", "waiting": service.batcher.waiting})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _check_key(request, service)
        return PlainTextResponse(_metrics(service, state))

    return app


def _check_key(request: Request, service: Service) -> None:
    given = request.headers.get("authorization", "").encode()
    if service.api_key and not hmac.compare_digest(given, f"Bearer {service.api_key}".encode()):
        raise Refused(401, "invalid_api_key", "expected the header Authorization: Bearer KEY with this server's key")


def _error(state: _State) -> Callable[[Request, Exception], Any]:
    async def respond(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):  # an unknown path, a wrong method
            error = Refused(error.status_code, "not_found", str(error.detail))
        elif not isinstance(error, Refused):
            error = Refused(500, "internal_error", "the server failed to answer; see its log")
        state.statuses[error.status] += 1
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        if error.status in (408, 413, 429):  # of a body that may not have been read
            headers["Connection"] = "close"
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(error.json(), error.status, headers)

    return respond


# -------------------------------------------------------------------- one request
class _Place:
    """A request's place among the open ones, with its bytes; given back once."""

    def __init__(self, service: Service, state: _State) -> None:
        if not service.batcher.alive:
            raise stopping()
        if state.open >= service.max_open or service.batcher.waiting >= service.batcher.max_waiting:
            raise busy(service.batcher.waiting)
        self._service, self._state, self._bytes, self._held = service, state, 0, True
        state.open += 1

    def take(self, count: int) -> None:
        self._bytes += count
        self._state.open_bytes += count
        if self._bytes > self._service.batcher.limits.max_body:
            limit = self._service.batcher.limits.max_body
            raise Refused(413, "too_large", f"the body has more than {limit} bytes, which is what this server takes")
        if self._state.open_bytes > self._service.max_open_bytes:
            raise busy(self._service.batcher.waiting)

    def give_back(self) -> None:
        if self._held:
            self._held = False
            self._state.open -= 1
            self._state.open_bytes -= self._bytes


async def _chat(request: Request, service: Service, state: _State, readers: asyncio.Semaphore) -> Response:
    start = time.monotonic()
    try:
        place = _Place(service, state)
    except Refused:
        await _drain(request)
        raise

    def done() -> None:
        place.give_back()
        _observe(state, time.monotonic() - start)

    try:
        body = await _read_body(request, service, place)
        async with readers:
            batcher = service.batcher
            chat = await asyncio.to_thread(read_chat, body, batcher.limits, service.sources, batcher.cells)
        del body
        reply = _Reply(request, service, chat, done)
    except BaseException:
        place.give_back()
        raise
    if chat.stream:
        return StreamingResponse(reply.stream(state), media_type="text/event-stream")
    content = await asyncio.to_thread(_completion, service.name, *await reply.answer())
    state.statuses[200] += 1
    return JSONResponse(content)


async def _read_body(request: Request, service: Service, place: _Place) -> bytes:
    declared, body = request.headers.get("content-length", "0"), bytearray()
    try:
        if declared.isdigit() and int(declared) > service.batcher.limits.max_body:
            place.take(int(declared))  # raises: refused before it is kept
        async with asyncio.timeout(service.body_seconds):
            async for chunk in request.stream():
                place.take(len(chunk))
                body += chunk
    except Refused:
        await _drain(request)
        raise
    except TimeoutError as error:
        raise Refused(408, "timeout", f"the body took longer than {service.body_seconds:g} seconds") from error
    except ClientDisconnect as error:
        raise Refused(499, "client_closed", "the client left before its body was complete") from error
    return bytes(body)


async def _drain(request: Request) -> None:
    """Reads on for a while and keeps nothing: a client that is still sending then reads why it is refused."""
    left, end = DRAIN_BYTES, time.monotonic() + DRAIN_SECONDS
    while left > 0 and time.monotonic() < end:
        try:
            message = await asyncio.wait_for(request.receive(), 0.5)
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        left -= len(message.get("body", b""))


class _Reply:
    """The events of one question, and whether its client is still there. done: called when the model is done."""

    def __init__(self, request: Request, service: Service, chat: ChatRequest, done: Callable[[], None]) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue()
        self._request, self._service, self._chat = request, service, chat

        def tell(event: object) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)
            if not isinstance(event, str | Frame):
                loop.call_soon_threadsafe(done)

        self._job: Job = service.batcher.submit(chat.question, tell)

    async def events(self) -> AsyncIterator[str | Frame | Answer]:
        """New text, masks of a video, at last the answer. A `Refused` is raised; so it is when the client hangs up."""
        gone = asyncio.create_task(self._hung_up())
        try:
            while True:
                event = asyncio.create_task(self._events.get())
                await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    raise Refused(499, "client_closed", "the client left before its answer")
                if isinstance(event.result(), Refused):
                    raise event.result()
                yield event.result()
                if isinstance(event.result(), Answer):
                    return
        finally:
            self._job.cancel()  # of no effect on one that is answered
            gone.cancel()

    async def answer(self) -> tuple[Answer, list[Frame]]:
        """The answer, and the frames that came before it."""
        frames = []
        async for event in self.events():
            if isinstance(event, Frame):
                frames.append(event)
            elif isinstance(event, Answer):
                return event, frames
        raise AssertionError("events end with an answer or raise")

    async def stream(self, state: _State) -> AsyncIterator[str]:
        """Server-sent events as OpenAI writes them; the masks of a video come frame by frame, those of an image with
        the last piece of the message."""
        chunk = _chunks(self._service.name)
        try:
            yield chunk({"role": "assistant", "content": ""})
            async for event in self.events():
                if isinstance(event, str):
                    yield chunk({"content": event})
                elif isinstance(event, Frame):
                    yield chunk({"masks": event.masks})
                else:
                    masks = await asyncio.to_thread(event.masks)
                    yield chunk({"masks": masks}, event.finish_reason)
                    if self._chat.include_usage:
                        yield chunk(None, usage=_usage(event))
            state.statuses[200] += 1
            yield "data: [DONE]\n\n"
        except Refused as refused:  # the status line has gone out: the error is an event
            state.statuses[refused.status] += 1
            yield f"data: {json.dumps(refused.json())}\n\n"
        finally:
            self._job.cancel()

    async def _hung_up(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


# -------------------------------------------------------------------- JSON
def _completion(name: str, answer: Answer, frames: list[Frame]) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "masks": answer.masks(frames)}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    return _head(name, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}


def _chunks(name: str) -> Callable[..., str]:
    head = _head(name, "chat.completion.chunk")

    def chunk(delta: dict[str, Any] | None, finish: str | None = None, usage: dict[str, Any] | None = None) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return f"data: {json.dumps(head | {'choices': choices, 'usage': usage})}\n\n"

    return chunk


def _head(name: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _usage(answer: Answer) -> dict[str, int]:
    """Tokens of the prompt, with those of images and earlier turns, and of the answer, without its end."""
    prompt = answer.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.tokens,
        "total_tokens": prompt + answer.tokens,
    }


# -------------------------------------------------------------------- metrics
def _observe(state: _State, seconds: float) -> None:
    state.seconds += seconds
    state.latencies[next((bucket for bucket in BUCKETS if seconds <= bucket), float("inf"))] += 1


def _metrics(service: Service, state: _State) -> str:
    """The text format of Prometheus."""
    counts, lines = service.batcher.counts, []
    for status, count in sorted(state.statuses.items()):
        lines.append(f'sa2va_requests_total{{status="{status}"}} {count}')
    total = 0
    for bucket in (*BUCKETS, float("inf")):
        total += state.latencies[bucket]
        edge = "+Inf" if bucket == float("inf") else f"{bucket:g}"
        lines.append(f'sa2va_request_seconds_bucket{{le="{edge}"}} {total}')
    lines += [f"sa2va_request_seconds_sum {state.seconds:.6f}", f"sa2va_request_seconds_count {total}"]
    lines += [f"sa2va_{name}_total {value:g}" for name, value in vars(counts).items()]
    lines += [f"sa2va_waiting {service.batcher.waiting}", f"sa2va_open {state.open}"]
    return "\n".join([*lines, f"sa2va_open_bytes {state.open_bytes}", ""])


# -------------------------------------------------------------------- running
class Server(uvicorn.Server):
    """Stops in order: SIGTERM or SIGINT closes the queue, what is in it is answered, then the sockets close."""

    def __init__(self, service: Service, host: str, port: int, stop_seconds: int = 30) -> None:
        config = uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            log_level="warning",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=stop_seconds,
            h11_max_incomplete_event_size=16 * 1024,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.batcher.close()
        super().handle_exit(sig, frame)
