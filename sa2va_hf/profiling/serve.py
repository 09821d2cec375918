"""The server under load on the loopback interface: requests per second and latency, one at a time and together."""

import argparse
import asyncio
import base64
import io
import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.profiling.report import table

QUESTION = "Please segment the red square in this image."


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the tables, one by one."""
    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device)
    bodies = [_body(seed) for seed in range(arguments.requests)]
    columns = ["clients", "max_batch", "requests/s", "times one client", "p50 ms", "p95 ms", "p99 ms", "mean batch"]
    rows, base = [], None
    for clients in arguments.clients:
        for max_batch in sorted({1, arguments.max_batch}) if clients > 1 else [1]:
            with _Running(predictor, max_batch, max_waiting=256) as server:
                rate, latencies, _ = server.load(bodies, clients)
                mean = server.batcher.counts.answers / server.batcher.counts.batches
            base = base or rate
            rows.append([clients, max_batch, rate, rate / base, *_percentiles(latencies), mean])
    yield f"### {arguments.requests} questions about different images\n\n" + table(columns, rows)
    capacity = 2 * arguments.max_batch
    with _Running(predictor, arguments.max_batch, arguments.max_batch) as server:
        count = 4 * capacity
        rate, latencies, statuses = server.load([_body(seed) for seed in range(count)], count)
    answered = [count, statuses[200], statuses[429], count - statuses[200] - statuses[429], rate]
    title = f"### Four times what the batch and the queue hold ({capacity}), at once\n\n"
    columns = ["asked", "answered", "refused with 429", "lost", "requests/s", "p50 ms", "p95 ms", "p99 ms"]
    yield title + table(columns, [[*answered, *_percentiles(latencies)]])


class _Running:
    """A server on a free port of the loopback interface, in a thread of this process."""

    def __init__(self, predictor: Sa2VAPredictor, max_batch: int, max_waiting: int) -> None:
        from sa2va_hf.serving.batching import Batcher  # the extra `serve` is needed for this command alone
        from sa2va_hf.serving.http import Server, Service

        self.batcher = Batcher(predictor, max_batch=max_batch, max_waiting=max_waiting)
        self.server = Server(Service(self.batcher, "model", max_open=1024), "127.0.0.1", 0)
        self.server.install_signal_handlers = lambda: None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)

    def __enter__(self) -> "_Running":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._ask(_body(0))
        self.batcher.counts.answers = self.batcher.counts.batches = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    def load(self, bodies: list[bytes], clients: int) -> tuple[float, list[float], Counter[int]]:
        """(requests per second, seconds of each that was answered, statuses)."""
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            replies = list(pool.map(self._ask, bodies))
        seconds = time.perf_counter() - start
        latencies = [latency for status, latency in replies if status == 200]
        return len(latencies) / seconds, latencies, Counter(status for status, _ in replies)

    def _ask(self, body: bytes) -> tuple[int, float]:
        start = time.perf_counter()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                reply.read()
                status = reply.status
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError:
            status = 0  # no answer
        return status, time.perf_counter() - start


def _body(seed: int) -> bytes:
    """A question about an image of its own: a red square on coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image, file = Image.fromarray(noise).resize((128, 128)), io.BytesIO()
    image.paste((220, 30, 30), (30, 40, 90, 100))
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 64}).encode()


def _percentiles(seconds: list[float]) -> list[float]:
    """p50, p95 and p99 in milliseconds."""
    if len(seconds) < 2:
        return [1000 * value for value in (seconds or [0.0])] * 3
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return [1000 * cuts[at - 1] for at in (50, 95, 99)]
