"""What the sources of boxes share: objects with a box and without a mask.

Their mask is None, "not annotated". Training takes no mask loss from them.
"""

from sa2va_hf.boxes import from_numbers
from sa2va_hf.data.schema import Object


def box_object(annotation: dict, height: int, width: int, form: str = "xywh") -> Object:
    """The object of an annotation's `bbox`, without a mask. ValueError as `boxes.from_numbers`."""
    return Object([None], [from_numbers(annotation.get("bbox"), form, height, width)])
