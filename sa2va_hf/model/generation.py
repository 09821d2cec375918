"""`generate` of a Sa2VA model: the LLM decodes from the embeddings of the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_NEW_TOKENS = 512  # unless `generate` is told


class PromptedGenerationMixin:
    """`generate` and `generate_new_tokens` for the model that inherits it."""

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, streamer: Any = None, **kwargs: Any
    ) -> Any:
        """Prompt and answer as token ids (B, L + new tokens), as `generate` of every decoder in transformers.

        Args:
            input_ids, attention_mask: (B, L), padded on either side; further inputs as a processor makes them.
            streamer: is given the prompt, then the new tokens.
            kwargs: arguments of transformers' `generate`; greedy unless they say otherwise. With
                `return_dict_in_generate` its output comes back, the prompt in front of `sequences`.
        """
        streamer = None if streamer is None else _PromptFirst(streamer, input_ids)
        output = self.generate_new_tokens(input_ids, attention_mask, streamer=streamer, **kwargs)
        new = output if isinstance(output, Tensor) else output.sequences
        prompts = input_ids.repeat_interleave(len(new) // len(input_ids), dim=0)
        sequences = torch.cat([prompts, new.to(prompts.device)], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    @torch.no_grad()
    def generate_new_tokens(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_masks: Tensor | None = None,
        region_tiles: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        grounding_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `generate`, without the prompt: token ids (B, new tokens), as the released code returns them.

        The tokens of every row are moved to its right edge first: a decoder continues from the last position. The
        grounding inputs are accepted, so that a processor's output fits, and are not used here.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        order = attention_mask.argsort(dim=1, stable=True)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        visuals = self._visuals(input_ids, pixel_values, region_masks, region_tiles, image_grid_thw)
        inputs = self.backbone.llm_inputs(self.mllm, input_ids, visuals)
        if kwargs.get("generation_config") is None:
            kwargs.pop("generation_config", None)
            self.mllm.generation_config = self.generation_config
            kwargs.setdefault("do_sample", False)
            if self.generation_config.max_new_tokens is None and "max_length" not in kwargs:
                kwargs.setdefault("max_new_tokens", MAX_NEW_TOKENS)  # transformers' own default is 20, with the prompt
        # For embeddings alone transformers 5.3 makes these ids itself, on the device of the weights: a disk has none.
        no_ids = {"input_ids": input_ids[:, :0]}
        output = self.mllm.generate(**no_ids | inputs, attention_mask=attention_mask, **kwargs)
        if "input_ids" not in inputs:
            return output
        length = input_ids.shape[1]  # of ids, `generate` repeats the prompt
        if isinstance(output, Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of the LLM, which runs the decoding; PEFT looks for it here."""
        return self.mllm.prepare_inputs_for_generation(*args, **kwargs)


class _PromptFirst:
    """A streamer whose first `put` gets the prompt: the LLM itself is given embeddings and knows no ids of it."""

    def __init__(self, streamer: Any, input_ids: Tensor) -> None:
        self.streamer, self.prompt = streamer, input_ids

    def put(self, ids: Tensor) -> None:
        ids, self.prompt = (ids if self.prompt is None else self.prompt), None
        self.streamer.put(ids.cpu())

    def end(self) -> None:
        self.streamer.end()
