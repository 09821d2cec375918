"""A model folder asked over HTTP and on the demo's page, in this process."""

from pathlib import Path
from typing import Any

import pytest
from chats import body, user

from sa2va_hf import Sa2VAPredictor


def ask_server_and_demo(model: Path, image: Path, question: str) -> tuple[dict[str, Any], Any]:
    """The message that the server answers (content, masks), and the demo's conversation (a `Talk`)."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    from fastapi.testclient import TestClient

    from sa2va_hf.serving.batching import Batcher
    from sa2va_hf.serving.demo import Page
    from sa2va_hf.serving.http import Service, create_app
    from sa2va_hf.serving.limits import Limits

    batcher = Batcher(Sa2VAPredictor.from_pretrained(model, device="cpu"), Limits(max_new_tokens=24))
    page = Page(batcher)
    talk, *_ = page.load(str(image))
    talk, *_ = list(page.ask(talk, question, 0))[-1]
    with TestClient(create_app(Service(batcher, "mine"))) as client:  # stops the batcher at its end
        reply = client.post("/v1/chat/completions", json=body(user(question, image=image.read_bytes())))
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"], talk
