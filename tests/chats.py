"""Bodies of chat completions for the tests of the server."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int = 0, size: tuple[int, int] = (100, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(text: str, *items: dict[str, Any], image: bytes | str | None = None) -> dict[str, Any]:
    """A user's message with an image (bytes, or a URL) before its text."""
    shown = [] if image is None else [{"url": image if isinstance(image, str) else data_url(image)}]
    content = [{"type": "image_url", "image_url": url} for url in shown]
    return {"role": "user", "content": [*content, *items, {"type": "text", "text": text}]}


def body(*messages: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), **parameters}
