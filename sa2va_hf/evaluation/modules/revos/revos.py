"""J, F, A and R of ReVOS's expressions, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np

from sa2va_hf.evaluation import modules
from sa2va_hf.evaluation.video_conventions import expression, summarize_revos
from sa2va_hf.masks import decode

DESCRIPTION = """J&F, J, F, A and R of expressions about clips, in percent: {"referring", "reasoning", "overall"}.

predictions: per expression a list of COCO RLE, one per frame. references: per expression {"kind": "referring",
"reasoning" or "no_target", which is skipped, "instances": per frame a list of RLE, "foreground": per frame the RLE of
all that is annotated}."""
KINDS = ("referring", "reasoning", "no_target")
_EXPRESSION = {
    "kind": datasets.Value("string"),
    "instances": datasets.List(datasets.List(dict(modules.MASK))),
    "foreground": datasets.List(dict(modules.MASK)),
}


class ReVOS(modules.MaskMetric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions: tracks; references: kind, instances and foreground of each",
            features=datasets.Features({"predictions": datasets.List(dict(modules.MASK)), "references": _EXPRESSION}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, dict[str, float]]:
        rows = []
        for number, (track, truth) in enumerate(zip(predictions, references, strict=True)):
            if truth["kind"] not in KINDS:
                raise ValueError(
                    f"expression {number}: kind: expected one of {', '.join(KINDS)}, got {truth['kind']!r}"
                )
            lengths = len(track), len(truth["instances"]), len(truth["foreground"])
            if len(set(lengths)) > 1:
                raise ValueError(f"expression {number}: {lengths} frames of prediction, instances and foreground")
            instances = map(_stacked, truth["instances"], track)
            try:
                scores = expression(map(decode, track), instances, map(decode, truth["foreground"]))
            except ValueError as error:
                raise ValueError(f"expression {number}: {error}") from error
            rows.append((truth["kind"], scores))
        return summarize_revos(rows)


def _stacked(instances: list[dict], frame: dict) -> np.ndarray:
    """bool (n, H, W), also for n = 0."""
    if not instances:
        return np.zeros((0, *frame["size"]), dtype=bool)
    return np.stack([decode(rle) for rle in instances])
