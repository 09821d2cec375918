"""Which frames the LLM reads, and what every video mode owes its caller.

Run: pytest tests/model/test_video_modes.py
"""

import pytest
import torch
from tiny import tiny_model

from sa2va_hf.model.video_modes import VIDEO_MODES, clip_masks, get_video_mode, uniform_frames


def test_uniform_frames_reach_from_end_to_end():
    assert uniform_frames(100, 5) == [0, 24, 49, 74, 99]
    assert uniform_frames(3, 5) == [0, 1, 2]
    assert uniform_frames(1, 5) == [0]
    for length in range(5, 60):
        chosen = uniform_frames(length, 5)
        assert chosen == sorted(set(chosen)) and len(chosen) == 5 and (chosen[0], chosen[-1]) == (0, length - 1)


def test_an_unknown_mode_lists_those_there_are():
    with pytest.raises(ValueError, match="per_frame.*'guess'"):
        get_video_mode("guess")


@pytest.mark.parametrize("mode", sorted(VIDEO_MODES))
@torch.no_grad()
def test_every_mode_draws_every_object_on_every_frame_in_order(mode):
    model, asked = tiny_model(), []
    frames = torch.randint(0, 255, (4, 3, 128, 128), dtype=torch.uint8)
    embeddings = torch.randn(3, 64)

    def load(numbers):
        asked.extend(numbers)
        return frames[numbers]

    steps = list(clip_masks(model.grounding_encoder, load, 4, uniform_frames(4, 2), embeddings, mode))
    masks = torch.cat([masks for masks, _ in steps], dim=1)
    scores = torch.cat([scores for _, scores in steps], dim=1)
    assert masks.shape == (3, 4, 32, 32) and masks.dtype == torch.float32
    assert scores.shape == (3, 4, 2) and (scores >= 0).all() and (scores <= 1).all()
    assert set(asked) == {0, 1, 2, 3}


@torch.no_grad()
def test_per_frame_is_what_the_training_forward_draws():
    model = tiny_model()
    frames = torch.randint(0, 255, (4, 3, 128, 128), dtype=torch.uint8)
    embeddings = torch.randn(3, 64)
    steps = clip_masks(model.grounding_encoder, lambda numbers: frames[numbers], 4, [0], embeddings, "per_frame")
    masks = torch.cat([masks for masks, _ in steps], dim=1)
    prediction, _ = model.predict_masks(embeddings, torch.tensor([3]), frames, torch.tensor([4]))
    torch.testing.assert_close(masks, prediction.masks.view(3, 4, 32, 32), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision_of_the_llm_does_not_leak_into_the_caller():
    encoder = tiny_model().grounding_encoder
    frames = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    load, embeddings = lambda indices: frames[indices], torch.randn(1, 64)
    for masks, _ in clip_masks(encoder, load, 2, [0], embeddings, "consistent", dtype=torch.bfloat16):
        assert masks.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu"), "the caller's own arithmetic must stay in float32"
