"""Time and memory of the predictor: by the number of [SEG] tokens, by the length of a video, by batching.

The weights are random by default, since time and memory do not depend on their values.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import InternVLConfig, PreTrainedTokenizerFast

from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SPECIAL_TOKENS, Sa2VAConfig
from sa2va_hf.model.modeling_sa2va import Sa2VAForConditionalGeneration
from sa2va_hf.model.processing_sa2va import Sa2VAProcessor
from sa2va_hf.profiling.report import measure, operations, table
from sa2va_hf.profiling.trackers import GROUNDINGS

QUESTION = "Please segment everything."


def answer(objects: int) -> str:
    """An answer with `objects` [SEG] tokens."""
    return "Sure, " + ", ".join(["[SEG]"] * objects) + "."


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges (one token per byte), with the special tokens added."""
    marks = ["<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_CONTEXT, IMAGE_END, *SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    fast.add_tokens(marks, special_tokens=True)
    return fast


def make_predictor(size: str, device: str, grounding: str = "sam2") -> Sa2VAPredictor:
    """A predictor with random weights: an LLM of width 256, and a small SAM 2 or 3, or SAM 2 large, or SAM 3."""
    fast = tokenizer()
    width = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    mllm = InternVLConfig(
        vision_config=width | {"image_size": [224, 224], "patch_size": [14, 14]},
        text_config=width | {"model_type": "qwen2", "num_key_value_heads": 4, "vocab_size": len(fast)},
        image_token_id=fast.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=64,
    )
    config = Sa2VAConfig(
        mllm_config=mllm,
        grounding_config=GROUNDINGS[grounding, size],
        seg_token_id=fast.convert_tokens_to_ids("[SEG]"),
    )
    torch.manual_seed(0)
    model = Sa2VAForConditionalGeneration(config)
    if device == "cuda":
        model = model.to(torch.bfloat16)
        model.grounding_encoder.float()
        model.text_hidden_fcs.float()
    side = config.grounding_config.image_size
    processor = Sa2VAProcessor(fast, tile_size=224, patch_size=14, max_tiles=1, grounding_image_size=side)
    return Sa2VAPredictor(model.to(device), processor)


class Clip(Sequence[Image.Image]):
    """A video of noise whose frames are created when read, so that only what the package keeps takes memory."""

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Image.Image:
        if not 0 <= number < self.length:
            raise IndexError(number)
        noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(self.size)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables one by one."""
    device, repeats = arguments.device, arguments.repeats
    if arguments.model:
        predictor = Sa2VAPredictor.from_pretrained(arguments.model, device)
    else:
        predictor = make_predictor(arguments.size, device, arguments.grounding)
    if arguments.compiled:
        predictor.compile()
    size = (320, 240)

    def clip(frames: int, objects: int, mode: str) -> Callable[[], object]:
        return lambda: predictor.segment(
            video=Clip(frames, size), text=QUESTION, answer=answer(objects), video_mode=mode
        )

    columns = ["[SEG]", "seconds", "times one [SEG]", "GFLOP", "times one [SEG]", "peak MiB"]
    for mode in ("consistent", "memory"):
        rows, base = [], None
        for objects in arguments.objects:
            work = operations(clip(arguments.frames, objects, mode))
            seconds, peak = measure(clip(arguments.frames, objects, mode), device, repeats, warm_up=False)
            base = base or (seconds, work)
            rows.append([objects, seconds, seconds / base[0], work / 1e9, work / base[1], peak])
        title = f"### A clip of {arguments.frames} frames, video mode {mode!r}\n\n"
        yield title + table(columns, rows)
    rows = []
    for frames in arguments.lengths:
        seconds, peak = measure(clip(frames, 1, "consistent"), device, 1)
        side = predictor.model.grounding_encoder.mask_size
        result = frames * (size[0] * size[1] + 4 * side * side) / 2**20
        rows.append([frames, seconds, seconds / frames, peak, result, peak - result])
    columns = ["frames", "seconds", "per frame", "peak MiB", "of which masks and logits", "the rest"]
    yield "### Longer clips, one [SEG]\n\n" + table(columns, rows)
    count, half = arguments.batch, arguments.batch // 2
    pictures = [Clip(count, size)[number] for number in range(count)]
    shown = {
        f"{count} pictures": {"image": pictures},
        f"{count} questions about one picture": {"image": pictures[:1] * count},
        f"{half} questions about a clip of {arguments.frames} frames": {
            "video": [Clip(arguments.frames, size)] * half
        },
    }
    for title, visuals in shown.items():
        ways = (_one_by_one(predictor, visuals), _at_once(predictor, visuals))
        single, batch = (measure(way, device, repeats) for way in ways)
        rows = [["one by one", *single, 1.0], ["as a batch", *batch, batch[0] / single[0]]]
        yield f"### {title}\n\n" + table(["", "seconds", "peak MiB", "times one by one"], rows)


def _one_by_one(predictor: Sa2VAPredictor, visuals: dict[str, list]) -> Callable[[], None]:
    def ask() -> None:
        for name, sources in visuals.items():
            for source in sources:
                predictor.segment(**{name: source}, text=QUESTION, answer=answer(1))

    return ask


def _at_once(predictor: Sa2VAPredictor, visuals: dict[str, list]) -> Callable[[], object]:
    count = len(next(iter(visuals.values())))
    return lambda: predictor.segment(**visuals, text=[QUESTION] * count, answer=[answer(1)] * count)
