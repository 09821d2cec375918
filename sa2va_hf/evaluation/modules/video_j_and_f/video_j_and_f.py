"""J, F and J&F of video segmentation, for `evaluate.load`."""

import datasets
import evaluate

from sa2va_hf.evaluation.items import percent
from sa2va_hf.evaluation.video_conventions import davis, sa_v, summarize_davis, summarize_mevis, summarize_sa_v
from sa2va_hf.evaluation.video_metrics import clip_scores
from sa2va_hf.masks import decode

DESCRIPTION = """J&F of tracks: per object a list of COCO RLE, one per frame.

In percent. `convention`: "sa_v" or "davis" (first and last frame left out; DAVIS has recall and decay beside the
means), or "mevis" (every frame, rounded at the end)."""
_TRACK = datasets.List({"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")})
CONVENTIONS = ("sa_v", "davis", "mevis")


class VideoJAndF(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: per object a list of RLE, one per frame",
            features=datasets.Features({"predictions": _TRACK, "references": _TRACK}),
        )

    def _compute(self, predictions: list, references: list, convention: str = "sa_v") -> dict[str, float]:
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")
        tracks = []
        for prediction, reference in zip(predictions, references, strict=True):
            if len(prediction) != len(reference):
                raise ValueError(f"a prediction has {len(prediction)} frames, its reference {len(reference)}")
            drawn, true = map(decode, prediction), map(decode, reference)
            if convention == "mevis":
                tracks.append(clip_scores(zip(drawn, true, strict=True)))
            elif convention == "davis":
                tracks.append(davis((m.astype("uint8") for m in drawn), (m.astype("uint8") for m in true))[1])
            else:
                tracks.append(sa_v(({1: mask} for mask in drawn), ({1: mask} for mask in true))[1])
        if convention == "mevis":
            return summarize_mevis({"J": track.j, "F": track.f} for track in tracks)
        return percent(summarize_davis(tracks)) if convention == "davis" else summarize_sa_v(tracks)
