"""What the table of sources is made of: a small root on disk, the samples in it, and ways to damage it."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Sample

Damage = Callable[[Path], dict | None]  # of a root; it may give options for the source instead


@dataclass
class Fixture:
    """A root of a source in the form that its files have on disk, and what must come of it.

    make: writes the root. expected: its samples, in order; two at least, of which no two share a record.
    records: damage to one record, by (part of) the reason of the reject that must come of it.
    files: damage to what many records need, or wrong options, by (part of) the message of the ValueError.
    """

    make: Callable[[Path], Any]
    expected: Callable[[Path], list[Sample]]
    records: dict[str, Damage]
    files: dict[str, Damage]
    split: str = "train"
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""  # what samples name as theirs, where that is not the key


# ---------------------------------------------------------------- expectations


def block(size, *box):
    """The mask of a box (x0, y0, x1, y1; the ends exclusive) in a picture of size (width, height)."""
    x0, y0, x1, y1 = box
    mask = np.zeros(size[::-1], dtype=bool)
    mask[y0:y1, x0:x1] = True
    return masks.encode(mask)


def thing(size, box, category=None):
    """An object of a picture that fills its box."""
    return Object([block(size, *box)], [tuple(map(float, box))], category)


def drawn(mask, category=None):
    """An object of a picture, of a bool mask, with its tight box."""
    return Object([masks.encode(mask)], [masks.mask_to_box(mask)], category)


def plain(sample_id, size, path, objects, expressions, source, **more):
    """A sample of one picture with expressions. more: further fields."""
    frames = [str(path)]
    of_picture = {"frames": frames, "objects": objects, "expressions": expressions, "source": source}
    return Sample(sample_id, "referring", *size, **of_picture | more)


def said(*texts, kind=""):
    """Expressions of (text, indices of objects)."""
    return [Expression(text, targets, kind) for text, *targets in texts]


# ---------------------------------------------------------------- damage


def load(path):
    """A JSON file or a pickle. Some JSON of the datasets is in Latin-1; ours in UTF-8 is all ASCII."""
    data = path.read_bytes()
    return pickle.loads(data) if path.suffix in (".p", ".pkl") else json.loads(data.decode("latin-1"))


def save(path, content):
    binary = path.suffix in (".p", ".pkl")
    path.write_bytes(pickle.dumps(content, 0) if binary else json.dumps(content).encode())


def change(path, change_content):
    """Changes a JSON file or a pickle in place."""
    content = load(path)
    change_content(content)
    save(path, content)


def put(file, *where):
    """Puts a value into a JSON file or a pickle. where: keys and indices that lead there, and the value."""
    *keys, last, value = where

    def damage(root):
        content = place = load(root / file)
        for key in keys:
            place = place[key]
        place[last] = value
        save(root / file, content)

    return damage


def cut(file, *where):
    """Takes a key out of a JSON file or a pickle. where: keys and indices that lead there."""
    *keys, last = where

    def damage(root):
        content = place = load(root / file)
        for key in keys:
            place = place[key]
        del place[last]
        save(root / file, content)

    return damage


def text(file, content):
    """Writes other text into a file."""
    return lambda root: (root / file).write_text(content) and None


def drop(file):
    """Takes a file away, or a folder."""

    def damage(root):
        shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()

    return damage


def grey(file, *size):
    """A grey picture of that size in place of another, all 0."""
    return lambda root: Image.new("L", size).save(root / file)


def with_options(**options):
    return lambda root: options
