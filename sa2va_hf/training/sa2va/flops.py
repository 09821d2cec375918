"""Floating-point operations of a training step, for the model-FLOPs utilisation (MFU) in the log.

What the model needs, not what is computed: activations that are computed again do not count. A multiply-add is two.
A matrix product costs as much again for the gradient of its input, and once more for that of its weight: frozen parts
that no gradient passes cost 1, frozen ones on its way (the LLM under LoRA) 2, trained ones 3 times the forward pass.
Attention counts in full, as in PaLM (arXiv 2204.02311, appendix B). Softmax, norms and the losses are not counted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...model.configuration_sa2va import IGNORE_INDEX

# dense bfloat16 peaks in TFLOP/s, as their maker gives them; the first name that is part of the device's counts
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "H800": 989, "A100": 312, "A800": 312, "L40S": 362, "4090": 165}


def peak_flops(device_name: str) -> float | None:
    """FLOP/s that a device can do in bfloat16; None when it is not known."""
    return next((1e12 * tflops for name, tflops in PEAKS.items() if name in device_name), None)


class StepFlops:
    """Counts micro-batches of one model. What a tile, a frame and a mask cost is measured once, on the model."""

    def __init__(self, model: nn.Module) -> None:
        """model: a `Sa2VAForConditionalGeneration`, with LoRA in it or not."""
        self.model = model
        llm = model.mllm.model.language_model
        layers = [one for one in llm.layers.modules() if isinstance(one, nn.Linear)]
        self.per_token = 2 * sum(one.weight.numel() for one in layers)
        text = model.config.mllm_config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.per_pair_of_tokens = 4 * text.num_hidden_layers * text.num_attention_heads * size
        self.per_answer_token = 2 * model.get_output_embeddings().weight.numel()
        self.trained = {
            "llm": any(one.requires_grad for one in llm.parameters()),
            "head": any(one.requires_grad for one in model.get_output_embeddings().parameters()),
        }
        self._measured: dict[str, float] = {}

    def count(self, inputs: dict[str, Any]) -> float:
        """FLOPs of forward and backward of a micro-batch, as the collator made it."""
        lengths = _lengths(inputs)
        llm = self.per_token * sum(lengths) + self.per_pair_of_tokens * sum(length**2 for length in lengths)
        head = self.per_answer_token * int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        # LoRA's own weights are few: their gradients are counted with the rest they are part of
        total = (3 if self.trained["llm"] and not self._lora() else 2) * llm + (
            3 if self.trained["head"] else 2
        ) * head
        if inputs.get("pixel_values") is not None:
            total += self._vision(inputs)
        frames = inputs.get("grounding_pixel_values")
        pairs = sum(len(one) * one.shape[1] for one in inputs.get("mask_labels") or [] if len(one))
        if frames is not None and pairs:
            total += len(frames) * self._measure("frame", frames[:1]) + 3 * pairs * self._measure("mask", frames[:1])
        return float(total)

    def _lora(self) -> bool:
        return any("lora_" in name for name, _ in self.model.mllm.named_parameters())

    def _vision(self, inputs: dict[str, Any]) -> float:
        pixels, model = inputs["pixel_values"], self.model
        if inputs.get("image_grid_thw") is not None:  # Qwen-VL: patches of all images in one row
            grids = inputs["image_grid_thw"]
            visual = model.mllm.model.visual
            return self._ran("vision", len(pixels), lambda: visual(pixels.to(visual.dtype), grid_thw=grids))
        per_tile = self._ran("tile", 1, lambda: model.backbone.features(model.mllm, pixels[:1]))
        return len(pixels) * per_tile

    def _ran(self, name: str, amount: int, call: Any) -> float:
        """What a call costs, per unit of `amount`, measured the first time."""
        if name not in self._measured:
            self._measured[name] = _operations(call) / amount
        return self._measured[name] * amount

    def _measure(self, name: str, frame: Tensor) -> float:
        """SAM 2's forward pass for a frame without masks, or for one mask more."""
        if name not in self._measured:
            encoder, size = self.model.grounding_encoder, self.model.config.grounding_config.hidden_dim
            costs = []
            for masks in (1, 2):
                index = torch.zeros(masks, dtype=torch.long, device=frame.device)
                prompts = torch.zeros(masks, size, device=frame.device)
                with self.model.grounding_precision():
                    costs.append(_operations(partial(encoder, frame, index, prompts)))
            self._measured |= {"mask": costs[1] - costs[0], "frame": 2 * costs[0] - costs[1]}
        return self._measured[name]


def _operations(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _lengths(inputs: dict[str, Any]) -> list[int]:
    """Tokens of each sample, without padding."""
    positions = inputs.get("position_ids")
    if positions is None:
        return inputs["attention_mask"].sum(1).tolist()
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], positions.shape[1]], strict=True)]
