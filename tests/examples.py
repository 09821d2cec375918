"""Samples of every kind as `Sa2VADataset` gives them, and batches of them."""

import numpy as np
import torch
from PIL import Image
from tiny import tiny_processor

from sa2va_hf.data.collator import Sa2VACollator

KINDS = ("image", "text", "clip", "region", "image without masks", "two objects")


def picture(seed, size=(100, 60)):
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def example(kind, seed=0):
    """A sample as `Sa2VADataset` gives it."""
    frames, answers, content = 1, ["It is [SEG]."], [{"type": "image", "image": picture(seed)}]
    if kind == "text":
        frames, content, answers = 0, [], ["Because it is so, and has been so for long."]
    elif kind == "clip":
        frames, content = 2, [{"type": "video", "video": [picture(seed), picture(seed + 1)]}]
        answers = ["Sure, [SEG].", "It is not there."]
    elif kind == "region":
        content.append({"type": "region", "mask": np.arange(6000).reshape(60, 100) < 3000})
    elif kind == "image without masks":
        answers = ["Noise."]
    elif kind == "two objects":
        answers = ["The dog [SEG] and the cat [SEG]."]
    messages = []
    for answer in answers:
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": f"What of {seed}?"}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        content = []
    objects = sum(answer.count("[SEG]") for answer in answers)
    masks = torch.from_numpy(np.random.default_rng(seed).random((objects, max(frames, 1), 60, 100)) > 0.5)
    return {"messages": messages, "mask_labels": masks, "sample_id": f"{kind} {seed}"}


def batch(kinds, join, backbone="internvl"):
    inputs = Sa2VACollator(tiny_processor(backbone), join=join)(
        [example(kind, seed) for seed, kind in enumerate(kinds)]
    )
    inputs.pop("sample_ids")
    return inputs
