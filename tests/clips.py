"""Clips that a test makes up: discs that move over noise, as files and as rows of a prepared dataset."""

import datasets
import numpy as np
import torch
from PIL import Image
from tiny import tiny_config

from sa2va_hf import masks
from sa2va_hf.data.schema import FEATURES, Object, Sample, to_row
from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.training.sam2.clip_model import Sam2ClipModel
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.prompting import PromptSettings

COLOURS = ((220, 40, 40), (40, 60, 220), (40, 180, 60))
PALETTE = [0, 0, 0, *(value for colour in COLOURS for value in colour), *[90] * (3 * 252)]


def disc(frame, thing, width=64, height=48):
    """Where object `thing` is on a frame: bool (height, width)."""
    y, x = np.mgrid[:height, :width]
    return (y - 12 - 12 * thing) ** 2 + (x - 12 - 3 * frame - 9 * thing) ** 2 < 64


def draw(frame, objects, seed=0, width=64, height=48):
    """(RGB array, ids (height, width)) of a frame."""
    picture = np.random.default_rng((seed, frame)).integers(90, 160, (height, width, 3), np.uint8)
    ids = np.zeros((height, width), np.uint8)
    for thing in range(objects):
        where = disc(frame, thing, width, height)
        picture[where], ids[where] = COLOURS[thing], thing + 1
    return picture, ids


def write_davis(root, videos, frames=6, objects=2):
    """ROOT/JPEGImages/480p/VIDEO/00000.jpg and palette masks in ROOT/Annotations/480p."""
    for seed, video in enumerate(videos):
        places = [root / kind / "480p" / video for kind in ("JPEGImages", "Annotations")]
        for place in places:
            place.mkdir(parents=True)
        for frame in range(frames):
            picture, ids = draw(frame, objects, seed)
            Image.fromarray(picture).save(places[0] / f"{frame:05d}.jpg", quality=95)
            mask = Image.fromarray(ids, "P")
            mask.putpalette(PALETTE)
            mask.save(places[1] / f"{frame:05d}.png")
    return root


def sample(folder, name, frames=6, objects=2, **changes):
    """A clip whose frames are PNG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files, ids = [], []
    for frame in range(frames):
        picture, of_frame = draw(frame, objects)
        files.append(str(folder / f"{name}_{frame}.png"))
        ids.append(of_frame)
        Image.fromarray(picture).save(files[-1])
    things = [
        Object([masks.encode(of_frame == thing + 1) for of_frame in ids], [None] * frames) for thing in range(objects)
    ]
    made = Sample(name, "referring", 64, 48, frames=files, objects=things, source="vos_folders")
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def rows(*samples):
    return datasets.Dataset.from_list([to_row(one) for one in samples], features=FEATURES)


def tiny_clip_model(**settings):
    """SAM 2.1 at 128 px with random weights from a fixed seed and nothing dropped; `settings` of its prompts."""
    config = tiny_config().grounding_config
    config = Sa2VAGroundingConfig(**(config.to_dict() | {"version": "2.1"}))
    torch.manual_seed(0)
    sam2 = build_sam2(config)
    set_dropout(sam2, 0.0, 0.0)
    gate = settings.pop("gate_masks", True)
    return Sam2ClipModel(sam2, config, PromptSettings(**settings), gate_masks=gate).train()
