"""How the video benchmarks score a clip: which frames and objects count, and how they are averaged.

    | | `davis` | `davis_unsupervised` | `sa_v` | `expression` (ReVOS, Ref-SAV, MeViS) |
    |---|---|---|---|---|
    | first and last frame | skipped | scored | skipped (option) | scored |
    | void (255) | ignored: becomes background | taken out of both | an object as any other | - |
    | objects | 1 .. largest id of true frame 0 | the same, matched to proposals | ids of the truth | one union |
    | an id only predicted | an error | a proposal | ignored | - |
    | average | objects of all clips | objects of all clips | the same, percent | expressions |

J and F of a pair of masks are the same in all. Frames are label maps (H, W), or {id: bool mask} where objects overlap;
they come as an iterable and are held one at a time. Sources: davis2017-evaluation, sav_evaluator, Sa2VA's eval_revos,
eval_ref_sav and eval_mevis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from sa2va_hf.evaluation.assignment import assign
from sa2va_hf.evaluation.metrics import mean
from sa2va_hf.evaluation.video_metrics import Scores, frame_scores

VOID = 255
MAX_PROPOSALS = 20  # of the unsupervised track
DECAY_BINS = 4

Labels = np.ndarray | Mapping[int, np.ndarray]


# ---------------------------------------------------------------- DAVIS


def davis(predictions: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> dict[int, Scores]:
    """The semi-supervised track: J and F per object, without the first and the last frame.

    ValueError for fewer than three frames, frames that are not as many or not of one size, and ids beyond the objects.
    """
    frames = _pairs(predictions, truths)
    _, first = next(frames)
    objects = range(1, int(np.where(first == VOID, 0, first).max()) + 1)
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in objects}
    for prediction, truth in _without_last(frames):
        if (largest := int(prediction.max())) > len(objects):
            raise ValueError(
                f"the prediction has the id {largest}, but the first true frame has {len(objects)} objects"
            )
        for number in objects:
            found[number].append(frame_scores(prediction == number, truth == number))
    return {number: _scores(values) for number, values in found.items()}


def davis_unsupervised(predictions: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> dict[int, Scores]:
    """The unsupervised track: every frame, without void pixels; each object is scored with the proposal (id of the
    prediction) that the best one-to-one matching by mean J&F gives it, and with 0 when there are fewer."""
    objects, proposals = range(0), 0
    absent: dict[int, list[tuple[float, float]]] = {}  # what an object scores with a proposal that draws nothing
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for count, (prediction, truth) in enumerate(_pairs(predictions, truths)):
        void = truth == VOID
        if count == 0:
            objects = range(1, int(np.where(void, 0, truth).max()) + 1)
        proposals = max(proposals, int(prediction.max()), len(objects))
        if proposals > MAX_PROPOSALS:
            raise ValueError(f"the prediction has the id {proposals}; at most {MAX_PROPOSALS} proposals are allowed")
        for number in objects:
            before = absent.setdefault(number, [])
            for proposal in range(1, proposals + 1):
                pair = frame_scores(prediction == proposal, truth == number, void)
                found.setdefault((number, proposal), list(before)).append(pair)
            before.append(frame_scores(np.zeros_like(void), truth == number, void))
    if not objects:
        return {}
    scores = {pair: _scores(values) for pair, values in found.items()}
    every = range(1, proposals + 1)
    worth = np.array([[mean(scores[o, p].j) + mean(scores[o, p].f) for p in every] for o in objects])
    return {number: scores[number, every[place]] for number, place in zip(objects, assign(worth), strict=True)}


def statistics(values: np.ndarray) -> tuple[float, float, float]:
    """DAVIS's mean, recall (share above 0.5) and decay (mean of the first quarter less that of the last)."""
    edges = np.rint(np.linspace(1, len(values), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[-2] : edges[-1] + 1]
    return mean(values), float((values > 0.5).mean()), mean(first) - mean(last)


def summarize_davis(objects: Iterable[Scores]) -> dict[str, float]:
    """{"J&F", "J_mean", "J_recall", "J_decay", "F_mean", ...} over the objects of all clips, in 0..1."""
    rows = [(*statistics(scores.j), *statistics(scores.f)) for scores in objects]
    names = ["J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"]
    found = {name: mean(column) for name, column in zip(names, _columns(rows), strict=True)}
    return {"J&F": (found["J_mean"] + found["F_mean"]) / 2} | found


# ---------------------------------------------------------------- SA-V


def sa_v(
    predictions: Iterable[Labels], truths: Iterable[Labels], skip_first_and_last: bool = True
) -> dict[int, Scores]:
    """sav_evaluator (SA-V, MOSE, LVOS): J and F per object of the truth.

    An object counts from the scored frame on in which it was first seen, in the truth or in the prediction; a mask
    without pixels is not seen. ValueError when no frame is scored, or frames are not as many or not of one size.
    """
    frames = _pairs(predictions, truths)
    if skip_first_and_last:
        next(frames)
        frames = _without_last(frames)
    seen: set[int] = set()
    wanted: set[int] = set()
    found: dict[int, list[tuple[float, float]]] = {}
    for prediction, truth in frames:
        drawn, true = _objects(prediction), _objects(truth)
        wanted |= set(true)
        seen |= set(true) | set(drawn)
        for number in seen:
            masks = [objects[number] if number in objects else None for objects in (drawn, true)]
            found.setdefault(number, []).append(_maybe_absent(*masks))
    return {number: _scores(found[number]) for number in sorted(wanted)}


def summarize_sa_v(objects: Iterable[Scores]) -> dict[str, float]:
    """{"J&F", "J", "F"} over the objects of all clips, in percent."""
    rows = [(mean(scores.j), mean(scores.f)) for scores in objects]
    j, f = (100 * mean(column) for column in _columns(rows))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


# ---------------------------------------------------------------- ReVOS, Ref-SAV and MeViS


def expression(
    predictions: Iterable[np.ndarray],
    instances: Iterable[np.ndarray],
    foregrounds: Iterable[np.ndarray] | None = None,
    released: bool = True,
) -> dict[str, np.ndarray]:
    """J, F and A of an expression against the union of its instances and, with `foregrounds`, R; per frame.

    A: share of all pixels that are right. R: 1 - wrongly predicted pixels / pixels of `foregrounds` (everything
    annotated in the clip). `released` keeps what eval_revos.py does where instances overlap: their sum is a uint8, so
    that 2 is not what was predicted, and 1 - 2 = 255 pixels are wrong: a perfect prediction then has A < 1 and R = 0.
    Without it, A and R use the union as well.

    Args:
        predictions: bool (H, W) per frame. instances: bool (n, H, W) per frame; n = 0: nothing is meant.
        foregrounds: bool (H, W) per frame.

    Raises:
        ValueError: there are no frames, not as many of each, or not of one size.
    """
    rows = []
    for prediction, parts, foreground in _triples(predictions, instances, foregrounds):
        target = parts.any(0)
        times = parts.sum(0, dtype=np.uint8) if released else target.astype(np.uint8)
        row = [*frame_scores(prediction, target), float((times == prediction).mean())]
        if foreground is not None:
            wrong = int((np.uint8(1) - times)[prediction].sum(dtype=np.int64))
            row.append(max(1 - wrong / (np.count_nonzero(foreground) + 1e-6), 0.0))
        rows.append(row)
    if not rows:
        raise ValueError("expected at least one frame to score, got no frames")
    return {name: np.array(column) for name, column in zip("JFAR", zip(*rows, strict=True), strict=False)}


def summarize_revos(expressions: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> dict[str, dict[str, float]]:
    """{"referring": {"J&F", "J", "F", "A", "R"}, "reasoning": ..., "overall": their mean} of (kind, per frame), in
    percent. Other kinds ("no_target") are skipped."""
    return _by_kind(expressions, ("referring", "reasoning"))


def summarize_ref_sav(expressions: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> dict[str, dict[str, float]]:
    """{"long": {"J&F", "J", "F", "A"}, "short": ..., "overall": their mean} of (kind, per frame), in percent: however
    many expressions there are of each."""
    return _by_kind(expressions, ("long", "short"))


def _by_kind(
    expressions: Sequence[tuple[str, Mapping[str, np.ndarray]]], kinds: tuple[str, str]
) -> dict[str, dict[str, float]]:
    """Each expression is rounded to two digits first, as published (by numpy, to the even digit)."""
    found = {}
    for kind in kinds:
        rows = [scores for name, scores in expressions if name == kind]
        if rows:
            names = [name for name in "JFAR" if name in rows[0]]
            found[kind] = {name: mean(np.round(100 * mean(row[name]), 2) for row in rows) for name in names}
    if len(found) == 2:
        found["overall"] = {name: mean(part[name] for part in found.values()) for name in found[kinds[0]]}
    return {name: {"J&F": (part["J"] + part["F"]) / 2} | part for name, part in found.items()}


def summarize_mevis(expressions: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """{"J&F", "J", "F"} over all expressions, in percent, rounded to two digits at the end, as published."""
    rows = [(mean(scores["J"]), mean(scores["F"])) for scores in expressions]
    j, f = (mean(column) for column in _columns(rows))
    return {"J&F": round(100 * (j + f) / 2, 2), "J": round(100 * j, 2), "F": round(100 * f, 2)}


# ---------------------------------------------------------------- frames


def _pairs(predictions: Iterable[Labels], truths: Iterable[Labels]) -> Iterator[tuple[Labels, Labels]]:
    """Frames side by side, of one size; ValueError for none, or when one of them ends first."""
    count = 0
    for prediction, truth in zip_longest(predictions, truths):
        if prediction is None or truth is None:
            side = "predicted" if prediction is None else "true"
            raise ValueError(f"expected as many predicted as true frames, got only {count} {side} ones")
        if None not in (sizes := (_size(prediction), _size(truth))) and sizes[0] != sizes[1]:
            raise ValueError(f"frame {count}: expected a prediction of {sizes[1]} (H, W), got {sizes[0]}")
        count += 1
        yield prediction, truth
    if not count:
        raise ValueError("expected at least one frame to score, got no frames")


def _triples(
    predictions: Iterable[np.ndarray], instances: Iterable[np.ndarray], foregrounds: Iterable[np.ndarray] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Frames side by side, of one size; ValueError when one of them ends first."""
    columns = {"predicted": predictions, "instances": instances, "foreground": foregrounds}
    columns = {name: column for name, column in columns.items() if column is not None}
    for number, frame in enumerate(zip_longest(*columns.values())):
        sizes = {name: None if part is None else part.shape[-2:] for name, part in zip(columns, frame, strict=True)}
        if None in sizes.values():
            ended = ", ".join(name for name, size in sizes.items() if size is None)
            raise ValueError(f"frame {number}: missing in {ended}; expected the same number of frames of each")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"frame {number}: expected one size (H, W), got {sizes}")
        yield frame if len(frame) == 3 else (*frame, None)


def _without_last(frames: Iterator) -> Iterator:
    held, some = None, False
    for frame in frames:
        if held is not None:
            yield held
            some = True
        held = frame
    if not some:
        raise ValueError("expected a clip of at least three frames, since the first and the last are not scored")


def _objects(labels: Labels) -> Mapping[int, np.ndarray]:
    """Masks by id of the objects that have pixels."""
    if isinstance(labels, Mapping):
        return {number: mask for number, mask in labels.items() if mask.any()}
    return {int(number): labels == number for number in np.unique(labels) if number}


def _maybe_absent(prediction: np.ndarray | None, target: np.ndarray | None) -> tuple[float, float]:
    """(J, F) where either may be None: there is no such object on the frame."""
    present = prediction if prediction is not None else target
    if present is None:
        return 1.0, 1.0
    empty = np.zeros_like(present)
    return frame_scores(empty if prediction is None else prediction, empty if target is None else target)


def _size(labels: Labels) -> tuple[int, int] | None:
    """(H, W); None for a frame without objects."""
    if isinstance(labels, Mapping):
        return next((mask.shape for mask in labels.values()), None)
    return labels.shape


def _scores(rows: Sequence[tuple[float, float]]) -> Scores:
    return Scores(*np.array(rows, dtype=np.float64).T)


def _columns(rows: Sequence[Sequence[float]]) -> Iterator[tuple[float, ...]]:
    if not rows:
        raise ValueError("expected at least one score to average, got none")
    return zip(*rows, strict=True)
