"""Mask losses: by definition, by symmetry, and by the original code's numbers where they are at hand.

Run: pytest tests/model/test_losses.py
"""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sa2va_hf.model import losses


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 16, 16, generator=generator) * 3
    targets = (torch.rand(4, 16, 16, generator=generator) > 0.6).float()
    targets[3] = 0  # an object that is not there
    return logits, targets


# ---------------------------------------------------------------- definitions


def test_on_all_cells_they_are_plain_means(masks):
    logits, targets = masks
    bce, dice = losses.mask_losses(logits, targets)
    torch.testing.assert_close(bce, F.binary_cross_entropy_with_logits(logits, targets))
    p = logits.sigmoid()
    expected = [
        1 - (2 * (p[i] * targets[i]).sum() + 1) / (p[i].sum() + targets[i].sum() + 1) for i in range(len(logits))
    ]
    torch.testing.assert_close(dice, torch.stack(expected).mean())


def test_a_weight_is_a_number_of_copies(masks):
    logits, targets = masks
    copies = torch.tensor([3, 1, 0, 2])
    weighted = losses.mask_losses(logits, targets, copies)
    repeated = losses.mask_losses(logits.repeat_interleave(copies, 0), targets.repeat_interleave(copies, 0))
    torch.testing.assert_close(torch.stack(weighted), torch.stack(repeated))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_weights_count_the_cyclic_copies(count):
    cycle = (list(range(count)) * 5)[:5]  # 2 objects: a b a b a
    expected = torch.tensor([cycle.count(i) for i in range(count)]).float()
    torch.testing.assert_close(losses.pair_weights([torch.ones(count, 1, dtype=torch.bool)], 5), expected)
    torch.testing.assert_close(losses.pair_weights([torch.ones(count, 1, dtype=torch.bool)], None), torch.ones(count))


def test_what_is_not_known_weighs_nothing_and_the_others_take_its_share():
    known = torch.tensor([[True, False, True], [True, False, False], [True, False, True]])
    wanted = torch.tensor([[2.0, 0, 3], [2, 0, 0], [1, 0, 2]])
    torch.testing.assert_close(losses.pair_weights([known], 5), wanted.flatten())
    torch.testing.assert_close(losses.pair_weights([known], None), known.flatten().float())
    sampled = losses.pair_weights([known], 2).view(3, 3)
    assert sampled.sum(0).tolist() == [2, 0, 2] and not sampled[~known].any()


@pytest.mark.parametrize("with_points", [False, True])
def test_a_mask_without_a_valid_cell_weighs_nothing(masks, with_points):
    """An object of which only the box is known stands beside one with a mask: the losses are those of the latter."""
    logits, targets = masks
    valid = torch.ones_like(targets, dtype=torch.bool)
    valid[1] = False
    points = torch.rand(4, 40, 2, generator=torch.Generator().manual_seed(1)) if with_points else None
    rest = torch.tensor([0, 2, 3])
    found = losses.mask_losses(logits, targets, points=points, valid=valid)
    points_of_rest = None if points is None else points[rest]
    alone = losses.mask_losses(logits[rest], targets[rest], points=points_of_rest, valid=valid[rest])
    torch.testing.assert_close(torch.stack(found), torch.stack(alone))
    nothing = losses.mask_losses(logits, targets, points=points, valid=torch.zeros_like(valid))
    assert torch.stack(nothing).eq(0).all()


def test_cells_that_do_not_count_have_no_say(masks):
    logits, targets = masks
    valid = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.3
    whole = losses.mask_losses(logits, targets, valid=valid)
    changed = losses.mask_losses(
        torch.where(valid, logits, -logits), torch.where(valid, targets, 1 - targets), valid=valid
    )
    torch.testing.assert_close(torch.stack(whole), torch.stack(changed))
    assert not torch.allclose(torch.stack(whole), torch.stack(losses.mask_losses(logits, targets)))


def test_soft_iou_counts_pixels(masks):
    logits, targets = masks
    logits[3] = -1.0  # nothing drawn where nothing is
    expected = []
    for logit, target in zip(logits, targets, strict=True):
        a, b = logit.numpy() > 0, target.numpy() > 0.5
        expected.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    np.testing.assert_allclose(losses.soft_iou(logits, targets).numpy(), expected, rtol=1e-6)


# ---------------------------------------------------------------- points


def test_sampling_at_cell_centres_reads_the_cells():
    maps = torch.arange(2 * 3 * 4).view(2, 3, 4).float()
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4, indexing="ij")
    points = torch.stack([x, y], dim=-1).view(1, 12, 2).expand(2, -1, -1)
    torch.testing.assert_close(losses.sample_at(maps, points), maps.flatten(1))
    halfway = torch.tensor([[[1.0 / 4, 0.5 / 3]]]).expand(2, -1, -1)  # between the first two cells of a row
    torch.testing.assert_close(losses.sample_at(maps, halfway)[:, 0], (maps[:, 0, 0] + maps[:, 0, 1]) / 2)


def test_points_lie_where_the_mask_is_undecided():
    logits = torch.linspace(-10, 10, 64).expand(2, 64, 64).contiguous()  # undecided in the middle column only
    torch.manual_seed(0)
    points = losses.uncertain_points(logits, 400, oversample_ratio=3.0, importance_ratio=0.75)
    assert points.shape == (2, 400, 2) and (points >= 0).all() and (points < 1).all()
    off = (points[..., 0] - 0.5).abs()
    # of 1200 candidates the 300 nearest the middle span an eighth to either side; the other 100 are anywhere
    assert off[:, :300].quantile(0.98) < 0.15 and off[:, 300:].quantile(0.9) > 0.4
    torch.manual_seed(0)
    torch.testing.assert_close(losses.uncertain_points(logits, 400, 3.0, 0.75), points)


def test_dense_points_approach_the_dense_loss(masks):
    logits, targets = (F.interpolate(m[None], size=(64, 64), mode="bilinear")[0] for m in masks)
    torch.manual_seed(0)
    points = torch.rand(4, 60000, 2)
    at_points, dense = losses.mask_losses(logits, targets, points=points), losses.mask_losses(logits, targets)
    torch.testing.assert_close(torch.stack(at_points), torch.stack(dense), rtol=0.02, atol=0.02)


# ---------------------------------------------------------------- the original code's numbers


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data.parent / "golden" / "refs"
    if not folder.is_dir():
        pytest.skip("no golden numbers beside the sample data")
    sys.path.insert(0, str(folder))
    import formulas  # how the points were drawn

    sys.path.remove(str(folder))
    figures = json.loads((folder / "F_sa2va_losses.json").read_text())
    arrays = np.load(folder / "F_sa2va_losses.npz")
    logits, targets = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("logits", "targets"))
    return formulas, figures, logits, targets


@pytest.mark.parametrize("name", ["sampled_12544", "sampled_1000"])
def test_sampled_losses_have_the_reference_values(golden, name, monkeypatch):
    formulas, figures, logits, targets = golden
    case, seed, n = figures["cases"][name], figures["seed"], len(logits)
    draws = [
        formulas.uniform("F.over", (n, int(case["num"] * figures["oversample_ratio"]), 2), seed),
        formulas.uniform("F.rand", (n, case["num"] - case["important"], 2), seed),
    ]
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.from_numpy(draws.pop(0).astype(np.float32)))
    points = losses.uncertain_points(
        logits, case["num"], figures["oversample_ratio"], figures["importance_sample_ratio"]
    )
    logits = logits.clone().requires_grad_()
    bce, dice = losses.mask_losses(logits, targets, points=points)
    for value, key, weight in ((bce, "mask", 2.0), (dice, "dice", 0.5)):
        assert weight * value.item() == pytest.approx(case[f"loss_{key}"]["float64"], rel=1e-6)
        (grad,) = torch.autograd.grad(weight * value, logits, retain_graph=True)
        assert grad.norm().item() == pytest.approx(case[f"grad_{key}"]["norm"], rel=1e-5)


def test_dense_losses_have_the_reference_values(golden):
    _, figures, logits, targets = golden
    case = figures["cases"]["dense"]
    bce, dice = losses.mask_losses(logits, targets)
    assert 2.0 * bce.item() == pytest.approx(case["loss_mask"]["float64"], rel=1e-6)
    assert 0.5 * dice.item() == pytest.approx(case["loss_dice"]["float64"], rel=1e-6)


def test_ignored_cells_stay_in_the_denominator_as_in_the_reference(golden):
    _, figures, logits, targets = golden
    valid = torch.ones_like(targets, dtype=torch.bool)
    valid[0, :40], valid[1, :, :30] = False, False
    bce, _ = losses.mask_losses(logits, targets, valid=valid)
    expected = figures["cases"]["dense_bce_with_negative_targets"]["loss_mask"]["float64"]
    assert 2.0 * bce.item() == pytest.approx(expected, rel=1e-6)


def _drawn(shape, size):
    """Bool (H, W): a rectangle, or an ellipse, in pixels of a picture of size (width, height)."""
    y, x = np.mgrid[: size[1], : size[0]]
    if shape["kind"] == "rect":
        return (shape["x0"] <= x) & (x < shape["x1"]) & (shape["y0"] <= y) & (y < shape["y1"])
    return ((x - shape["cx"]) / shape["rx"]) ** 2 + ((y - shape["cy"]) / shape["ry"]) ** 2 <= 1


def test_at_given_points_a_training_batch_has_the_reference_losses(shared_data):
    """Predicted masks, targets and points of a whole training step of the original code."""
    folder = shared_data.parent / "golden" / "sa2va"
    if not folder.is_dir():
        pytest.skip("no golden numbers beside the sample data")
    training = json.loads((folder / "cases_seed0.json").read_text())["training"]
    arrays, data = np.load(folder / "goldens_seed0.npz"), training["data"]
    media = shared_data / "sam2_media"
    sizes = [Image.open(media / name).size for name in (data["image"], data["frames"][0])]
    drawn = [_drawn(shape, sizes[0]) for shape in data["image_masks"]]
    drawn += [_drawn(shape, sizes[1]) for shape in data["video_masks"][0]]
    targets = torch.cat([F.interpolate(torch.tensor(m)[None, None].float(), size=(256, 256)) for m in drawn])[:, 0]
    logits = torch.from_numpy(arrays["train_dense/pred_masks"].astype(np.float32))  # stored as float16
    repeated = [0, 1, 0, 1, 0] + [2] * 5 + [3] * 5 + [4] * 5  # five objects a frame: two of the image, one of the clip
    points = torch.from_numpy(arrays["train_points_given/coords"])
    bce, dice = losses.mask_losses(logits[repeated], targets[repeated], points=points)
    expected = training["cases"]["train_points_given"]
    assert 2.0 * bce.item() == pytest.approx(expected["loss_mask"], rel=1e-4)
    assert 0.5 * dice.item() == pytest.approx(expected["loss_dice"], rel=1e-4)
