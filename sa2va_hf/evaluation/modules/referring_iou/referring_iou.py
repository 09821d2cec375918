"""cIoU, gIoU, Pr@0.5 .. 0.9 of referring segmentation, and gRefCOCO's N_acc and T_acc, for `evaluate.load`."""

import datasets
import evaluate

from sa2va_hf.evaluation import modules
from sa2va_hf.evaluation.metrics import CumulativeIoU, GeneralizedIoU
from sa2va_hf.masks import decode

DESCRIPTION = """IoU of masks given as COCO RLE: {"size": [height, width], "counts": str}, one pair per expression.

With `no_target=True`, gRefCOCO's figures (ReLA's evaluation): an empty reference is an expression that matches
nothing. Else those of LISA and Sa2VA. `ignore`: a list of RLE or None, pixels that do not count; of several
processes the first one gives it, for all pairs: those of process 0, then those of process 1, ..."""


class ReferringIoU(modules.MaskMetric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: lists of RLE",
            features=datasets.Features({"predictions": dict(modules.MASK), "references": dict(modules.MASK)}),
        )

    def _compute(
        self, predictions: list[dict], references: list[dict], no_target: bool = False, ignore: list | None = None
    ) -> dict[str, float]:
        if no_target and ignore is not None:
            raise ValueError("no_target and ignore exclude each other: gRefCOCO has no ignored pixels")
        if ignore is not None and len(ignore) != len(predictions):
            raise ValueError(f"ignore: expected {len(predictions)} entries, one per prediction, got {len(ignore)}")
        scores = GeneralizedIoU() if no_target else CumulativeIoU()
        ignored = ignore if ignore is not None else [None] * len(predictions)
        for number, (prediction, reference, without) in enumerate(zip(predictions, references, ignored, strict=True)):
            more = () if without is None else (decode(without),)
            try:
                scores.add(decode(prediction), decode(reference), *more)
            except ValueError as error:
                raise ValueError(f"pair {number}: {error}") from error
        return scores.result()
