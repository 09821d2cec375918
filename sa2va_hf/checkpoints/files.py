"""Names of files in checkpoint folders, and reading the small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PROCESSOR, GENERATION, CARD = "config.json", "processor_config.json", "generation_config.json", "README.md"
TRAIN_CONFIG, TRAINER_STATE = "train_config.yaml", "trainer_state.json"
LFS_POINTER = b"version https://git-lfs"


def damage(path: Path) -> str:
    """Why a file may be unreadable, and what to do about it."""
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "a git-lfs pointer, not the file itself: run `git lfs pull` there, or download with `hf download`"
    return "cannot be read, it may be cut short: compare its size with the source and copy it again"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is no JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {damage(path)} (expected JSON: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with named fields, got a {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """`name` (JSON or YAML) of a run's checkpoint, or of the run's folder above it; empty where there is none."""
    for path in (folder / name, folder.absolute().parent / name):
        if path.is_file():
            content = read_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}
