"""Accuracy at an IoU and mean IoU of boxes, for `evaluate.load`."""

import datasets
import evaluate

from sa2va_hf.evaluation.boxes import BoxAccuracy

DESCRIPTION = """Acc@threshold and mIoU of boxes [x0, y0, x1, y1] in pixels, one prediction per reference.

`strict=True`: an IoU of exactly `threshold` is a miss (V*'s evaluation)."""


class BoxAccuracyMetric(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        box = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: lists of boxes",
            features=datasets.Features({"predictions": box, "references": box}),
        )

    def _compute(
        self, predictions: list, references: list, threshold: float = 0.5, strict: bool = False
    ) -> dict[str, float]:
        scores = BoxAccuracy(threshold, strict)
        for prediction, reference in zip(predictions, references, strict=True):
            scores.add(prediction, reference)
        return scores.result()
