"""Pairs of frames with the mask of one object in both: what the mask-caption dual loop takes from SA-V.

ROOT/**/masklet_data_*.npz      frame1 (H, W, 3) uint8, mask1 (H, W), frame2, mask2; masks of 0 and 1 or 0 and 255
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.listing import files_below
from sa2va_hf.data.schema import Object, Reject, Sample
from sa2va_hf.data.sources.files import keep_split
from sa2va_hf.data.sources.portions import Portion, in_portions
from sa2va_hf.listings import listed

PATTERN = "masklet_data_*.npz"
ARRAYS = ("frame1", "mask1", "frame2", "mask2")


@in_portions
def paired_frames(root: Path | str, split: str, *, val_fraction: float = 0.0) -> Iterator[Sample | Reject | Portion]:
    """One clip of two frames (embedded, as PNG) with one object per file, without text.

    val_fraction: see `keep_split`; there are no splits. Raises ValueError when there are no such files.
    """
    root = Path(root)
    files = {str(path.relative_to(root).with_suffix("")): path for path in files_below(root, PATTERN)}
    if not files:
        raise ValueError(f"there are no files {PATTERN} below {root}")
    chosen = keep_split(files, split, val_fraction, "pairs of frames have none")
    for name, file in files.items():
        if name in chosen:
            yield partial(_records, name, file)


def _records(name: str, file: Path) -> Iterator[Sample | Reject]:
    try:
        yield _sample(name, file)
    except ValueError as error:
        yield Reject(name, str(error), str(file))


def _sample(name: str, file: Path) -> Sample:
    arrays = _read(file)
    frames, rles = [], []
    for number in "12":
        frame, mask = arrays[f"frame{number}"], arrays[f"mask{number}"]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"frame{number} must be uint8 (height, width, 3), got {frame.dtype} {frame.shape}")
        if mask.shape != frame.shape[:2]:
            raise ValueError(f"mask{number} is {mask.shape} but frame{number} is {frame.shape[:2]} (height, width)")
        if frame.shape != arrays["frame1"].shape:
            raise ValueError(f"frame2 is {frame.shape[:2]} but frame1 is {arrays['frame1'].shape[:2]} (height, width)")
        if not (pixels := _binary(mask, f"mask{number}")).any():
            raise ValueError(f"mask{number} covers no pixel: both frames must show the object")
        rles.append(masks.encode(pixels))
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG", compress_level=1)  # without loss; a higher level is 10 times slower
        frames.append(buffer.getvalue())
    height, width = rles[0]["size"]
    instance = Object(rles, [masks.rle_to_box(rle) for rle in rles])
    return Sample(name, "referring", width, height, frames=frames, objects=[instance], source="paired_frames")


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as content:
            if missing := [name for name in ARRAYS if name not in content]:
                raise ValueError(f"{', '.join(missing)} missing; it has {listed(sorted(content))}")
            return {name: content[name] for name in ARRAYS}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it cannot be read as npz: {error}") from error


def _binary(mask: np.ndarray, name: str) -> np.ndarray:
    """Masks that were resized have values between 0 and their highest, 1 or 255: half of it decides."""
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "iuf" or not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"{name} must be bool or have values of 0 to 1 or 0 to 255, got {mask.dtype}")
    return mask > (0.5 if mask.max() <= 1 else 127.5)
