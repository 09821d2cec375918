"""Objects followed through a video: as the `sam2` package's own predictor does, but in a stream and together.

Run: pytest tests/model/test_tracking.py
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.model.grounding_protocol import PIXEL_MEAN, PIXEL_STD
from sa2va_hf.model.tracking import ClipMemory, follow_objects

SIDE, FRAMES = 128, 20


def tiny_sam2(version="2.1"):
    config = Sa2VAGroundingConfig(**(tiny_config().grounding_config.to_dict() | {"version": version}))
    torch.manual_seed(0)
    return build_sam2(config).eval()


def frames():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (FRAMES, 3, SIDE, SIDE), np.uint8))


def square(x, y=20, height=96, width=144):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y : y + 40, x : x + 50] = True
    return mask


def followed(sam2, prompts, video=None):
    video = frames() if video is None else video
    return dict(follow_objects(sam2, video.__getitem__, len(video), prompts))


def by_the_package(sam2, prompts):
    """The same by SAM2VideoPredictor: {frame: {object: logits at the video's size}}."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    predictor = SAM2VideoPredictor.__new__(SAM2VideoPredictor)
    predictor.__dict__ |= sam2.__dict__
    for name, value in {
        "fill_hole_area": 0,
        "non_overlap_masks": False,
        "clear_non_cond_mem_around_input": False,
        "add_all_frames_to_correct_as_cond": False,
    }.items():
        setattr(predictor, name, value)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    images = (frames().float() / 255 - mean) / std
    height, width = next(iter(next(iter(prompts.values())).values())).shape
    state = {"images": images, "num_frames": len(images), "video_height": height, "video_width": width}
    state |= {"offload_video_to_cpu": False, "offload_state_to_cpu": False, "device": torch.device("cpu")}
    state |= {"storage_device": torch.device("cpu"), "cached_features": {}, "constants": {}, "obj_ids": []}
    for name in ("obj_id_to_idx", "obj_idx_to_id", "point_inputs_per_obj", "mask_inputs_per_obj"):
        state[name] = {}
    for name in ("output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj"):
        state[name] = {}
    for thing, given in prompts.items():
        for number, mask in given.items():
            predictor.add_new_mask(state, number, thing, mask)
    found = {}
    for number, things, masks in predictor.propagate_in_video(state):
        found[number] = dict(zip(things, masks[:, 0], strict=True))
    return found


@pytest.mark.parametrize(
    "prompts",
    [{1: {0: square(10)}, 2: {0: square(70, 30)}}, {1: {0: square(10), 12: square(40)}, 2: {0: square(70, 30)}}],
    ids=["first frame", "one object again later"],
)
def test_it_is_what_the_package_does(prompts):
    sam2 = tiny_sam2()
    wanted, found = by_the_package(sam2, prompts), followed(sam2, prompts)
    assert list(found) == list(range(FRAMES))
    for number, masks in wanted.items():
        for thing, logits in masks.items():
            ours = F.interpolate(found[number][thing][None, None], size=logits.shape, mode="bilinear")[0, 0]
            assert torch.allclose(ours, logits, atol=2e-3 * float(logits.abs().max())), (number, thing)
            assert ((ours > 0) == (logits > 0)).float().mean() > 0.999


def test_objects_do_not_know_of_each_other():
    sam2, one, other = tiny_sam2(), {3: {0: square(10)}}, {7: {5: square(60)}}
    together, alone = followed(sam2, one | other), followed(sam2, other)
    assert list(together[4]) == [3] and list(together[5]) == [3, 7] and list(alone) == list(range(5, FRAMES))
    for number, masks in alone.items():
        assert torch.allclose(together[number][7], masks[7], atol=1e-3)


def test_an_object_that_is_drawn_as_absent_stays_absent_there():
    found = followed(tiny_sam2(), {1: {0: torch.zeros(96, 144, dtype=torch.bool)}})
    assert (found[0][1] < 0).all()


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_forgetting_changes_nothing_and_keeps_the_memory_small(version, monkeypatch):
    sam2, prompts = tiny_sam2(version), {1: {0: square(10)}}
    held = []
    forget = ClipMemory._forget

    def watch(memory, upcoming):
        forget(memory, upcoming)
        held.append(sum(len(group) for group in memory.kept.values()))

    monkeypatch.setattr(ClipMemory, "_forget", watch)
    short = followed(sam2, prompts)
    assert max(held) == 1 + 15
    with monkeypatch.context() as never:
        never.setattr(sam2, "max_obj_ptrs_in_encoder", 16)
        never.setattr(sam2, "num_maskmem", 7)
        never.setattr(ClipMemory, "_forget", lambda memory, upcoming: None)
        long = followed(sam2, prompts)
    assert all(torch.equal(short[number][1], long[number][1]) for number in short)


def test_what_cannot_be_followed():
    with pytest.raises(ValueError, match=r"object 4: expected masks on frames 0 to 19, got \[20\]"):
        followed(tiny_sam2(), {4: {20: square(10)}})
    with pytest.raises(ValueError, match="training mode"):
        followed(tiny_sam2().train(), {1: {0: square(10)}})
