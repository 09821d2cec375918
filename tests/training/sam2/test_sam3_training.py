"""SAM 3's tracker in the trainer of SAM 2: what its training sees, what learns, and what a run writes and resumes.

Run: pytest tests/training/sam2/test_sam3_training.py
"""

import json

import numpy as np
import pytest
import torch
from clips import rows, sample
from safetensors.torch import load_file
from sam3s import SIDE, needs_sam3, tiny_sam3, tiny_sam3_clip_model

from sa2va_hf.checkpoints.trackers import load_tracker
from sa2va_hf.data.clips.vos import VosClips
from sa2va_hf.model.tracking import ClipMemory
from sa2va_hf.training.sam2.build import build
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.prompting import ClipPlan, Points, Prompter
from sa2va_hf.training.sam2.validation import score_clip

needs_sam3()
ONE = {"num_init_cond_frames_for_train": 1, "num_frames_to_correct_for_train": 1}
MASKED = ONE | {"prob_to_use_pt_input_for_train": 0.0}
CLICKED = ONE | {
    "prob_to_use_pt_input_for_train": 1.0,
    "prob_to_use_box_input_for_train": 0.0,
    "num_correction_pt_per_frame": 1,
}


def clip(frames, objects=2):
    """Squares that move over noise, as keyword arguments of the model's forward."""
    images = torch.randint(0, 90, (1, frames, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(frames, objects, SIDE, SIDE, dtype=torch.bool)
    for t in range(frames):
        for item in range(objects):
            y, x = 10 + 50 * item, 12 + 8 * t
            masks[t, item, y : y + 36, x : x + 40] = True
            images[0, t, item, y : y + 36, x : x + 40] += 160
    return {
        "images": images.to(torch.uint8),
        "masks": masks,
        "clip_of_object": torch.zeros(objects, dtype=torch.long),
    }


def step(model, inputs):
    model.zero_grad()
    torch.manual_seed(0)
    output = model(**inputs, rng=np.random.default_rng(0))
    output.loss.backward()
    return output


def reached(model):
    """Parts of the network with a gradient that is not zero."""
    return {n.split(".")[0] for n, p in model.sam.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    "settings", [pytest.param(MASKED, id="masks"), pytest.param(CLICKED, id="clicks", marks=pytest.mark.slow)]
)
def test_gradients_reach_all_that_a_clip_uses(settings):
    model, inputs = tiny_sam3_clip_model(**settings), clip(2)
    output, found = step(model, inputs), reached(model)
    parts = {
        "vision_encoder",
        "mask_decoder",
        "prompt_encoder",
        "memory_attention",
        "memory_encoder",
        "memory_temporal_positional_encoding",
        "object_pointer_proj",
        "temporal_positional_encoding_projection_layer",
    }
    assert found >= parts | ({"mask_downsample"} if settings is MASKED else {"no_memory_embedding"})
    assert not any(p.grad is not None for p in model.sam.vision_encoder.neck.fpn_layers[3].parameters())
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.gradient_checkpointing_enable()
    assert step(model, inputs).loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-2, atol=1e-5 * largest.item())


def test_training_sees_what_inference_computes(monkeypatch):
    """One click on frame 0 of a clip in eval mode: the masks of its later frames are those of `ClipMemory`."""
    model, inputs = tiny_sam3_clip_model().eval(), clip(4)
    middles = torch.tensor([[[32.0, 28.0]], [[32.0, 78.0]]])
    click = Points(middles, torch.ones(2, 1, dtype=torch.int32))
    monkeypatch.setattr(Prompter, "plan", lambda self, masks: ClipPlan({0: click}))
    encoder = model.encoder
    with torch.no_grad():
        steps = model(**inputs, rng=np.random.default_rng(0)).steps
        features = [encoder.encode(encoder.normalize(frame[None])) for frame in inputs["images"][0]]
        memory, first = ClipMemory(encoder, 2, 4), encoder.prompt(features[0], points=tuple(click))
        seen = first.object_scores > 0
        first.masks = first.masks.where(seen[:, :, None], torch.tensor(-1024.0))
        memory.prompt_with_embeddings(0, features[0], first)
        wanted = [first.masks, *(memory.follow(index, features[index])[0] for index in (1, 2, 3))]
    for (found,), masks in zip(steps, wanted, strict=True):
        best = found.masks[torch.arange(2), found.ious.argmax(1)]
        torch.testing.assert_close(best, masks, rtol=1e-4, atol=1e-4)


def test_later_prompted_frames_point_back_in_training_alone():
    encoder = tiny_sam3_clip_model().encoder
    kept = encoder.begin()
    kept["cond_frame_outputs"] = {0: {"obj_ptr": 0}, 3: {"obj_ptr": 3}}
    assert [distance for distance, _ in encoder.train()._pointers(kept, 1, 8)] == [1, -2]
    assert [distance for distance, _ in encoder.eval()._pointers(kept, 1, 8)] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2], ids=["picture", "clip"])
def test_it_learns(frames):
    model, inputs = tiny_sam3_clip_model(**(MASKED if frames > 1 else CLICKED)), clip(frames, objects=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        losses.append(step(model, inputs).loss.item())
        optimizer.step()
    assert min(losses[-2:]) < 0.7 * losses[0]


def test_whole_images_drop_a_branch():
    """Stochastic depth decides per image, also where attention runs window by window."""
    network = tiny_sam3(num_layers=3).sam3_model
    blocks, seen = network.vision_encoder.backbone.layers, []
    set_dropout(network, 0.5, 0.2)
    set_dropout(network, 0.8, 0.2)  # in its place
    windowed = blocks[2]  # 4 windows of the grid of 8
    windowed.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    torch.manual_seed(0)
    with torch.no_grad():
        windowed.train()(torch.randn(16, 8, 8, 64))
    zero = (seen[0].view(16, 4, -1) == 0).all(-1)
    assert (zero.all(1) | ~zero.any(1)).all() and 0 < zero.all(1).sum() < 16
    attention = network.memory_attention.layers[0]
    assert attention.dropout1.p == attention.self_attn.dropout_p == 0.2
    set_dropout(network, 0.0, 0.0)
    assert [len(block.attention._forward_hooks) for block in blocks] == [0, 0, 1]


# ---------------------------------------------------------------- a whole run
@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """(A folder of a tiny SAM 3 alone, prepared clips and pictures, videos to score.)"""
    folder = tmp_path_factory.mktemp("start")
    run = tiny_sam3_clip_model()
    from sa2va_hf.training.sam2.trainer import WEIGHTS, _write

    _write(run.sam.state_dict(), folder / WEIGHTS)
    run.config.save_pretrained(folder)
    rows(*(sample(folder / "files", f"c{n}", frames=3) for n in range(2))).save_to_disk(folder / "clips")
    rows(*(sample(folder / "files", f"p{n}", frames=1) for n in range(2))).save_to_disk(folder / "pictures")
    return folder


def arguments(start, output, *more):
    data = json.dumps([{"path": str(start / "clips")}, {"path": str(start / "pictures"), "batch_size": 2}])
    settings = {
        "model_name_or_path": start,
        "train_data": data,
        "num_frames": 2,
        "num_correction_pt_per_frame": 1,
        "learning_rate": "1e-3",
        "vision_learning_rate": "1e-3",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "output_dir": output,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), "--disable_tqdm=True", *more]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_resumed_run_is_the_same_run_and_its_folder_is_sam_3(start, tmp_path, mode):
    modes = [f"--train_{part}={mode}" for part in ("image_encoder", "memory_attention", "mask_decoder")]
    whole, _ = build(arguments(start, tmp_path / "whole", *modes))
    whole.train()
    whole.save_model()
    rates = {name: group.scale for group in whole.groups for name in group.names}
    if mode == "full":
        assert rates["vision_encoder.backbone.layers.0.attention.q_proj.weight"] == pytest.approx(0.9**2)
        assert rates["vision_encoder.backbone.embeddings.patch_embeddings.projection.weight"] == pytest.approx(0.9**3)
        assert rates["vision_encoder.backbone.embeddings.position_embeddings"] == rates["no_memory_embedding"] == 1
        assert not any(name.startswith("vision_encoder.neck.fpn_layers.3.") for name in rates)
    second, checkpoint = build(
        arguments(start, tmp_path / "second", *modes, f"--resume_from_checkpoint={tmp_path / 'whole/checkpoint-2'}")
    )
    second.train(resume_from_checkpoint=checkpoint)
    expected, found = whole.model.sam.state_dict(), second.model.sam.state_dict()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    again, config = load_tracker(tmp_path / "whole")
    assert config.image_size == SIDE and set(load_file(tmp_path / "whole/model.safetensors")) == set(
        again.network.state_dict()
    )
    before = load_tracker(start)[0].network.state_dict()
    moved = {n.split(".")[0] for n, t in again.network.state_dict().items() if not torch.equal(t, before[n])}
    assert moved >= {"vision_encoder", "memory_attention", "mask_decoder", "memory_encoder"}
    whole.model.eval(), again.eval()
    with torch.no_grad():
        image = torch.rand(1, 3, SIDE, SIDE)
        ours, theirs = whole.model.encoder.encode(image), again.encode(image)
    for one, other in zip(ours.levels, theirs.levels, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_side_that_sam_3_cannot_have(start):
    with pytest.raises(ValueError, match="`image_size`: expected a multiple of 56, got 128"):
        load_tracker(start, 128)


def test_videos_are_scored(start):
    model = tiny_sam3_clip_model().eval()
    (clip,) = VosClips([rows(sample(start / "files", "v", frames=5))])
    scores = score_clip(model.encoder, clip, torch.device("cpu"))
    assert len(scores) == 2 and all(0 <= score["J&F"] <= 1 for score in scores)
