"""Time of a training step by part, tokens per second and memory, for each optimisation and without it.

Weights are random and images are noise, since time and memory do not depend on their values. --size 2b and 8b have the
shapes of InternVL3-2B and -8B with SAM 2 large and are trained as released (LoRA, rank 128 and 256); they need a GPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import InternVLConfig

from sa2va_hf.arguments import ModelArguments
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, Sa2VAConfig
from sa2va_hf.model.modeling_sa2va import Sa2VAForConditionalGeneration
from sa2va_hf.model.processing_sa2va import Sa2VAProcessor
from sa2va_hf.model.visuals import frame_files, open_image
from sa2va_hf.profiling.inference import tokenizer
from sa2va_hf.profiling.report import Memory, operations, table
from sa2va_hf.profiling.trackers import GROUNDINGS
from sa2va_hf.training.sa2va.flops import StepFlops, peak_flops
from sa2va_hf.training.sa2va.speed import compile_layers, use_liger
from sa2va_hf.training.sa2va.trainable import make_trainable

OpenPicture = Callable[[int, tuple[int, int]], Image.Image]
_VIT = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_LLMS = {  # Qwen2.5-1.5B and -7B
    "2b": (1536, 28, 12, 2, 8960, 151674),
    "8b": (3584, 28, 28, 4, 18944, 151674),
}


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables one by one."""
    samples = {"pictures": ("pictures", picture_sample), "clips": ("clips of 5 frames", clip_sample)}
    for name, make in (samples[visual] for visual in arguments.visuals):
        model, processor = build(arguments.size, arguments.device, arguments.grounding)
        open_picture = opener(arguments.images)
        examples = [make(number, open_picture) for number in range(arguments.batch)]
        rows = []
        for title, options in VARIANTS.items():
            if missing := _missing(options, arguments.device):
                rows.append([title, missing, *["-"] * (len(COLUMNS) - 1)])
                continue
            rows.append([title, *measure_steps(model, processor, examples, arguments, **options).row()])
        yield f"### {arguments.batch} {name} a step\n\n" + table(["", *COLUMNS], rows)


# ---------------------------------------------------------------- what is trained


def build(size: str, device: str, grounding: str = "sam2") -> tuple[nn.Module, Sa2VAProcessor]:
    """A model with LoRA, ready for training, and its processor."""
    fast = tokenizer()
    if size == "tiny":
        width = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        vision = width | {"image_size": [224, 224], "patch_size": [14, 14]}
        text = width | {"model_type": "qwen2", "num_key_value_heads": 4, "vocab_size": 32_000}
        tile, per_tile = 224, 64
    else:
        hidden, layers, heads, kv_heads, inner, vocabulary = _LLMS[size]
        vision = _VIT | {"image_size": [448, 448], "patch_size": [14, 14]}
        text = {
            "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary,
        }  # fmt: skip
        tile, per_tile = 448, 256
    mllm = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=fast.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=per_tile,
    )
    config = Sa2VAConfig(
        mllm_config=mllm,
        grounding_config=GROUNDINGS[grounding, "tiny" if size == "tiny" else "large"],
        seg_token_id=fast.convert_tokens_to_ids("[SEG]"),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Sa2VAForConditionalGeneration(config)
    if device == "cuda":
        model.mllm.to(torch.bfloat16)
    model = make_trainable(model, ModelArguments("random", lora_rank=256 if size == "8b" else 128))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    side = config.grounding_config.image_size
    processor = Sa2VAProcessor(fast, tile_size=tile, patch_size=14, max_tiles=4, grounding_image_size=side)
    return model.to(device).train(), processor


def opener(folder: Path | None) -> OpenPicture:
    """(number, size) -> a picture of that size: noise, or one of the folder's."""
    if folder is None:
        return _noise
    files = [*frame_files(folder)]
    if not files:
        raise ValueError(f"{folder}: expected pictures in this folder, found none")
    return lambda number, size: open_image(files[number % len(files)]).resize(size)


def _noise(number: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def _dialogue(visual: dict, turns: int) -> list[dict]:
    messages = []
    for turn in range(turns):
        content = [*([visual] if turn == 0 else []), {"type": "text", "text": f"Please segment thing {turn}."}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "Sure, it is [SEG]."}]
    return messages


def picture_sample(number: int, open_picture: OpenPicture = _noise) -> dict:
    """An image with 1 to 5 expressions, so that the samples of a batch differ."""
    size, turns = [(640, 480), (448, 448), (480, 640)][number % 3], 1 + number % 5
    masks = torch.zeros(turns, 1, size[1], size[0], dtype=torch.bool)
    masks[..., 100:300, 100:300] = True
    messages = _dialogue({"type": "image", "image": open_picture(number, size)}, turns)
    return {"messages": messages, "mask_labels": masks, "sample_id": str(number)}


def clip_sample(number: int, open_picture: OpenPicture = _noise) -> dict:
    """A clip of 5 frames with 1 to 3 expressions."""
    turns = 1 + number % 3
    frames = [open_picture(10 * number + frame, (640, 360)) for frame in range(5)]
    masks = torch.zeros(turns, 5, 360, 640, dtype=torch.bool)
    masks[..., 100:300, 100:300] = True
    messages = _dialogue({"type": "video", "video": frames}, turns)
    return {"messages": messages, "mask_labels": masks, "sample_id": str(number)}


# ---------------------------------------------------------------- what is measured

PARTS = ("data", "ViT", "LLM", "SAM encoder", "decoder", "rest of forward", "backward", "optimiser")
COLUMNS = ["s/step", *PARTS, "tokens/s", "masks/s", "real tokens", "TFLOP/step", "MFU", "peak MiB"]

VARIANTS = {
    "all logits, padded": {"lean": False, "join": False},
    "logits of answers, padded": {"lean": True, "join": False},
    "logits of answers, joined": {"lean": True, "join": True},
    "the same, FlashAttention": {"lean": True, "join": True, "attention": "flash_attention_2"},
    "joined, layers compiled": {"lean": True, "join": True, "compiled": True},
    "joined, activations again": {"lean": True, "join": True, "again": True},  # it leaves hooks behind
    "joined, Liger's kernels": {"lean": True, "join": True, "liger": True},  # last: they stay
}


def _missing(options: dict[str, object], device: str) -> str:
    """What this machine lacks for a variant, or nothing."""
    for option, package in (("attention", "flash_attn"), ("liger", "liger_kernel")):
        if option in options and (device != "cuda" or find_spec(package) is None):
            return "needs a GPU" if device != "cuda" else f"needs {package}"
    return ""


@dataclass
class Measured:
    """Measurements of one variant: seconds per step and per part, tokens, operations, memory."""

    seconds: float
    parts: dict[str, float]
    tokens: int
    masks: int
    real: float
    work: float  # operations that were computed
    needed: float  # operations of the model, without recomputed activations
    peak: float
    device: str

    def row(self) -> list[object]:
        shares = [f"{100 * self.parts[name] / self.seconds:.0f} %" for name in PARTS]
        peak = peak_flops(self.device)
        used = f"{100 * self.needed / self.seconds / peak:.0f} %" if peak else "-"
        return [
            self.seconds,
            *shares,
            int(self.tokens / self.seconds),
            self.masks / self.seconds,
            self.real,
            self.work / 1e12,
            used,
            self.peak,
        ]


class Clock:
    """Sums the time of forward passes per named module, in seconds."""

    def __init__(self, modules: dict[str, nn.Module], device: str) -> None:
        self.device, self.seconds, self.handles = device, dict.fromkeys(PARTS, 0.0), []
        for name, module in modules.items():
            self.handles.append(module.register_forward_pre_hook(partial(self._start, name)))
            self.handles.append(module.register_forward_hook(partial(self._stop, name)))
        self.since: dict[str, float] = {}

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self, name: str, *_: object) -> None:
        self.since[name] = self.now()

    def _stop(self, name: str, *_: object) -> None:
        self.seconds[name] += self.now() - self.since[name]

    def timed(self, name: str, call: Callable[[], object]) -> object:
        start = self.now()
        result = call()
        self.seconds[name] += self.now() - start
        return result

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def _moved(value: object, device: str) -> object:
    """Tensors, also of a list, on the device."""
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def measure_steps(
    model: nn.Module,
    processor: Sa2VAProcessor,
    examples: list[dict],
    arguments: argparse.Namespace,
    lean: bool,
    join: bool,
    again: bool = False,
    compiled: bool = False,
    liger: bool = False,
    attention: str | None = None,
) -> Measured:
    """Times training steps on the same samples.

    Args:
        lean: compute logits at answer tokens only.
        join: put the samples of a batch into one row.
        again: recompute activations in the backward pass.
        compiled: see `compile_layers`.
        liger: see `use_liger`.
        attention: the attention of the language model, in place of its own.
    """
    device, base = arguments.device, model.get_base_model()
    encoder = base.grounding_encoder
    vision, _ = base.backbone.vision(base.mllm)
    modules = {"ViT": vision, "LLM": base.mllm.model.language_model}
    modules |= {"SAM encoder": encoder.image_encoder, "decoder": encoder.mask_decoder}
    language_model = base.mllm.model.language_model
    usual = language_model.config._attn_implementation
    if attention:
        language_model.set_attn_implementation(attention)
    if liger:
        use_liger(language_model)
    if again:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_disable()
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5, fused=True)
    collate = Sa2VACollator(processor, join=join)
    precision = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()

    def batch() -> dict:
        inputs = {name: _moved(value, device) for name, value in collate(examples).items() if name != "sample_ids"}
        return inputs | {"return_logits": not lean}

    def step(clock: Clock) -> dict:
        inputs = clock.timed("data", batch)
        with precision:
            output = clock.timed("rest of forward", lambda: model(**inputs))
        clock.timed("backward", output.loss.backward)
        clock.timed("optimiser", lambda: (optimiser.step(), optimiser.zero_grad()))
        return inputs

    work = operations(lambda: step(Clock({}, device)))
    if compiled:
        compile_layers(base)
        step(Clock({}, device))
    clock = Clock(modules, device)
    try:
        with Memory(device) as memory:
            start = clock.now()
            for _ in range(arguments.steps):
                inputs = step(clock)
            seconds = (clock.now() - start) / arguments.steps
    finally:
        clock.close()
        if attention:
            language_model.set_attn_implementation(usual)
        for module in base.modules():
            module._compiled_call_impl = None  # as it was before `compile_layers`
    parts = {name: total / arguments.steps for name, total in clock.seconds.items()}
    parts["rest of forward"] -= sum(parts[name] for name in modules)
    tokens = int(inputs["attention_mask"].sum())
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    real = tokens / inputs["input_ids"].numel()
    masks = sum(len(one) * one.shape[1] for one in inputs["mask_labels"])
    return Measured(seconds, parts, tokens, masks, real, work, StepFlops(base).count(inputs), memory.peak, name)
