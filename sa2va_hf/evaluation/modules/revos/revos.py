"""J, F, A and R of ReVOS's expressions, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np

from sa2va_hf.evaluation.video_conventions import expression, summarize_revos
from sa2va_hf.masks import decode

DESCRIPTION = """J&F, J, F, A and R of expressions about clips, in percent: {"referring", "reasoning", "overall"}.

predictions: per expression a list of COCO RLE, one per frame. references: per expression {"kind": "referring" or
"reasoning", "instances": per frame a list of RLE, "foreground": per frame the RLE of all that is annotated}."""
_MASK = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
_EXPRESSION = {
    "kind": datasets.Value("string"),
    "instances": datasets.List(datasets.List(dict(_MASK))),
    "foreground": datasets.List(dict(_MASK)),
}


class ReVOS(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions: tracks; references: kind, instances and foreground of each",
            features=datasets.Features({"predictions": datasets.List(dict(_MASK)), "references": _EXPRESSION}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, dict[str, float]]:
        rows = []
        for number, (track, truth) in enumerate(zip(predictions, references, strict=True)):
            lengths = len(track), len(truth["instances"]), len(truth["foreground"])
            if len(set(lengths)) > 1:
                raise ValueError(f"expression {number}: {lengths} frames of prediction, instances and foreground")
            instances = (
                np.array([decode(rle) for rle in parts]).reshape(-1, *drawn["size"])
                for parts, drawn in zip(truth["instances"], track, strict=True)
            )
            instances = (parts.astype(bool) for parts in instances)  # also where there is none
            scores = expression(map(decode, track), instances, map(decode, truth["foreground"]))
            rows.append((truth["kind"], scores))
        return summarize_revos(rows)
