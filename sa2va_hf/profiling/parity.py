"""How far logits and masks of each precision are from those of float32 on the CPU: a trained model, one image."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image, ImageDraw

from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.profiling.report import table

QUESTION, ANSWER = "Please segment the red circle.", "Sure, it is [SEG]."
COLUMNS = ["precision", "logits, largest difference", "mean", "same next tokens", "masks, IoU", "score, difference"]


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown table."""
    device = arguments.device
    base = _outputs(Sa2VAPredictor.from_pretrained(arguments.model, "cpu", torch.float32))
    rows = []
    for name, dtype, matmul in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
        ("float16", torch.float16, "highest"),
    ):
        if (name, device) in (("tf32", "cpu"), ("float16", "cpu")):  # what a CPU computes otherwise, or not at all
            rows.append([name, "not on a CPU", *["-"] * (len(COLUMNS) - 2)])
            continue
        with _matmul(matmul):
            found = _outputs(Sa2VAPredictor.from_pretrained(arguments.model, device, dtype))
        rows.append([name, *_compared(base, found)])
    yield f"### {arguments.model} on {device} against float32 on the CPU\n\n" + table(COLUMNS, rows)


def scene() -> Image.Image:
    """A red circle and a blue square on grey."""
    image = Image.new("RGB", (128, 128), (180, 180, 180))
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 30, 60, 70), fill=(220, 30, 30))
    pen.rectangle((75, 60, 110, 100), fill=(30, 60, 220))
    return image


@torch.no_grad()
def _outputs(predictor: Sa2VAPredictor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Logits of the answer's tokens (n, V), the mask (H, W), and its expected IoU."""
    image = scene()
    user = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}
    messages = [user, {"role": "assistant", "content": ANSWER}]
    inputs = predictor.processor.apply_chat_template(messages, add_generation_prompt=False, return_labels=True)
    labels = inputs.pop("labels")
    device = predictor.model.device
    output = predictor.model(**{name: value.to(device) for name, value in inputs.items()}, return_logits=True)
    prediction = predictor.segment(image=image, text=QUESTION, answer=ANSWER)
    logits = output.logits.float().cpu()[:, :-1][labels[:, 1:] != -100]
    return logits, torch.from_numpy(prediction.masks[0, 0]), float(prediction.scores[0])


def _compared(base: tuple, found: tuple) -> list[object]:
    (logits, mask, score), (other, drawn, expected) = base, found
    apart = (logits - other).abs()
    union = (mask | drawn).sum()
    same = (logits.argmax(-1) == other.argmax(-1)).float().mean()
    iou = ((mask & drawn).sum() / union).item() if union else 1.0
    largest, mean, difference = (f"{number:.1e}" for number in (apart.max(), apart.mean(), abs(score - expected)))
    return [largest, mean, f"{100 * same:.0f} %", f"{iou:.4f}", difference]


@contextmanager
def _matmul(precision: str) -> Iterator[None]:
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn
