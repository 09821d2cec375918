"""Laws of the scores: known masks give known numbers, and how samples are batched does not matter."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from sa2va_hf.training.sa2va.scores import COLUMNS, IGNORE_INDEX, sample_sums, scores

SEG, WORD, OTHER = 3, 1, 2


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def say(*tokens):
    """(1, L - 1) the likeliest next token at each position but the last."""
    return torch.tensor([tokens[:-1]])


def one(pred, truth, ignore=None, ids=(0, WORD, SEG), said=(WORD, SEG, 0), labels=None):
    labels = torch.tensor([labels or [IGNORE_INDEX, *ids[1:]]])
    logits = torch.where(pred, 5.0, -5.0)
    row = sample_sums(say(*said), torch.tensor([ids]), labels, SEG, [logits], [truth], [ignore])
    return dict(zip(COLUMNS, row[0].tolist(), strict=True))


def test_intersection_union_and_iou_by_hand():
    truth = mask([1, 1], [0, 0])[None, None]
    row = one(mask([1, 0], [1, 0])[None, None], truth)
    assert (row["intersection"], row["union"], row["masks"]) == (1, 3, 1)
    assert row["iou"] == pytest.approx(1 / 3)


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, full = torch.zeros(1, 1, 2, 2, dtype=torch.bool), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert one(empty, empty)["iou"] == 1
    assert one(empty, full)["iou"] == 0 and one(full, empty)["iou"] == 0


def test_ignored_pixels_and_frames_do_not_count():
    truth = torch.stack([mask([1, 1], [0, 0]), mask([1, 1], [1, 1])])[None]  # one object on two frames
    pred = torch.stack([mask([1, 0], [1, 0]), mask([0, 0], [0, 0])])[None]
    ignore = torch.stack([mask([0, 1], [1, 0]), mask([1, 1], [1, 1])])
    row = one(pred, truth, ignore)
    assert (row["intersection"], row["union"], row["masks"], row["iou"]) == (1, 1, 1, 1)


def test_masks_are_compared_at_the_size_of_the_truth():
    truth = torch.zeros(1, 1, 8, 6, dtype=torch.bool)
    truth[..., :3] = True
    row = one(mask([1, 0], [1, 0])[None, None], truth)
    assert (row["intersection"], row["union"]) == (24, 24)


def test_seg_is_looked_for_where_the_answer_has_it():
    nothing = torch.zeros(0, 1, 1, 1, dtype=torch.bool)
    row = one(nothing.expand(0, 1, 2, 2), nothing, ids=(0, WORD, SEG, OTHER), said=(SEG, OTHER, OTHER, 0))
    assert (row["seg_said"], row["seg_total"], row["seg_wrong"]) == (0, 1, 1)
    assert (row["tokens_right"], row["tokens"]) == (1, 3)
    hidden = one(nothing.expand(0, 1, 2, 2), nothing, labels=[IGNORE_INDEX] * 3)
    assert hidden["tokens"] == hidden["seg_total"] == hidden["seg_wrong"] == 0, "the question is not scored"


def test_scores_are_ratios_of_sums():
    rows = np.zeros((2, len(COLUMNS)))
    rows[:, COLUMNS.index("intersection")] = [10, 0]
    rows[:, COLUMNS.index("union")] = [10, 30]
    rows[:, COLUMNS.index("iou")] = [1, 0]
    rows[:, COLUMNS.index("masks")] = [1, 3]
    found = scores(EvalPrediction(predictions=rows, label_ids=None))
    assert found["cIoU"] == 0.25 and found["gIoU"] == 0.25 and found["masks"] == 4
    assert "seg_emission" not in found, "nothing to score is no score"
