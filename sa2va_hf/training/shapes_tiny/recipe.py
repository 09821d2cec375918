"""The recipe of `shapes-tiny`: a model at random weights, and the lessons that it goes through, one after another.

A recipe is a YAML file (`configs/shapes_tiny.yaml`): `model` has the sizes, or `start` the name of a model that the
lessons go on with (with `box_tokens: true` it gets the tokens of boxes as text), and `stages` a list of

    {name: sight, lesson: sight, options: {...}, run: {steps: 1000, learning_rate: 1.5e-3}, probes: [sight]}

`options` are arguments of the lesson's class, `run` those of `Lesson.run`. Every stage has a folder of its own: the
state to resume from, the finished model in `run/`, and what its probes measured in `probes.json`.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ...checkpoints.vocabulary import extend_vocabulary
from ...model.configuration_sa2va import IMAGE_CONTEXT, SEG_TOKEN, Sa2VAConfig
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from ..sa2va.trainable import add_box_tokens
from . import probe
from .choosing import Choosing
from .lesson import Lesson
from .memory import Following
from .ordering import Ordering
from .outlining import Outlining
from .placing import Placing
from .sight import Sight
from .spoken import Spoken
from .words import Words, make_tokenizer

logger = logging.getLogger(__name__)

LESSONS: dict[str, type[Lesson]] = {
    "words": Words,
    "sight": Sight,
    "choosing": Choosing,
    "ordering": Ordering,
    "outlining": Outlining,
    "spoken": Spoken,
    "following": Following,
    "placing": Placing,
}
PROBES = {"sight": probe.sight, "choosing": probe.choosing, "following": probe.following}
PACKAGED = Path(__file__).resolve().parents[2] / "pretrained/shapes-tiny"


def make_model(
    sizes: dict[str, Any], texts: list[str] | None = None
) -> tuple[Sa2VAForConditionalGeneration, Sa2VAProcessor]:
    """The model at random weights, and its processor. texts: what the tokenizer learns; default: `words.corpus()`."""
    tokenizer = make_tokenizer(sizes["vocab_size"], texts)
    vision, grounding = dict(sizes["vision"]), sizes["grounding"]
    side, patch = vision["image_size"][0], vision["patch_size"][0]
    tokens = side // patch * sizes["downsample_ratio"]
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    mllm = dict(
        model_type="internvl",
        vision_config=vision,
        text_config=sizes["text"] | ids | {"vocab_size": len(tokenizer), "tie_word_embeddings": False},
        initializer_range=sizes["text"]["initializer_range"],
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=int(tokens) ** 2,
        downsample_ratio=sizes["downsample_ratio"],
        tie_word_embeddings=False,
    )
    config = Sa2VAConfig(
        mllm_config=mllm,
        grounding_config=grounding,
        seg_token_id=tokenizer.convert_tokens_to_ids(SEG_TOKEN),
        video_mode=sizes["video_mode"],
        **sizes["losses"],
    )
    set_seed(0)
    model = Sa2VAForConditionalGeneration(config)
    processor = Sa2VAProcessor(
        tokenizer,
        tile_size=side,
        patch_size=patch,
        downsample_ratio=sizes["downsample_ratio"],
        max_tiles=1,
        grounding_image_size=grounding["image_size"],
    )
    return model, processor


def run(recipe: dict[str, Any], output: Path | str) -> Path:
    """Runs the stages that are not finished yet; returns the folder of the last one's model."""
    output = Path(output)
    for stage in recipe["stages"]:
        if stage["lesson"] not in LESSONS:
            raise ValueError(
                f"stage {stage['name']}: lesson: expected one of {sorted(LESSONS)}, got {stage['lesson']!r}"
            )
    start = output / "0-start"
    if not (start / "config.json").is_file():
        made = load_start(recipe) if "start" in recipe else make_model(recipe["model"])
        save(*made, start)
    for number, stage in enumerate(recipe["stages"], start=1):
        start = run_stage(stage, start, output / f"{number}-{stage['name']}", seed=number)
    return start


def load_start(recipe: dict[str, Any]) -> tuple[Sa2VAForConditionalGeneration, Sa2VAProcessor]:
    """The model that the lessons go on with, and its processor."""
    processor = Sa2VAProcessor.from_pretrained(recipe["start"])
    if recipe.get("box_tokens"):
        add_box_tokens(processor)
    model = Sa2VAForConditionalGeneration.from_pretrained(recipe["start"], dtype=torch.float32)
    extend_vocabulary(model, len(processor.tokenizer))
    return model, processor


def run_stage(stage: dict[str, Any], start: Path, folder: Path, seed: int) -> Path:
    """One stage, from the model in `start`; returns the folder of its model, which is there already if it is done."""
    result = folder / "run"
    if (result / "config.json").is_file():
        logger.info("stage %s: finished before", stage["name"])
        return result
    set_seed(seed)
    model = Sa2VAForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    processor = Sa2VAProcessor.from_pretrained(start)
    lesson = LESSONS[stage["lesson"]](model, processor, **stage.get("options", {}))
    lesson.run(folder, seed=seed, **stage["run"])
    measured = {name: PROBES[name](model, processor) for name in stage.get("probes", [])}
    logger.info("stage %s: %s", stage["name"], measured)
    (folder / "probes.json").write_text(json.dumps(measured, indent=2))
    save(model, processor, result)
    return result


def save(
    model: Sa2VAForConditionalGeneration,
    processor: Sa2VAProcessor,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """A model folder; the config is written last, so that a folder with one is complete."""
    unfinished = folder.with_suffix(".new")
    model.save_pretrained(unfinished, state_dict=state_dict)
    processor.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def install(folder: Path | str, target: Path | str = PACKAGED) -> Path:
    """The model in bfloat16 as package data, so that `from_pretrained("shapes-tiny")` finds it."""
    folder, target = Path(folder), Path(target)
    model = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(torch.bfloat16)
    # Of SAM 2 as well, which is float32 in memory.
    half = {name: value.bfloat16() for name, value in model.state_dict().items()}
    save(model, Sa2VAProcessor.from_pretrained(folder), target, state_dict=half)
    (target / "generation_config.json").unlink(missing_ok=True)  # the config names the same stops
    return target
