"""Metrics for `evaluate.load`: folders that it reads by path, offline.

import evaluate
from sa2va_hf.evaluation.modules import path_of
metric = evaluate.load(path_of("referring_iou"))

Several processes (num_process, process_id, experiment_id) add their own pairs; the first one computes of all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

NAMES = ("referring_iou", "video_j_and_f", "revos", "box_accuracy")
MASK = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}  # COCO's RLE


def path_of(name: str) -> str:
    """The folder to give to `evaluate.load`. ValueError for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"metric {name!r}: expected one of {', '.join(NAMES)}")
    return str(Path(__file__).parent / name)


class MaskMetric(evaluate.Metric):
    """A metric of masks, which says which of its inputs is no RLE: datasets would end in an index or key error.

    Use it as `modules.MaskMetric`: the first metric among the names of a folder's module is the one that is loaded.
    """

    def add_batch(self, *, predictions: Any = None, references: Any = None, **more: Any) -> None:
        """Many pairs; ValueError naming what is no mask."""
        given = {"predictions": predictions, "references": references}
        for name, column in given.items():
            expect(column, datasets.List(self.features[name]), name)
        super().add_batch(**given, **more)

    def add(self, *, prediction: Any = None, reference: Any = None, **more: Any) -> None:
        """Adds one pair.

        Raises:
            ValueError: naming the element that is no mask.
        """
        expect(prediction, self.features["predictions"], "prediction")
        expect(reference, self.features["references"], "reference")
        super().add(prediction=prediction, reference=reference, **more)


def expect(value: Any, feature: Any, where: str) -> None:
    """Checks lists and dicts of RLE against `feature`.

    Raises:
        ValueError: naming the element of `value` that has another form.
    """
    if feature == MASK:
        if not isinstance(value, Mapping) or not isinstance(value.get("counts"), str) or "size" not in value:
            form = (
                'COCO\'s RLE {"size": [height, width], "counts": str}; sa2va_hf.masks.encode makes it of a bool mask'
            )
            raise ValueError(f"{where}: expected {form}; got {type(value).__name__} {_short(value)}")
    elif isinstance(feature, datasets.List):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__} {_short(value)}")
        for number, one in enumerate(value):
            expect(one, feature.feature, f"{where}[{number}]")
    elif isinstance(feature, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(feature):
            raise ValueError(f"{where}: expected a dict of {', '.join(feature)}; got {_short(value)}")
        for name, one in feature.items():
            expect(value[name], one, f"{where}[{name!r}]")


def _short(value: Any) -> str:
    return f"{' '.join(str(value).split()):.80}"
