"""What the sources of dialogues share: messages paired to turns, questions chosen by id, regions measured in cells."""

import hashlib
from typing import Any

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.sources.files import expect_keys

SPEAKERS = ("human", "gpt")
GRID = 16  # cells per side of the grid that the released models pool regions from
MIN_CELLS = 4  # of it that a region must cover, as in the reference (sa2va_data_06_vp.py)


def seeded(sample_id: str) -> np.random.Generator:
    """A generator that depends on the id alone: a sample's question is the same whenever it is read."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big"))


def read_turns(conversations: Any) -> tuple[list[tuple[str, str]], int]:
    """(question, answer) pairs of LLaVA's `conversations`, and how many messages belong to none and are skipped.

    Those are answers before the first question and questions after the last answer, as in the reference
    (sa2va_data_02_vqa.py). Messages of the human that follow each other are one question. ValueError when a message is
    malformed or empty, an answer follows an answer, or no pair is left.
    """
    if not isinstance(conversations, list) or not conversations:
        raise ValueError(f"'conversations' must be a list of messages, got {conversations!r:.80}")
    pairs: list[tuple[str, str]] = []
    asked: list[str] = []
    left_out = 0
    for number, message in enumerate(conversations):
        name = f"message {number}"
        expect_keys(message, {"from": str, "value": str}, name)
        if message["from"] not in SPEAKERS:
            raise ValueError(f"{name}: 'from' must be human or gpt, got {message['from']!r}")
        if not message["value"].strip():
            raise ValueError(f"{name} of {message['from']} is empty")
        if message["from"] == "human":
            asked.append(message["value"])
        elif asked:
            pairs.append(("\n".join(asked), message["value"]))
            asked = []
        elif pairs:
            raise ValueError(f"{name} is an answer that follows an answer")
        else:
            left_out += 1
    if not pairs:
        raise ValueError(f"no question of the {len(conversations)} messages is answered")
    return pairs, left_out + len(asked)


def region_mask(segmentation: Any, height: int, width: int, min_cells: int) -> masks.RLE:
    """The mask of a region prompt. ValueError when it is none, or covers fewer than `min_cells` cells of the grid."""
    rle = masks.from_segmentation(segmentation, height, width)
    if rle is None:
        raise ValueError("it has no mask")
    if (cells := covered_cells(rle)) < min_cells:
        raise ValueError(
            f"it covers {cells} of the {GRID} x {GRID} cells that regions are seen in, {min_cells} are needed"
        )
    return rle


def covered_cells(rle: masks.RLE) -> int:
    """Cells of the grid whose upper left pixel is of the mask: nearest sampling, as the model's processor has it."""
    return int(masks.decode_at(rle, *(masks.spread(side, GRID) for side in rle["size"])).sum())
