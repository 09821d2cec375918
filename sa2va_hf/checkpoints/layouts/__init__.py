"""Layouts of released Sa2VA folders, one module per family. `convert.py` does everything that is not special to one.

A new family is a module with the names of `Layout`, and a line in `LAYOUTS`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch

from ...model.configuration_sa2va import Sa2VAConfig, Sa2VAGroundingConfig
from ...model.processing_sa2va import Sa2VAProcessor
from ..rules import Rule
from . import internvl, llava, qwen_vl


class Layout(Protocol):
    """What a layout module defines.

    FAMILY: its name, for messages.
    DROPPED: released tensors that are skipped on purpose (`search` decides).
    SAVED_NAMES: (as `save_pretrained` writes it, as it is called in the model) beginnings of our tensors' names, where
        transformers tells them apart; the first that fits is replaced.
    """

    FAMILY: str
    DROPPED: re.Pattern
    SAVED_NAMES: tuple[tuple[str, str], ...]

    def recognises(self, released: dict[str, Any]) -> bool:
        """Whether this config.json is of the family. Says nothing about whether all of it is supported."""

    def fits(self, config: Sa2VAConfig) -> bool:
        """Whether our model is of the family, so that `write` and `rules` apply to it."""

    def read(
        self, source: Path, released: dict[str, Any], grounding: Sa2VAGroundingConfig
    ) -> tuple[Sa2VAConfig, Sa2VAProcessor]:
        """config.json and tokenizer of the folder `source` in our words, no code of the folder run.

        Raises:
            ValueError: naming the field or file: unknown architecture or template, fields missing, a vocabulary that
                disagrees.
        """

    def released_config(self, config: Sa2VAConfig, processor: Sa2VAProcessor, dtype: torch.dtype) -> dict[str, Any]:
        """config.json as a release has it, so that `read` gives `config` and `processor` again. dtype: of the LLM's
        weights.

        Raises:
            ValueError: what the released code cannot express.
        """

    def write_processor(self, processor: Sa2VAProcessor, output: Path) -> None:
        """The other small files of a release: tokenizer, and whatever it has for pictures."""

    def rules(self, config: Sa2VAConfig) -> list[Rule]:
        """Ours -> released for every tensor of the model, `grounding_rules` among them."""


LAYOUTS: tuple[Layout, ...] = (internvl, qwen_vl, llava)


def layout_of_release(released: dict[str, Any]) -> Layout:
    """The layout of a config.json.

    Raises:
        ValueError: an unknown one.
    """
    for layout in LAYOUTS:
        if layout.recognises(released):
            return layout
    raise ValueError(
        f"config.json: model_type {released.get('model_type')!r} with architectures {released.get('architectures')} "
        "is no known Sa2VA release; expected llm_config and vision_config, or one of the families "
        f"{', '.join(layout.FAMILY for layout in LAYOUTS)}"
    )


def layout_of_ours(config: Sa2VAConfig) -> Layout:
    """The layout a model of ours can be written in.

    Raises:
        ValueError: no release has such a model.
    """
    for layout in LAYOUTS:
        if layout.fits(config):
            return layout
    raise ValueError(f"config.json: no release has a model with mllm_config {config.mllm_config.model_type!r}")
