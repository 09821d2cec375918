"""Mask pictures, mostly PNGs: what their values mean, one rule for every source and for prompts.

Declared ids are read as they are; a mask that a phrase or a file name describes as a whole has one value or soft
edges; everything else is refused with the values found.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

WHITE = 255  # the object in an 8-bit mask of one object; beside ids, pixels that do not count
SMALL = 8  # pixels: where half of many values have fewer, they are shades of an edge and no objects
FEW_IDS = 16  # ids from 1 to this are ids; more values, or larger ones beside 255, may be the edges of a grey mask


class MaskPicture(NamedTuple):
    """A decoded mask picture, before it is decided what its values mean.

    values: int32 (H, W), the palette index or the grey value. palette: the values are indices of a palette of colours,
    which declares an id per object. lossy: the file is a JPEG. name: how messages call it.
    """

    values: np.ndarray
    palette: bool
    lossy: bool
    name: str


def read_ids(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """The values (H, W) of a mask picture as integers: the index of a palette PNG, the value of a grey or 1-bit one.

    For pictures whose values are declared: by a list of classes, a labels.json, or the id that is asked for. 16-bit
    ids are kept. Colours are never turned into a palette, since the indices would be invented.

    Raises:
        ValueError: no picture, a colour picture (unless red, green and blue are equal everywhere and nothing is
            transparent, which is grey saved in colour), or a JPEG, whose compression changes the values.
    """
    picture = open_mask(png)
    if picture.lossy:
        raise ValueError(f"{picture.name} is a JPEG, whose compression changes mask values: save masks as PNG")
    return picture.values


def read_mask(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """The one mask (H, W), bool, of a picture that a phrase or a file name describes as a whole.

    With one value beside 0, the mask is where that value is. A grey mask from 0 to 255 with soft edges (anti-aliased,
    resized, saved as JPEG in between) is cut at 128.

    Raises:
        ValueError: as `read_ids`, or the picture has several values that are not such edges; it lists them.
    """
    picture = open_mask(png)
    values, counts = _foreground(picture)
    if len(values) == 0 or (len(values) == 1 and not picture.lossy):
        return picture.values != 0
    if _is_soft(picture, values, counts):
        return _above_half(picture.values)
    raise ValueError(
        f"{picture.name} holds the values {_listed(values)}, not one mask: save it with 0 and 255 only, or say which "
        'value is meant ({"png": FILE, "id": 3}, or ids in labels.json)'
    )


def read_objects(png: str | Path | bytes | Image.Image) -> np.ndarray:
    """Ids (H, W) of the objects of a mask picture: 0 background, and 255 beside other ids is void.

    A grey mask from 0 to 255 with soft edges is one object, of the id 255.

    Raises:
        ValueError: as `read_ids`, or it cannot be told whether the values are ids or soft edges; it lists them.
    """
    picture = open_mask(png)
    values, counts = _foreground(picture)
    if _is_soft(picture, values, counts):
        return np.where(_above_half(picture.values), 255, 0).astype(np.int32)
    others = values[values != WHITE]
    dust = not picture.palette and len(values) > FEW_IDS and np.median(counts) < SMALL
    mixed = not picture.palette and 0 < len(others) < len(values) and others.max() > FEW_IDS
    if mixed or dust or (picture.lossy and len(values)):
        blurred = "its edges look blurred: " if len(values) > FEW_IDS else ""
        raise ValueError(
            f"{picture.name} holds the values {_listed(values)}: {blurred}which of them are objects is not known. "
            "Save it with 0 and 255 only, or as a palette PNG with one index per object"
        )
    return picture.values


def from_png(png: str | Path | bytes | Image.Image, object_id: int | None = None) -> np.ndarray:
    """The bool mask (H, W) of a mask picture: its one mask (`read_mask`), or where it is `object_id` (`read_ids`)."""
    return read_mask(png) if object_id is None else read_ids(png) == object_id


def open_mask(png: str | Path | bytes | Image.Image) -> MaskPicture:
    """The values of a mask picture as they are stored. Raises ValueError for no picture, and for a colour picture."""
    name = "the mask" if isinstance(png, bytes | Image.Image) else str(png)
    try:
        image = png if isinstance(png, Image.Image) else Image.open(io.BytesIO(png) if isinstance(png, bytes) else png)
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    values, lossy = np.asarray(image), image.format in ("JPEG", "MPO")
    if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        palette = image.mode == "P" and not _is_grey_ramp(image)
        return MaskPicture(values.astype(np.int32), palette, lossy, name)
    if image.mode in ("RGB", "RGBA", "LA"):
        opaque = image.mode == "RGB" or bool((values[..., -1] == 255).all())
        colours = values[..., : 3 if image.mode.startswith("RGB") else 1]
        if opaque and bool((colours == colours[..., :1]).all()):
            return MaskPicture(colours[..., 0].astype(np.int32), False, lossy, name)
    if image.mode in ("RGBA", "LA") and not opaque:
        raise ValueError(
            f"{name} has transparent pixels (mode {image.mode}): whether its colours or its transparency are the "
            "mask is not known. Save the mask with one channel: 0 background and 255 object"
        )
    raise ValueError(
        f"{name} is a colour picture (mode {image.mode}): which colour is which object is not known. "
        "Save the mask with one channel: 0 background and 255 object, or one value (palette index or grey) per object"
    )


def _is_grey_ramp(image: Image.Image) -> bool:
    """Whether the palette gives every index the grey of that value: then the indices are greys, not ids."""
    palette = np.array(image.getpalette("RGB") or [], dtype=int).reshape(-1, 3)
    return len(palette) == 256 and bool((palette == np.arange(256)[:, None]).all())


def _foreground(picture: MaskPicture) -> tuple[np.ndarray, np.ndarray]:
    """The values beside 0, rising, and how many pixels have each."""
    values, counts = np.unique(picture.values, return_counts=True)
    return values[values != 0], counts[values != 0]


def _is_soft(picture: MaskPicture, values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether a grey picture is one mask from 0 to white whose edges are blurred, and not a picture of ids.

    Of many values there must be no more in the middle than at the white end. Of few, the other values must not look
    like ids from 1 on and must cover less than half of what white does.
    """
    white = 65535 if len(values) and values.max() > WHITE else WHITE
    if picture.palette or len(values) == 0 or (len(values) == 1 and not picture.lossy):
        return False
    shares = values / white
    if len(values) > FEW_IDS or picture.lossy:
        middle = counts[(shares > 0.25) & (shares < 0.75)].sum()
        return bool(shares.max() >= 0.875 and middle <= counts[shares >= 0.75].sum())
    others = values < white
    edges = others.sum() < len(values) and values[others].max() > FEW_IDS
    return bool(edges and 2 * counts[others].sum() <= counts[-1])


def _above_half(values: np.ndarray) -> np.ndarray:
    return values > (65535 if values.max() > WHITE else WHITE) // 2


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(map(str, values[:20].tolist()))
    return shown if len(values) <= 20 else f"{shown} and {len(values) - 20} more"
