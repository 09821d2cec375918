"""Laws of simulated prompts, and their equality with the original code's draws.

Run: SA2VA_TEST_DATA=... pytest tests/training/sam2/test_prompting.py
"""

import json

import numpy as np
import pytest
import torch
from golden import formulas, references

from sa2va_hf.training.sam2.prompting import (
    Prompter,
    PromptSettings,
    center_clicks,
    distance_to_border,
    noisy_boxes,
    uniform_clicks,
)


def blobs(count=4, height=40, width=60, seed=0):
    """Discs of random place and size, bool (count, height, width)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    discs = [
        (y - rng.integers(height)) ** 2 + (x - rng.integers(width)) ** 2 < rng.integers(4, 15) ** 2
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(discs))


def test_clicks_are_where_the_prediction_is_wrong_and_say_how():
    masks, predicted = blobs(seed=1), blobs(seed=2)
    for clicks in (uniform_clicks, center_clicks):
        points = clicks(masks, predicted)
        for (x, y), label, mask, drawn in zip(
            points.coordinates[:, 0].long(), points.labels[:, 0], masks, predicted, strict=True
        ):
            assert mask[y, x] == bool(label) and drawn[y, x] != bool(label)


def test_uniform_clicks_are_uniform():
    torch.manual_seed(0)
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 1:3, 1:5] = True  # 8 pixels
    drawn = [uniform_clicks(mask.expand(500, 6, 6), None).coordinates[:, 0].long() for _ in range(4)]
    counts = np.zeros((6, 6), int)
    for x, y in torch.cat(drawn).tolist():
        counts[y, x] += 1
    assert counts[~mask[0].numpy()].sum() == 0
    assert counts[mask[0].numpy()].min() > 190 and counts.max() < 310  # 250 expected, standard deviation 15


def test_where_all_is_right_the_click_is_outside():
    masks = blobs()
    points = uniform_clicks(masks, masks)
    assert (points.labels == 0).all()
    assert not any(mask[y, x] for mask, (x, y) in zip(masks, points.coordinates[:, 0].long(), strict=True))


def test_the_distance_is_that_of_every_outside_pixel_tried():
    for mask in (*blobs(6, 20, 30, seed=3).numpy(), np.ones((7, 9), bool), np.zeros((5, 4), bool)):
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
        brute = ((y[..., None] - outside[:, 0]) ** 2 + (x[..., None] - outside[:, 1]) ** 2).min(-1)
        assert (distance_to_border(mask) == brute * mask).all()


def test_boxes_stay_near_and_inside():
    masks = blobs()
    exact, moved = noisy_boxes(masks, noise=0.0).coordinates, noisy_boxes(masks).coordinates
    sides = (exact[:, 1] - exact[:, 0]).unsqueeze(1)
    assert ((moved - exact).abs() <= 0.1 * sides + 1e-5).all()
    assert (moved >= 0).all() and (moved[..., 0] <= 59).all() and (moved[..., 1] <= 39).all()


def test_a_picture_is_always_prompted_by_points_and_corrected():
    settings = PromptSettings(prob_to_use_pt_input_for_train=0.0)
    for seed in range(10):
        plan = Prompter(settings, np.random.default_rng(seed), True).plan(blobs().unsqueeze(0))
        assert plan.prompted[0] is not None and plan.corrected == [0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames_to_correct_for_train": 1}, "num_frames_to_correct_for_train` is 1, less than the 2"),
        ({"prob_to_use_box_input_for_train": 1.5}, "probability from 0 to 1, got 1.5"),
        ({"num_correction_pt_per_frame": 0}, "num_correction_pt_per_frame`: expected at least 1, got 0"),
        ({"pt_sampling_for_eval": "middle"}, "expected center or uniform, got 'middle'"),
    ],
)
def test_settings_that_contradict_each_other(settings, words):
    with pytest.raises(ValueError, match=words):
        PromptSettings(**settings)


# ---------------------------------------------------------------- the original's draws


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = references(shared_data)
    arrays = dict(np.load(folder / "B_prompt_plan.npz"))
    unpack = formulas(folder).unpack
    return (
        json.loads((folder / "B_prompt_plan.json").read_text()),
        arrays,
        lambda bits, shape: torch.from_numpy(unpack(bits, shape)),
    )


def test_the_decisions_of_the_original(golden):
    meta, arrays, unpack = golden
    size, settings = meta["mask_size"], PromptSettings(**without(meta["flags"], "use_act", "forward_backbone"))
    for schedule in meta["plans"].values():
        rng = np.random.default_rng(schedule["numpy_seed"])
        torch.manual_seed(schedule["torch_seed"])
        for expected in schedule["calls"]:
            frames = expected["T"]
            masks = unpack(arrays[f"masks.{frames}"], (frames, 2, size, size))
            prompter = Prompter(settings, rng, training=True)
            plan = prompter.plan(masks)
            assert list(plan.prompted) == expected["init_cond_frames"]
            assert plan.order(frames) == expected["processing_order"]
            assert plan.corrected == expected["frames_to_correct"]
            assert [frame for frame, points in plan.prompted.items() if points is None] == expected["mask_frames"]
            given = {frame: points for frame, points in plan.prompted.items() if points is not None}
            for wanted in expected["prompts"]:
                coordinates, labels = given.pop(wanted["frame"])
                assert coordinates.tolist() == wanted["coords"] and labels.tolist() == wanted["labels"]
            assert not given
            for wanted in expected["sample_from_gt"]:
                assert [clicks_anywhere(prompter, masks[0]) for _ in wanted] == wanted


def clicks_anywhere(prompter, masks):
    """Whether a correction of an all wrong, all inverse prediction falls inside the object regardless."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr("sa2va_hf.training.sam2.prompting.uniform_clicks", lambda _, predicted: asked.append(predicted))
        prompter.correct(masks, ~masks)
    return asked == [None]


def without(flags, *starts):
    return {name: value for name, value in flags.items() if not name.startswith(starts)}


def test_the_clicks_and_boxes_of_the_original(golden):
    meta, arrays, unpack = golden
    samplers = meta["samplers"]
    shape = (samplers["count"], samplers["size"], samplers["size"])
    masks, predicted = (unpack(arrays[f"sampler.{name}"], shape) for name in ("gt", "pred"))
    torch.manual_seed(samplers["torch_seed"])
    found = {
        "uniform_with_pred": uniform_clicks(masks, predicted),
        "uniform_without_pred": uniform_clicks(masks, None),
        "box_with_noise": noisy_boxes(masks),
        "center_with_pred": center_clicks(masks, predicted),
        "center_without_pred": center_clicks(masks, None),
        "box_without_noise": noisy_boxes(masks, noise=0.0),
    }
    for name, points in found.items():
        assert points.coordinates.tolist() == samplers[name]["points"], name
        assert points.labels.tolist() == samplers[name]["labels"], name
