"""Laws of SAM 2's training over clips, and its equality with the original code's numbers.

Run: SA2VA_TEST_DATA=... pytest tests/training/sam2/test_clip_model.py
"""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import tiny_clip_model
from golden import formulas, references

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.training.sam2.clip_model import NO_OBJECT_LOGIT, Sam2ClipModel
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.prompting import Points, Prompter, PromptSettings

CLICKED = {"prob_to_use_pt_input_for_train": 1.0, "num_correction_pt_per_frame": 2}
MASKED = {"prob_to_use_pt_input_for_train": 0.0}


def clip(frames=3, objects=(2, 1), side=128, seed=0):
    """Noise with moving squares: keyword arguments of the model's forward."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 255, (len(objects), frames, 3, side, side), np.uint8))
    masks = torch.zeros(frames, sum(objects), side, side, dtype=torch.bool)
    for t in range(frames):
        for thing in range(sum(objects)):
            y, x = 8 + 20 * thing + 3 * t, 10 + 9 * t
            masks[t, thing, y : y + 30, x : x + 40] = True
    clips = torch.repeat_interleave(torch.arange(len(objects)), torch.tensor(objects))
    return {"images": images, "masks": masks, "clip_of_object": clips}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(model, inputs, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**inputs, rng=np.random.default_rng(seed))
    output.loss.backward()
    return output


def test_clips_side_by_side_are_as_clips_alone():
    model, both = tiny_clip_model(**MASKED), clip()
    together = run(model, both)
    alone = []
    for number in range(2):
        mine = both["clip_of_object"] == number
        inputs = {
            "images": both["images"][number : number + 1],
            "masks": both["masks"][:, mine],
            "clip_of_object": torch.zeros(int(mine.sum()), dtype=torch.long),
            "objects": 3,
        }
        alone.append(run(model, inputs).loss.item())
    assert together.loss.item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "frames", "dropped"),
    [(MASKED, 5, 0.0), (CLICKED, 5, 0.0), (CLICKED, 1, 0.3)],  # frames together and one by one drop other blocks
    ids=["masks", "clicks", "blocks"],
)
def test_checkpointing_changes_nothing(settings, frames, dropped):
    model, inputs = tiny_clip_model(**settings), clip(frames=frames)
    set_dropout(model.sam, dropped, 0.1)  # what is dropped must be dropped again
    plain, wanted = run(model, inputs).loss.item(), gradients(model)
    model.gradient_checkpointing_enable()
    again, found = run(model, inputs).loss.item(), gradients(model)
    if frames == 1:  # encoded by the very same call
        assert again == plain
    assert again == pytest.approx(plain, rel=1e-6)  # sums over a larger batch may end in another last bit
    assert set(found) == set(wanted)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-6 * largest) for name in wanted)


def test_a_loss_taken_at_once_has_the_gradient_of_one_that_waits():
    model, inputs = tiny_clip_model(**CLICKED), clip(frames=1)
    run(model, inputs)
    found = gradients(model)
    model.zero_grad()
    torch.manual_seed(0)
    waiting = []
    learn = model._learn

    def wait(answer, targets, ignore, objects):
        from sa2va_hf.training.sam2.losses import step_losses

        full = model._full_size(answer.masks)
        losses = step_losses(full, answer.ious, answer.scores, targets, model.losses, objects)
        waiting.append(losses.total(model.losses))
        return learn(answer, targets, ignore, objects)

    model._learn = wait
    model(**inputs, rng=np.random.default_rng(0))
    sum(waiting).backward()
    wanted = gradients(model)
    assert set(found) == set(wanted)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-6 * largest) for name in wanted)


def test_without_gating_an_object_that_is_denied_still_learns_its_mask():
    inputs, name = clip(frames=1, objects=(2,)), "encoder.sam2_model.sam_mask_decoder.output_upscaling.0.weight"
    losses = []
    for gate in (True, False):
        model = tiny_clip_model(**CLICKED, gate_masks=gate)
        with torch.no_grad():
            model.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-30.0)
        output = run(model, inputs)
        assert (output.steps[0][0].masks == NO_OBJECT_LOGIT).all()
        gradient = model.get_parameter(name).grad
        assert (gradient is None or (gradient == 0).all()) == gate
        losses.append(output.mask_loss.item())
    assert losses[0] > 10 * losses[1]


def test_a_frozen_encoder_gets_no_gradient_and_the_rest_does():
    model = tiny_clip_model(**MASKED)
    model.sam.image_encoder.requires_grad_(False)
    run(model, clip())
    names = set(gradients(model))
    assert not any(name.startswith("encoder.sam2_model.image_encoder") for name in names)
    assert {"encoder.sam2_model.sam_mask_decoder.conv_s0.weight", "encoder.sam2_model.maskmem_tpos_enc"} <= names


@pytest.mark.parametrize("settings", [MASKED, CLICKED], ids=["masks", "clicks"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
def test_bfloat16_is_float32_but_for_its_roundings(settings, checkpointing, monkeypatch):
    model, inputs = tiny_clip_model(**settings), clip()
    middles = torch.tensor([[[40.0, 30.0]], [[45.0, 50.0]], [[50.0, 70.0]]])  # the same clicks both times
    click = Points(middles, torch.ones(3, 1, dtype=torch.int32))
    monkeypatch.setattr(Prompter, "_click", lambda self, masks, predicted: click)
    wanted, expected = run(model, inputs).loss.item(), gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, inputs)
    got = gradients(model)
    assert found.loss.dtype == torch.float32 and found.loss.item() == pytest.approx(wanted, rel=0.02)
    assert set(got) == set(expected) and all(gradient.isfinite().all() for gradient in got.values())
    one, other = (torch.cat([of[name].flatten() for name in sorted(of)]) for of in (expected, got))
    assert torch.cosine_similarity(one, other, dim=0) > 0.98


def test_a_clip_whose_masks_are_all_given_teaches_nothing_and_stops_nobody():
    model = tiny_clip_model(**MASKED, num_init_cond_frames_for_train=2, rand_init_cond_frames_for_train=False)
    output = run(model, clip(frames=2))
    assert output.loss.item() > 0 and all((gradient == 0).all() for gradient in gradients(model).values())


def test_ignored_pixels_do_not_count():
    model, inputs = tiny_clip_model(**MASKED), clip(objects=(2,))
    plain = run(model, inputs).loss.item()
    ignore = torch.zeros(3, 1, 128, 128, dtype=torch.bool)
    assert run(model, inputs | {"ignore": ignore}).loss.item() == plain
    ignore[1:] = True
    assert run(model, inputs | {"ignore": ignore}).mask_loss.item() < 1e-3  # frame 0 is a given mask


# ---------------------------------------------------------------- the original's numbers


class Replayed(Prompter):
    """Gives the boxes and points that the original drew, in the order in which it asked for them."""

    boxes, points = [], []

    def _first_prompt(self, masks):
        if self.boxes:
            self.rng.random()
            return self._next(self.boxes)
        return super()._first_prompt(masks)

    def _click(self, masks, predicted):
        return self._next(self.points)

    @staticmethod
    def _next(records):
        record = records.pop(0)
        return Points(torch.tensor(record["points"]).float(), torch.tensor(record["labels"], dtype=torch.int32))


@pytest.fixture(scope="module")
def golden(shared_data):
    """Numbers, arrays, and the formulas, which give the same large arrays again and again."""
    folder = references(shared_data)
    meta, known = json.loads((folder / "B_sam2_forward.json").read_text()), formulas(folder)
    cached = SimpleNamespace(unpack=known.unpack, sam2_tensor=cache(known.sam2_tensor), probe=cache(known.probe))
    return meta, dict(np.load(folder / "B_sam2_forward.npz")), cached


def golden_model(meta, known, record):
    config = Sa2VAGroundingConfig(version="2.1", size="tiny", image_size=record["image_size"])
    sam2 = build_sam2(config)
    set_dropout(sam2, 0.0, 0.0)
    seed = meta["weights_seed"]
    state = {n: torch.from_numpy(known.sam2_tensor(n, tuple(t.shape), seed)) for n, t in sam2.state_dict().items()}
    sam2.load_state_dict(state)
    for name, value in record["weight_overrides"].items():
        sam2.state_dict()[name].fill_(value)
    skipped = ("use_act", "forward_backbone")
    flags = {name: value for name, value in record["flags"].items() if not name.startswith(skipped)}
    return Sam2ClipModel(sam2, config, PromptSettings(**flags)).train(record["train_mode"])


def golden_clip(arrays, known, record):
    side, frames = record["image_size"], record["T"]
    images = torch.from_numpy(arrays[f"frames.{side}"]).permute(0, 3, 1, 2)[None, :frames]
    masks = torch.from_numpy(known.unpack(arrays[f"masks.{side}"], (4, 2, side, side)))[:frames]
    clips = torch.zeros(2, dtype=torch.long)
    if record["second_video"]:
        images = torch.cat([images, images.flip(-1)])
        more = torch.from_numpy(known.unpack(arrays[f"masks.{side}.video1"], (4, 1, side, side)))
        masks, clips = torch.cat([masks, more], 1), torch.tensor([0, 0, 1])
    return {"images": images, "masks": masks, "clip_of_object": clips}


SCENARIOS = (
    "mask_T4",
    "mask_T4_two_init_frames",
    "box_T4_one_click",
    "box_T1_seven_clicks",
    "point_T1_center_eval_seven_clicks",
    "mask_T4_all_objects_gated",
    "mask_T4_two_videos",
    "mask_T4_eval",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_losses_masks_and_gradients_of_the_original(golden, name, monkeypatch):
    meta, arrays, known = golden
    record = meta["scenarios"][name]
    if not name.startswith("point"):  # whose clicks are not random
        monkeypatch.setattr(Replayed, "boxes", list(record["boxes"]))
        monkeypatch.setattr(Replayed, "points", list(record["sampled_points"]))
        monkeypatch.setattr("sa2va_hf.training.sam2.clip_model.Prompter", Replayed)
    model = golden_model(meta, known, record)
    output = model(**golden_clip(arrays, known, record), rng=np.random.default_rng(42))
    tolerance = record["tolerance"]
    expected = record["losses_float64"]
    for part, key in (("mask_loss", "loss_mask"), ("dice_loss", "loss_dice"), ("iou_loss", "loss_iou")):
        assert getattr(output, part).item() == pytest.approx(expected[key], rel=tolerance["loss_rel"], abs=1e-9)
    assert output.score_loss.item() == pytest.approx(expected["loss_class"], rel=tolerance["loss_rel"])
    assert output.loss.item() == pytest.approx(expected["core_loss"], rel=tolerance["loss_rel"])
    for t, (steps, of_frame) in enumerate(zip(output.steps, record["frames_steps"], strict=True)):
        for s, (step, wanted) in enumerate(zip(steps, of_frame, strict=True)):
            assert_step(model, step, wanted, arrays[f"{name}.low_res.{t}.{s}"], tolerance)
    output.loss.backward()
    assert_gradients(model, record, known, tolerance)


def assert_step(model, step, wanted, low_res, tolerance):
    masks = step.masks.numpy()
    assert masks.shape == low_res.shape and masks.shape[1] == wanted["M"]
    allowed = tolerance["low_res_abs"] + 5e-4 * np.abs(low_res.astype(np.float64))
    assert (np.abs(masks - low_res.astype(np.float64)) <= allowed).all()
    assert np.abs(step.ious.numpy() - np.array(wanted["ious"])).max() < 1e-4
    assert np.abs(step.scores.numpy().ravel() - np.ravel(wanted["object_score_logits"])).max() < 1e-4
    if "point_coords" in wanted:
        assert step.points.coordinates.tolist() == wanted["point_coords"]
        assert step.points.labels.tolist() == wanted["point_labels"]
    if step.points is not None or wanted["M"] == 3:  # of a given mask the full size is the mask itself
        positive = (model._full_size(step.masks) > 0).flatten(2).sum(2).numpy()
        counts = np.array(wanted["pixels_above_0"])
        assert (np.abs(positive - counts) <= 0.001 * counts + 5).all()


def assert_gradients(model, record, known, tolerance):
    found = {name: p.grad for name, p in model.sam.named_parameters()}
    assert {n for n, gradient in found.items() if gradient is None} == {n for n, v in record["grad"].items() if not v}
    total = record["grad_total_norm"]
    norm = sum(float(g.double().square().sum()) for g in found.values() if g is not None) ** 0.5
    assert norm == pytest.approx(total, rel=tolerance["grad_total_rel"])
    for name, numbers in record["grad"].items():
        if numbers is None:
            continue
        gradient = found[name].double()
        size, projection = numbers
        scale = max(size, 1e-4 * total)
        assert abs(gradient.norm().item() - size) <= tolerance["grad_norm_rel_floor_1e4"] * scale, name
        probe = torch.from_numpy(known.probe(name, tuple(gradient.shape))).double()
        assert abs((gradient * probe).sum().item() - projection) <= tolerance["grad_proj_rel_floor_1e4"] * scale, name
