"""Grounded captions by hand and against COCO's own evaluation.

Run: pytest tests/evaluation/test_captions.py
"""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa2va_hf import masks
from sa2va_hf.evaluation import captions

rng = np.random.default_rng(0)


def coco_ap50(true, drawn):
    """COCO's AP50 of masks per picture, every detection with the same score."""
    size = true[0][0].shape

    def annotations(pictures, **more):
        rows = [(number, mask) for number, picture in enumerate(pictures, start=1) for mask in picture]
        return [
            {"id": i, "image_id": n, "category_id": 1, "segmentation": masks.encode(m), "area": int(m.sum())} | more
            for i, (n, m) in enumerate(rows, start=1)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        pictures = [{"id": number + 1, "height": size[0], "width": size[1]} for number in range(len(true))]
        truth.dataset = {"images": pictures, "categories": [{"id": 1}], "annotations": annotations(true, iscrowd=0)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(annotations(drawn, score=1.0)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[1]


def boxes(count):
    found = np.zeros((count, 24, 24), bool)
    for mask in found:
        y, x = rng.integers(0, 16, 2)
        mask[y : y + 8, x : x + 8] = True
    return list(found)


def test_ap50_is_cocos():
    for _ in range(5):
        true = [boxes(3) for _ in range(6)]
        drawn = [[np.roll(m, int(rng.integers(0, 5)), 1) for m in picture[:2]] + boxes(1) for picture in true]
        pairs = zip(drawn, true, strict=True)
        ious = [np.array([[masks.iou(a, b) for b in of_true] for a in of_drawn]) for of_drawn, of_true in pairs]
        assert captions.average_precision(ious) == pytest.approx(coco_ap50(true, drawn), abs=1e-12)


def test_masks_without_a_partner_do_not_lower_miou():
    assert captions.mean_paired_iou(np.array([[0.9, 0.5], [0.8, 0.0], [0.0, 0.0]])) == 0.9
    assert captions.mean_paired_iou(np.array([[0.9, 0.0], [0.0, 0.5]])) == 0.7
    assert captions.mean_paired_iou(np.zeros((0, 3))) == 0.0


def test_recall_stops_at_the_first_pair_whose_phrases_differ():
    ious = np.array([[0.9, 0.0], [0.0, 0.8]])
    assert captions.matched_phrases(ious, np.ones((2, 2))) == 2
    assert captions.matched_phrases(ious, np.array([[1.0, 0.0], [0.0, 0.2]])) == 1
    assert captions.matched_phrases(ious, np.array([[0.2, 0.0], [0.0, 1.0]])) == 0


def test_phrases_and_masks_of_different_numbers_count_as_published():
    ious = np.array([[0.9, 0.0], [0.0, 0.8]])  # GLaMM's evaluation of the same arrays: 2, 1, 0 and 0
    assert captions.matched_phrases(ious, np.ones((3, 2))) == 2  # a phrase without a mask
    assert captions.matched_phrases(np.array([[0.9, 0.0], [0.0, 0.4]]), np.ones((1, 2))) == 1  # never asked for
    assert captions.matched_phrases(ious, np.ones((1, 2))) == 0  # it is: the picture counts as if nothing were found
    assert captions.matched_phrases(ious, np.zeros((0, 2))) == 0


def test_parts_merge_to_the_whole_and_no_picture_counts_twice():
    whole, first, second = (captions.GroundedCaptions() for _ in range(3))
    for number in range(6):
        row = (f"picture {number}", rng.random((3, 2)), rng.random((3, 2)))
        whole.add(*row)
        (first if number % 2 else second).add(*row)
    first.merge(second)
    assert first.result() == whole.result()
    assert set(whole.result()) == {"AP50", "mIoU", "recall"}
    with pytest.raises(ValueError, match="got these twice: .'picture 0'"):
        first.merge(second)
    whole.add("picture 9", rng.random((1, 1)))  # nobody compared its phrases
    assert "recall" not in whole.result()


def test_likeness_is_the_cosine():
    vectors = {"cat": [1.0, 0], "dog": [0, 2.0], "pet": [1.0, 1.0]}
    found = captions.phrase_similarity(lambda texts: [vectors[text] for text in texts], ["cat", "dog"], ["pet", "cat"])
    np.testing.assert_allclose(found, [[0.5**0.5, 1], [0.5**0.5, 0]])


def test_captions_must_belong_to_the_pictures():
    with pytest.raises(ValueError, match=r"missing \['b'\], unknown \['c'\]"):
        captions.caption_scores({"a": ["x"], "b": ["y"]}, {"a": "x", "c": "y"})


@pytest.mark.parametrize(
    ("package", "java", "message"),
    [
        (None, "/bin/java", "pip install pycocoevalcap"),
        ("there", None, "need Java, and there is no `java` on the PATH"),
    ],
)
def test_what_is_missing_for_captions_is_said(package, java, message, monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: package)
    monkeypatch.setattr(captions.shutil, "which", lambda name: java)
    with pytest.raises(ImportError, match=message):
        captions.caption_scores({"1": ["a cat"]}, {"1": "a cat"})


@pytest.mark.slow
@pytest.mark.skipif(captions.missing_for_captions() is not None, reason=str(captions.missing_for_captions()))
def test_meteor_and_cider():
    """One call for a perfect caption, a partly right one and two without words: each starts Java, which reads its
    tables of synonyms anew. The figures are those of pycocoevalcap 1.2 called by itself, with METEOR 1.5."""
    references = {"1": ["a cat on a mat", "the cat sits"], "2": ["two dogs run in the park"]}
    references |= {"3": ["a bird on the roof"], "4": ["a red car"]}
    said = {"1": "a cat on a mat", "2": "two dogs in a park", "3": "", "4": "."}
    found = captions.caption_scores(references, said)
    assert found == pytest.approx({"METEOR": 0.2514132972908887, "CIDEr": 2.0667265565003277})
