"""Captions: METEOR and CIDEr by the library that the published numbers were made with, and GCG (captions whose phrases
are masks) by its own measures.

pycocoevalcap (a Python package that starts two Java programs) is no dependency: without it there is no METEOR and no
CIDEr, and the result says so. Other reimplementations give other numbers.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sa2va_hf.evaluation.assignment import greedy
from sa2va_hf.evaluation.metrics import mean

AP_IOU = 0.5
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's
MAX_DETECTIONS = 100  # COCO's, per image
NOTHING = "xxxx"  # stands for a caption without words, which METEOR's program does not take; no reference has it
MATCH_IOU, MATCH_TEXT = 0.5, 0.5  # GLaMM's recall


def caption_scores(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """{"METEOR", "CIDEr"} as COCO's evaluation has them: METEOR in 0..1, CIDEr from 0 on.

    Args:
        references: the captions of each picture by id. predictions: one caption of each, by the same ids.

    Raises:
        ValueError: ids differ. ImportError: pycocoevalcap or Java is not installed.
    """
    if set(references) != set(predictions):
        missing, extra = sorted(set(references) - set(predictions)), sorted(set(predictions) - set(references))
        raise ValueError(f"predictions: expected one per image; missing {missing[:3]}, unknown {extra[:3]}")
    if missing := missing_for_captions():
        raise ImportError(missing)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    keys = sorted(references)  # CIDEr sums in this order
    words = PTBTokenizer()
    true = words.tokenize({key: [{"caption": text} for text in references[key]] for key in keys})
    said = words.tokenize({key: [{"caption": predictions[key]}] for key in keys})
    said = {key: [text or NOTHING for text in texts] for key, texts in said.items()}
    return {
        "METEOR": float(Meteor().compute_score(true, said)[0]),
        "CIDEr": float(Cider().compute_score(true, said)[0]),
    }


def missing_for_captions() -> str | None:
    """What METEOR and CIDEr need and is not there, and what to do; None when they can be computed."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "METEOR and CIDEr need the Python package pycocoevalcap: pip install pycocoevalcap"
    if shutil.which("java") is None:
        return "METEOR and CIDEr need Java, and there is no `java` on the PATH: install a JRE (8 or later)"
    return None


class GroundedCaptions:
    """GCG's masks (GLaMM's evaluation): AP50, mIoU and, where texts can be compared, recall. `merge` joins processes'.

    A mask has no score there: all count the same, in the order of the pictures' ids and of the answer.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict] = {}

    def add(self, key: str, ious: np.ndarray, similarities: np.ndarray | None = None) -> None:
        """One image: IoU of its masks, (predicted, true), and cosine similarity of its phrases, (predicted, true).

        ValueError when the picture was added before.
        """
        self.merge_rows({key: {"ious": np.asarray(ious, float), "similarities": similarities}})

    def merge(self, other: GroundedCaptions) -> None:
        self.merge_rows(other._rows)

    def merge_rows(self, rows: Mapping[str, dict]) -> None:
        if twice := sorted(set(self._rows) & set(rows)):
            raise ValueError(f"expected every image once, got these twice: {twice[:3]}")
        self._rows |= rows

    def __len__(self) -> int:
        return len(self._rows)

    def result(self) -> dict[str, float]:
        """{"AP50", "mIoU"} and, when every image has similarities, {"recall"}; in 0..1."""
        rows = [self._rows[key] for key in sorted(self._rows)]
        found = {
            "AP50": average_precision([row["ious"] for row in rows]),
            "mIoU": mean(mean_paired_iou(row["ious"]) for row in rows),
        }
        true = sum(row["ious"].shape[1] for row in rows)
        if true and all(row["similarities"] is not None for row in rows):
            found["recall"] = sum(matched_phrases(row["ious"], row["similarities"]) for row in rows) / true
        return found


def mean_paired_iou(ious: np.ndarray) -> float:
    """Mean IoU (predicted, true) over the pairs that overlap, matched greedily; 0 when no pair does.

    As published, masks without a partner do not lower it.
    """
    pairs = greedy(ious, np.nextafter(0, 1))
    return mean(ious[pair] for pair in pairs) if pairs else 0.0


def matched_phrases(ious: np.ndarray, similarities: np.ndarray) -> int:
    """How many true masks are found with their phrase: greedily by IoU (predicted, true) from the best pair on, up to
    the first one that is below 0.5 in IoU or in the likeness of its phrases (said, true).

    As published: pairs after that one are not looked at; the n-th phrase is that of the n-th mask, whatever their
    numbers are; and nothing is found in a picture where the matching comes to a mask without a phrase.
    """
    count = 0
    for true, drawn in greedy(ious.T, MATCH_IOU):
        if drawn >= len(similarities):
            return 0
        if similarities[drawn, true] < MATCH_TEXT:
            break
        count += 1
    return count


def average_precision(pictures: Sequence[np.ndarray], threshold: float = AP_IOU) -> float:
    """COCO's AP at one IoU for detections without scores: IoUs (predicted, true) per image, in order; 0..1.

    Each detection in turn takes the free true mask it overlaps most; precision is made monotone and read at 101
    recalls. 0 if there is no true mask.
    """
    hits, true = [], 0
    for ious in pictures:
        true += ious.shape[1]
        free = np.ones(ious.shape[1], dtype=bool)
        for row in ious[:MAX_DETECTIONS]:
            best = np.where(free, row, -1.0)
            column = len(best) - 1 - int(best[::-1].argmax()) if len(best) else -1  # COCO takes the last of equal ones
            hits.append(column >= 0 and best[column] >= threshold)
            if hits[-1]:
                free[column] = False
    if not true or not hits:
        return 0.0
    found = np.cumsum(hits)
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(found / true, RECALL_POINTS, side="left")
    return mean(np.where(places < len(precision), precision[np.minimum(places, len(precision) - 1)], 0.0))


def phrase_similarity(embed: Callable[[Sequence[str]], np.ndarray], said: Sequence[str], true: Sequence[str]):
    """Cosine (predicted, true) of phrases; embed: texts -> (n, d). GLaMM: the mean of BERT's last states."""
    if not said or not true:
        return np.zeros((len(said), len(true)))
    vectors = [np.asarray(embed(texts), dtype=np.float64) for texts in (list(said), list(true))]
    a, b = (vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors)
    return a @ b.T
