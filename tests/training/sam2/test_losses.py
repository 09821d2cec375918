"""Laws of SAM 2's training losses, and their equality with the original code's numbers.

Run: SA2VA_TEST_DATA=... pytest tests/training/sam2/test_losses.py
"""

import json

import numpy as np
import pytest
import torch
from golden import formulas, references

from sa2va_hf.training.sam2.losses import Losses, LossSettings, step_losses

NAMES = {"mask": "loss_mask", "dice": "loss_dice", "iou": "loss_iou", "score": "loss_class"}


def random_step(candidates=3, objects=2, size=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(objects, candidates, size, size, generator=rng, dtype=torch.float64)
    ious = torch.rand(objects, candidates, generator=rng, dtype=torch.float64)
    scores = torch.randn(objects, 1, generator=rng, dtype=torch.float64)
    targets = torch.rand(objects, size, size, generator=rng) > 0.6
    return logits.requires_grad_(), ious.requires_grad_(), scores.requires_grad_(), targets


def test_only_the_best_candidate_learns_its_mask_but_all_learn_their_iou():
    logits, ious, scores, targets = random_step()
    with torch.no_grad():
        logits[:, 1] = targets * 4.0 - 2.0  # by far the best
    losses = step_losses(logits, ious, scores, targets, LossSettings(), objects=2)
    losses.total(LossSettings()).backward()
    assert (logits.grad[:, 1] != 0).any()
    assert (logits.grad[:, [0, 2]] == 0).all()
    assert (ious.grad != 0).all()
    logits, ious, scores, targets = random_step()
    settings = LossSettings(supervise_all_ious=False)
    step_losses(logits, ious, scores, targets, settings, objects=2).total(settings).backward()
    assert ((ious.grad != 0).sum(1) == 1).all()


def test_an_absent_object_teaches_the_object_score_alone():
    logits, ious, scores, targets = random_step(candidates=1)
    targets[1] = False
    step_losses(logits, ious, scores, targets, LossSettings(), objects=2).total(LossSettings()).backward()
    assert (logits.grad[1] == 0).all() and (ious.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any() and (scores.grad != 0).all()


def test_ignored_pixels_change_nothing_and_are_not_learnt():
    logits, ious, scores, targets = random_step(candidates=1)
    ignore = torch.zeros_like(targets)
    ignore[:, :3] = True
    losses = step_losses(logits, ious, scores, targets, LossSettings(), 2, ignore)
    losses.total(LossSettings()).backward()
    assert (logits.grad[:, :, :3] == 0).all() and (logits.grad[:, :, 3:] != 0).any()
    with torch.no_grad():
        logits[:, :, :3] += 5.0
    targets[:, :3] = ~targets[:, :3]
    again = step_losses(logits, ious, scores, targets, LossSettings(), 2, ignore)
    assert torch.stack(again).tolist() == torch.stack(losses).tolist()


def test_twice_the_objects_half_the_loss_each():
    one = step_losses(*random_step(), LossSettings(), objects=1)
    four = step_losses(*random_step(), LossSettings(), objects=4)
    assert torch.stack(four).tolist() == pytest.approx((torch.stack(one) / 4).tolist())


# ---------------------------------------------------------------- the original's numbers


def settings_of(case: dict) -> LossSettings:
    weights = case["weight_dict"]
    return LossSettings(
        mask_weight=weights["loss_mask"],
        dice_weight=weights["loss_dice"],
        iou_weight=weights["loss_iou"],
        score_weight=weights.get("loss_class", 0),
        focal_alpha=case.get("focal_alpha", 0.25),
        focal_gamma=case.get("focal_gamma", 2),
        supervise_all_ious=case["supervise_all_iou"],
        iou_l1=case["iou_use_l1_loss"],
        object_scores=case["pred_obj_scores"],
        score_alpha=case.get("focal_alpha_obj_score", -1.0),
        score_gamma=case.get("focal_gamma_obj_score", 0.0),
    )


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = references(shared_data)
    meta = json.loads((folder / "A_sam2_loss.json").read_text())
    arrays = dict(np.load(folder / "A_sam2_loss.npz"))
    shape = (meta["T"], meta["N"], meta["H"], meta["W"])
    return meta, arrays, torch.from_numpy(formulas(folder).unpack(arrays["targets"], shape))


CASES = ("mose", "best_iou_mse", "no_obj_scores", "focal_obj", "zero_dice_weight")
COMBOS = ("all", "one_object", "without_gated_step")


@pytest.mark.parametrize("combo", COMBOS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_values_and_gradients_of_the_original(golden, case, combo, dtype):
    meta, arrays, targets = golden
    expected, settings = meta["results"][f"{case}/{combo}"], settings_of(meta["cases"][case])
    chosen = slice(1, 2) if combo == "one_object" else slice(None)
    objects = len(targets[0, chosen])
    sums, inputs, per_step = torch.zeros(4, dtype=dtype), {}, []
    total = torch.zeros((), dtype=dtype)
    for t, steps in enumerate(meta["masks_per_step"]):
        for s in range(len(steps)):
            if combo == "without_gated_step" and (t, s) == (0, 3):
                continue
            names = [f"{kind}.{t}.{s}" for kind in ("logits", "ious", "obj")]
            tensors = [torch.from_numpy(arrays[name])[chosen].to(dtype).requires_grad_() for name in names]
            inputs |= dict(zip(names, tensors, strict=True))
            losses = step_losses(*tensors, targets[t, chosen], settings, objects)
            per_step.append(losses)
            sums, total = sums + torch.stack(losses), total + losses.total(settings)
    kind, tolerance = ("float64", 1e-9) if dtype is torch.float64 else ("float32", 1e-6)
    for name, value in zip(Losses._fields, sums.tolist(), strict=True):
        assert value == pytest.approx(expected[kind].get(NAMES[name], 0.0), rel=tolerance, abs=1e-12), name
    assert total.item() == pytest.approx(expected[kind]["core_loss"], rel=tolerance)
    total.backward()
    if dtype is torch.float64 and combo != "one_object":  # of which only the sums are known
        for losses, wanted in zip(per_step, expected["per_step_float64"], strict=True):
            for name, value in losses._asdict().items():
                assert value.item() == pytest.approx(wanted.get(NAMES[name], 0.0), rel=1e-9, abs=1e-12)
        assert_gradients(inputs, expected, meta, arrays, case, combo)


def assert_gradients(inputs, expected, meta, arrays, case, combo):
    for name, norm in expected["grad_norm_float64"].items():
        gradient = inputs[name].grad
        assert (0.0 if gradient is None else gradient.norm().item()) == pytest.approx(norm or 0.0, rel=1e-9, abs=1e-15)
    y, x = torch.tensor(meta["pixel_list_yx"]).T
    for name, entries in expected["grad_entries_float64"].items():
        gradient = inputs[name].grad.flatten(0, 1)[:, y, x]
        wanted = torch.tensor(entries, dtype=torch.float64).view_as(gradient)
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=0)
    if case == "mose":
        for name in (name for name in inputs if not name.startswith("logits")):
            if (stored := arrays.get(f"grad.{combo}.{name}")) is not None:
                assert torch.allclose(inputs[name].grad, torch.from_numpy(stored), rtol=1e-9, atol=1e-15)
