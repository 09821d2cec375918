"""J, F and J&F of video segmentation, for `evaluate.load`."""

from itertools import islice

import datasets
import evaluate

from sa2va_hf.evaluation import modules
from sa2va_hf.evaluation.items import percent
from sa2va_hf.evaluation.video_conventions import sa_v, summarize_davis, summarize_mevis, summarize_sa_v
from sa2va_hf.evaluation.video_metrics import Scores, clip_scores
from sa2va_hf.masks import decode

DESCRIPTION = """J&F of tracks: per object a list of COCO RLE, one per frame.

In percent. `convention`: "sa_v" or "davis" (first and last frame skipped; DAVIS has recall and decay beside the
means), or "mevis" (every frame, rounded at the end). With "sa_v" an object counts from the frame on in which it is
first seen, in the prediction or the reference, and one that no reference shows is skipped, as in SA-V's evaluation."""
CONVENTIONS = ("sa_v", "davis", "mevis")


class VideoJAndF(modules.MaskMetric):
    def _info(self) -> evaluate.MetricInfo:
        track = datasets.List(dict(modules.MASK))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: per object a list of RLE, one per frame",
            features=datasets.Features({"predictions": track, "references": track}),
        )

    def _compute(self, predictions: list, references: list, convention: str = "sa_v") -> dict[str, float]:
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")
        tracks = []
        for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            if len(prediction) != len(reference):
                counts = f"the prediction has {len(prediction)} frames, the reference {len(reference)}"
                raise ValueError(f"object {number}: {counts}")
            try:
                tracks += _scores(prediction, reference, convention)
            except ValueError as error:
                raise ValueError(f"object {number}: {error}") from error
        if convention == "mevis":
            return summarize_mevis({"J": track.j, "F": track.f} for track in tracks)
        return percent(summarize_davis(tracks)) if convention == "davis" else summarize_sa_v(tracks)


def _scores(prediction: list[dict], reference: list[dict], convention: str) -> list[Scores]:
    """The scores of one object; an empty list where it is skipped."""
    drawn, true = map(decode, prediction), map(decode, reference)
    if convention == "sa_v":
        return [*sa_v(({1: mask} for mask in drawn), ({1: mask} for mask in true)).values()]
    pairs = zip(drawn, true, strict=True)
    scores = clip_scores(pairs if convention == "mevis" else islice(pairs, 1, max(len(reference) - 1, 1)))
    if not len(scores.j):
        raise ValueError(f"expected at least one frame to score, got none of {len(reference)}")
    return [scores]
