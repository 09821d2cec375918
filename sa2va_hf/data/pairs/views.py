"""Two views of one picture, for data without clips: the same picture twice, mirrored, or cropped around an object."""

import numpy as np
from PIL import Image, ImageOps

VIEWS = ("same", "flip", "crops")

View = tuple[Image.Image, np.ndarray]  # a picture (W, H), and the object's mask in it, bool (H, W)


def second_views(view: View, how: str, rng: np.random.Generator, may_flip: bool = True) -> tuple[View, View]:
    """The first and the second view of a picture with an object.

    Args:
        view: the picture and the object's mask.
        how: `same`: both are the picture; `flip`: the second one is mirrored; `crops`: each is a crop that holds the
            whole object, and one of two is mirrored.
        may_flip: False where a caption is known, in which "left" would become wrong.
    """
    if how == "same":
        return view, view
    if how == "flip":
        return view, mirrored(view) if may_flip else view
    first, second = cropped(view, rng), cropped(view, rng)
    return first, mirrored(second) if may_flip and rng.random() < 0.5 else second


def mirrored(view: View) -> View:
    picture, mask = view
    return ImageOps.mirror(picture), np.ascontiguousarray(mask[:, ::-1])


def cropped(view: View, rng: np.random.Generator) -> View:
    """A crop whose sides lie anywhere between the object's box and the picture's edges."""
    picture, mask = view
    sides = []
    for axis, length in ((1, mask.shape[0]), (0, mask.shape[1])):
        inside = np.flatnonzero(mask.any(axis))
        sides.append((int(rng.integers(inside[0] + 1)), int(rng.integers(inside[-1] + 1, length + 1))))
    (top, bottom), (left, right) = sides
    return picture.crop((left, top, right, bottom)), np.ascontiguousarray(mask[top:bottom, left:right])
