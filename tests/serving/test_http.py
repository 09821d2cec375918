"""The server on a loopback port with the bundled model: OpenAI's client, errors in one form, clients that misbehave.

Run: pytest tests/serving/test_http.py
"""

import asyncio
import ctypes
import gc
import http.client
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chats import body, data_url, noise, png, user
from PIL import Image

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.masks import decode
from sa2va_hf.serving import batching
from sa2va_hf.serving.batching import Batcher
from sa2va_hf.serving.limits import Limits

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from sa2va_hf.serving.http import Server, Service  # noqa: E402

QUESTION = "Please segment the red square."
LIMITS = Limits(max_body=3_000_000, max_bytes=2_000_000, max_pixels=1_000_000, max_frames=50, max_new_tokens=40)
PATH = "/v1/chat/completions"


def square() -> Image.Image:
    image = Image.new("RGB", (128, 128), (250, 250, 250))
    image.paste((220, 30, 30), (30, 40, 90, 100))
    return image


ASKED = body(user(QUESTION, image=png(square())))


class Running:
    """A server in a thread."""

    def __init__(self, predictor: Sa2VAPredictor, **options: object) -> None:
        service = {name: options.pop(name) for name in ("api_key", "body_seconds", "max_open") if name in options}
        self.batcher = Batcher(predictor, LIMITS, **options)
        self.server = Server(Service(self.batcher, "shapes-tiny", **service), "127.0.0.1", 0)
        self.server.install_signal_handlers = lambda: None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def request(
        self, asked: object = None, method: str = "POST", path: str = PATH, headers: dict[str, str] | None = None
    ) -> tuple[int, dict, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        raw = asked if isinstance(asked, bytes | None) else json.dumps(asked).encode()
        connection.request(method, path, raw, {"Content-Type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, json.loads(text) if text[:1] in b"{" else text.decode(), response

    def metric(self, name: str) -> float:
        lines = self.request(method="GET", path="/metrics")[1].splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"sa2va_{name} ")))

    def idle(self) -> None:
        """Waits until nothing is open any more: what a request held has been given back."""
        end = time.monotonic() + 30
        while self.metric("open") or self.metric("open_bytes") or self.metric("waiting"):
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    return Sa2VAPredictor.from_pretrained("shapes-tiny")


@pytest.fixture(scope="module")
def running(predictor):
    server = Running(predictor, max_batch=4)
    yield server
    server.stop()


@pytest.fixture
def start(predictor):
    started = []

    def start(**options: object) -> Running:
        started.append(Running(predictor, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def held(monkeypatch):
    """The model waits before every batch until it is released."""
    gate, real = threading.Semaphore(0), batching.ask

    def ask(*arguments):
        gate.acquire()
        return real(*arguments)

    monkeypatch.setattr(batching, "ask", ask)
    return gate


# ---------------------------------------------------------------- answers
def test_an_answer_keeps_its_seg_and_brings_its_masks(running, predictor):
    status, reply, _ = running.request(ASKED)
    choice = reply["choices"][0]
    alone = predictor(image=square(), text=QUESTION)
    assert status == 200 and reply["object"] == "chat.completion" and choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == alone.text and "[SEG]" in alone.text
    (mask,) = choice["message"]["masks"]
    assert set(mask) == {"index", "phrase", "frame", "rle", "bbox", "score", "size"}
    assert (decode(mask["rle"]) == alone.masks[0, 0]).all() and mask["size"] == [128, 128]
    usage, asked = reply["usage"], [{"type": "image", "image": square()}, {"type": "text", "text": QUESTION}]
    prompt = predictor.processor.apply_chat_template([{"role": "user", "content": asked}])["input_ids"].shape[1]
    assert usage["prompt_tokens"] == prompt and usage["completion_tokens"] > 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_openais_client_talks_to_it(running):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["shapes-tiny"]
    messages = list(ASKED["messages"])
    whole = client.chat.completions.create(model="shapes-tiny", messages=messages).choices[0].message
    pieces, masks, reasons = "", [], []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(model="shapes-tiny", messages=messages, **options):
        if chunk.choices:
            pieces += chunk.choices[0].delta.content or ""
            masks += getattr(chunk.choices[0].delta, "masks", None) or []
            reasons.append(chunk.choices[0].finish_reason)
    assert pieces == whole.content and masks == whole.masks and reasons[-1] == "stop" and len(reasons) > 3
    assert chunk.usage.completion_tokens >= len(reasons) - 2 >= 2 and chunk.usage.prompt_tokens > 10
    messages += [{"role": "assistant", "content": pieces}, {"role": "user", "content": "And all the shapes?"}]
    assert client.chat.completions.create(model="shapes-tiny", messages=messages).choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="best_of") as caught:
        client.chat.completions.create(model="shapes-tiny", messages=messages, extra_body={"best_of": 2})
    assert caught.value.code == "unsupported_parameter"


def test_videos_have_masks_on_every_frame(running):
    import io

    gif = io.BytesIO()
    square().save(gif, "GIF", save_all=True, append_images=[noise(i, (128, 128)) for i in range(3)])
    clip = {"type": "video_url", "video_url": {"url": data_url(gif.getvalue(), "image/gif")}}
    status, reply, _ = running.request(body(user("Please segment the red square.", clip)))
    masks = reply["choices"][0]["message"]["masks"]
    assert status == 200 and len(masks) % 4 == 0
    assert [mask["frame"] for mask in masks] == [0, 1, 2, 3] * (len(masks) // 4)
    _, events, _ = running.request(body(user("Please segment the red square.", clip)) | {"stream": True})
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n")[:-2]]
    pieces = [chunk["choices"][0]["delta"].get("masks") for chunk in chunks]
    assert [[mask["frame"] for mask in piece] for piece in pieces if piece] == [
        [frame] * (len(masks) // 4) for frame in range(4)
    ]
    assert pieces[-1] == [] and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    by_object = sorted((mask for piece in pieces for mask in piece or ()), key=lambda mask: mask["index"])
    assert [mask["rle"] for mask in by_object] == [mask["rle"] for mask in masks]


# ---------------------------------------------------------------- errors
def frames(count: int) -> str:
    import io

    gif = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (5 * i, 255 - 5 * i, 90)) for i in range(count)]
    images[0].save(gif, "GIF", save_all=True, append_images=images[1:])
    return data_url(gif.getvalue())


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in 300 KB."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(112_530_000), 9)) + chunk(b"IEND", b"")


WRONG = {
    "100 megapixels": (lambda: body(user("?", image=png(Image.new("1", (10_000, 10_000))))), 413, "too_large"),
    "zip bomb": (lambda: body(user("?", image=bomb())), 413, "too_large"),
    "long video": (
        lambda: body(user("?", {"type": "video_url", "video_url": {"url": frames(51)}})),
        413,
        "too_large",
    ),
    "path": (lambda: body(user("?", image="/etc/passwd")), 403, "forbidden_source"),
    "file URL": (lambda: body(user("?", image="file:///etc/passwd")), 403, "forbidden_source"),
    "internal address": (lambda: body(user("?", image="http://127.0.0.1:22/")), 403, "forbidden_source"),
    "half a JSON": (lambda: json.dumps(ASKED).encode()[:500], 400, "invalid_json"),
    "no image": (lambda: body(user("?", image=b"GIF89a nonsense")), 415, "unsupported_media"),
    "large body": (lambda: b" " * 3_000_001, 413, "too_large"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_is_refused_in_one_form_and_the_server_lives_on(running, name):
    make, status, code = WRONG[name]
    got, reply, _ = running.request(make())
    assert (got, reply["error"]["code"]) == (status, code), reply
    assert set(reply["error"]) == {"message", "type", "param", "code"} and "\n" not in reply["error"]["message"]
    running.idle()
    assert running.request(method="GET", path="/health")[0] == 200


def resident() -> int:
    """Bytes of memory that this process holds, after what is free has gone back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in status if line.startswith("VmRSS:")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_memory_returns_after_what_is_refused(running):
    """100 megapixels decoded would be 300 MB, the bomb 2.7 GB."""
    bodies = [
        json.dumps(make()).encode() for name, (make, *_) in WRONG.items() if name not in ("half a JSON", "large body")
    ]

    def send_all() -> int:
        for raw in bodies:
            assert running.request(raw)[0] >= 400
        running.idle()
        return resident()

    send_all()
    before = send_all()
    assert max(send_all() for _ in range(3)) - before < 30_000_000


def test_other_paths_methods_and_types_answer_in_the_same_form(running):
    for method, path, status in (("GET", "/", 404), ("GET", PATH, 405), ("GET", "/docs", 404)):
        got, reply, _ = running.request(method=method, path=path)
        assert got == status and "code" in reply["error"]
    assert running.request(ASKED, headers={"Content-Type": "text/plain"})[0] == 415


def test_a_key_is_asked_of_everyone(start):
    server = start(api_key="secret")
    for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401)):
        assert server.request(ASKED, headers=headers)[0] == status
        assert server.request(method="GET", path="/metrics", headers=headers)[0] == status
    assert server.request(method="GET", path="/v1/models", headers={"Authorization": "Bearer secret"})[0] == 200
    assert server.request(method="GET", path="/health")[0] == 200


def send(running: Running, raw: bytes, declared: int) -> socket.socket:
    """The start of a request; the client may then do what it likes."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {declared}\r\n\r\n"
    client = socket.create_connection(("127.0.0.1", running.port), timeout=60)
    client.sendall(head.encode() + raw)
    return client


def test_bodies_cut_in_half_hang_ups_and_dawdlers_give_everything_back(start):
    server, raw = start(body_seconds=0.5), json.dumps(ASKED).encode()
    for _ in range(5):  # half a body, then gone, politely and not
        send(server, raw[: len(raw) // 2], len(raw)).close()
        rude = send(server, raw[: len(raw) // 2], len(raw))
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.close()
    for _ in range(5):  # a whole question, and gone before the answer
        send(server, raw, len(raw)).close()
    dawdler = send(server, raw[:100], len(raw))
    assert dawdler.recv(100).startswith(b"HTTP/1.1 408")
    dawdler.close()
    declared = send(server, b"", 10**12)  # refused by its header
    assert declared.recv(100).startswith(b"HTTP/1.1 413")
    declared.close()
    server.idle()
    assert server.request(ASKED)[0] == 200


def test_who_hangs_up_in_a_stream_frees_its_place(start, held):
    server = start(max_batch=1)
    raw = json.dumps(ASKED | {"stream": True}).encode()
    clients = [send(server, raw, len(raw)) for _ in range(3)]
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    held.release(50)
    server.idle()
    assert server.metric("cancelled_total") >= 2


# ---------------------------------------------------------------- load
def test_four_times_too_many_are_answered_or_refused_and_none_is_lost(start, held):
    server = start(max_batch=2, max_waiting=4)
    first = ThreadPoolExecutor(1).submit(server.request, ASKED)  # the model is busy with it
    while not server.metric("open") or server.metric("waiting"):
        time.sleep(0.01)
    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(server.request, ASKED) for _ in range(16)]
        time.sleep(0.5)
        held.release(100)
        replies = [future.result() for future in asked]
    statuses = [status for status, _, _ in replies]
    assert first.result()[0] == 200 and set(statuses) == {200, 429} and statuses.count(200) >= 4
    for status, reply, response in replies:
        if status == 429:
            assert reply["error"]["code"] == "queue_full" and response.headers["Retry-After"] == "1"
        else:
            assert len(reply["choices"][0]["message"]["masks"]) == 1
    server.idle()


def test_open_requests_are_counted_before_their_bodies_are_read(start):
    server = start(max_open=2)
    open_ones = [send(server, b"{", 1000) for _ in range(2)]
    while server.metric("open") < 2:
        time.sleep(0.01)
    assert server.request(ASKED)[0] == 429
    for client in open_ones:
        client.close()
    server.idle()
    assert server.request(ASKED)[0] == 200


def test_it_stops_in_order(predictor, held):
    server = Running(predictor, max_batch=1)
    with ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(server.request, ASKED) for _ in range(2)]
        while server.metric("open") < 2 or server.metric("waiting") < 1:
            time.sleep(0.01)
        server.batcher.close()  # what SIGTERM does first
        assert server.request(ASKED)[0] == 503 and server.request(method="GET", path="/health")[0] == 503
        held.release(9)
        server.stop()
        assert [future.result()[0] for future in asked] == [200, 200]


@pytest.mark.slow
def test_the_command_serves_and_stops_when_it_is_told_to(tmp_path):
    """`scripts/serve.py` in a process of its own, ended by SIGTERM."""
    import signal
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parents[2] / "scripts/serve.py"
    command = [sys.executable, script, "--model", "shapes-tiny", "--port", port, "--max_pixels", "20000"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    try:
        client = Running.__new__(Running)
        client.port, end = port, time.monotonic() + 240
        while True:
            try:
                if client.request(method="GET", path="/health")[0] == 200:
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.2)
        assert client.request(ASKED)[0] == 200
        assert client.request(body(user("?", image=png(Image.new("RGB", (200, 200))))))[0] == 413
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert f"http://127.0.0.1:{port}/v1" in process.stdout.read()
    finally:
        process.kill()
        process.wait()
