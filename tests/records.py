"""Records of a source that a test makes up: pictures in tmp_path, samples that show them, and the folder written."""

from pathlib import Path

import numpy as np
from datasets import load_from_disk
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import Expression, Object, Sample, from_row


def picture(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.convert(mode).save(path, **options)
    return str(path)


def sample(name, frame, size=(40, 30), **changes):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[2:9, 3:11] = True
    thing = Object([masks.encode(mask)], [masks.mask_to_box(mask)])
    made = Sample(name, "referring", *size, frames=[frame], objects=[thing], expressions=[Expression("it", [0], "k")])
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def clip(name, frames):
    """A clip of these files; the first frame is annotated."""
    return sample(name, "", frames=frames, num_frames=len(frames), annotated=[0])


def given(tmp_path, **options):
    return prepare("given", tmp_path, "train", tmp_path / "out", **options)


def read(folder):
    return [from_row(row) for row in load_from_disk(str(folder))]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
