"""SAM 2's memory of a clip: the stock video predictor's numbers, for all objects at once, in bounded space.

Run: pytest tests/model/test_clip_memory.py
"""

from copy import deepcopy

import pytest
import torch
from sam2 import sam2_video_predictor
from tiny import tiny_config

from sa2va_hf.model.grounding import Sa2VAGroundingEncoder
from sa2va_hf.model.grounding_protocol import NO_OBJECT_LOGIT
from sa2va_hf.model.tracking import ClipMemory, follow_objects
from sa2va_hf.model.video_modes import FrameReader, consistent, memory

SIDE, FRAMES = 128, 20
LOW = SIDE // 4


def frames(count: int = FRAMES) -> torch.Tensor:
    """A bright blot that wanders over noise."""
    generator = torch.Generator().manual_seed(3)
    clip = torch.randint(0, 120, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    for number in range(count):
        place = 4 * number % 90
        clip[number, :, place : place + 30, 20:60] = 230
    return clip


def balance(encoder: Sa2VAGroundingEncoder, clip: torch.Tensor, given: dict[int, torch.Tensor]) -> None:
    """Shift the object scores so that half of the objects are taken to be gone."""
    scores: list[torch.Tensor] = []
    head = encoder.tracker.pred_obj_score_head
    hook = head.register_forward_hook(lambda _, __, output: scores.append(output))
    follow(encoder, clip, given)
    hook.remove()
    head.layers[-1].bias.sub_(torch.cat(scores).median())


def logits(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """(objects, LOW, LOW) of filled boxes (x0, y0, x1, y1)."""
    masks = torch.full((len(boxes), LOW, LOW), -3.0)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 4.0
    return masks


def make_encoder(tracking_decoder: bool = True, version: str = "2.0") -> Sa2VAGroundingEncoder:
    """Random weights; with a tracking decoder it differs from the other, and object scores of both signs occur."""
    config = tiny_config().grounding_config
    config.tracking_decoder, config.version = tracking_decoder, version
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = Sa2VAGroundingEncoder(config).eval().requires_grad_(False)
        sam = encoder.sam2_model
        for parameter in (sam.no_obj_ptr, sam.maskmem_tpos_enc, sam.no_mem_embed):
            parameter.normal_(0, 0.2)  # else small enough for mistakes to drown
        sam.memory_encoder.out_proj.weight.mul_(10)
        for layer in sam.memory_attention.layers:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                layer.cross_attn_image.get_submodule(part).weight.mul_(3)
        if tracking_decoder:
            for parameter in encoder.tracking_decoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        for decoder in {encoder.tracker, encoder.sam2_model.sam_mask_decoder}:
            for head in decoder.output_hypernetworks_mlps:  # mask logits of a trained model's size
                head.layers[-1].weight.mul_(30)
    return encoder


class FullPrecision:
    """torch, but its bfloat16 is float32: the stock predictor's bfloat16 memories would hide small errors."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str):
        return getattr(torch, name)


def stock(encoder: Sa2VAGroundingEncoder, monkeypatch, clip: torch.Tensor, given: dict[int, torch.Tensor]):
    """The `sam2` package's own answer: masks (objects, frames, LOW, LOW), each object tracked by itself."""
    sam = encoder.sam2_model
    predictor = sam2_video_predictor.SAM2VideoPredictor.__new__(sam2_video_predictor.SAM2VideoPredictor)
    predictor.__dict__ = sam.__dict__ | {"_modules": dict(sam._modules)}
    predictor._modules["sam_mask_decoder"] = encoder.tracker
    for name in ("fill_hole_area", "non_overlap_masks", "clear_non_cond_mem_around_input"):
        setattr(predictor, name, 0)
    predictor.add_all_frames_to_correct_as_cond = False
    pixels = encoder.normalize(clip)
    monkeypatch.setattr(sam2_video_predictor, "torch", FullPrecision())
    monkeypatch.setattr(sam2_video_predictor, "load_video_frames", lambda **_: (pixels, LOW, LOW))
    state = predictor.init_state("no file is read")
    for number, masks in given.items():
        large = torch.nn.functional.interpolate(masks[None], size=(SIDE, SIDE), mode="bilinear")[0] > 0
        for thing, mask in enumerate(large):
            predictor.add_new_mask(state, number, thing, mask)
    found = [masks[:, 0] for _, _, masks in predictor.propagate_in_video(state, start_frame_idx=0)]
    return torch.stack(found, dim=1)


def follow(encoder: Sa2VAGroundingEncoder, clip: torch.Tensor, given: dict[int, torch.Tensor]):
    """The same by `ClipMemory`: frame number -> masks (objects, LOW, LOW) of the frames that were not given."""
    remembered = ClipMemory(encoder, len(next(iter(given.values()))), len(clip))
    reader = FrameReader(encoder, lambda numbers: clip[numbers], 1)
    for number, features in reader.read(sorted(given)):
        remembered.prompt_with_masks(number, features, given[number])
    others = [number for number in range(len(clip)) if number not in given]
    return {number: remembered.follow(number, features)[0] for number, features in reader.read(others)}


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_masks_are_followed_as_by_the_stock_predictor(monkeypatch, version):
    encoder = make_encoder(version=version)
    given = {  # an object that is not there on one of its frames; frames before, between and after
        0: logits((3, 4, 14, 20), (18, 2, 30, 9), (0, 0, 0, 0)),
        9: logits((5, 14, 19, 30), (0, 0, 0, 0), (2, 2, 28, 28)),
        13: logits((5, 1, 19, 30), (1, 1, 9, 9), (10, 10, 14, 14)),
    }
    clip = frames()
    balance(encoder, clip, given)
    expected, found = stock(encoder, monkeypatch, clip, given), follow(encoder, clip, given)
    assert sorted(found) == [number for number in range(FRAMES) if number not in given]
    for number, masks in found.items():
        torch.testing.assert_close(masks, expected[:, number], rtol=1e-3, atol=1e-3)
    moving = torch.stack(list(found.values()), dim=1)
    gone = (moving == NO_OBJECT_LOGIT).flatten(2).all(2)
    assert 0 < gone.sum() < gone.numel(), "objects both there and gone"
    assert moving[~gone].std() > 0.5 and moving[~gone].std(0).mean() > 0.01, "masks that are all alike would agree"


def test_objects_that_are_gone_are_blanked_by_sam_2s_own_decoder_alone(monkeypatch):
    given, clip = {0: logits((3, 4, 14, 20), (18, 2, 30, 9))}, frames(6)
    for tracking_decoder in (True, False):
        encoder = make_encoder(tracking_decoder)
        encoder.tracker.pred_obj_score_head.layers[-1].bias.fill_(-1e3)  # "nothing is there"
        found = follow(encoder, clip, given)
        blank = all((masks == NO_OBJECT_LOGIT).all() for masks in found.values())
        assert blank == tracking_decoder
        if tracking_decoder:  # and what is remembered of an absent object is the stock predictor's as well
            expected = stock(encoder, monkeypatch, clip, given)
            assert (expected[:, 1:] == NO_OBJECT_LOGIT).all()


@pytest.mark.parametrize("mode", [memory, consistent])
def test_objects_do_not_mix_and_frames_may_be_encoded_together(mode):
    encoder, clip, prompts = make_encoder(), frames(12), torch.randn(3, 64)
    keys = [0, 1, 2] if mode is memory else [0, 5, 11]

    def draw(embeddings, at_once):
        steps = mode(FrameReader(encoder, lambda numbers: clip[numbers], at_once), 12, keys, embeddings)
        return torch.cat([masks for masks, _ in steps], dim=1)

    together = draw(prompts, 1)
    torch.testing.assert_close(draw(prompts, 5), together, rtol=1e-2, atol=1e-2)
    for thing in range(3):
        alone = draw(prompts[[thing]], 1)
        torch.testing.assert_close(together[[thing]], alone, rtol=1e-2, atol=1e-2)
    assert (together[0] - together[1]).abs().mean() > 0.02


@pytest.mark.parametrize("mode", [memory, consistent])
def test_what_was_seen_matters_later(mode):
    """Tracking has no prompt: another object at the start must give other masks at the end."""
    encoder, clip = make_encoder(tracking_decoder=False), frames(8)
    keys = [0, 1] if mode is memory else [0, 7]
    ends = []
    for seed in (0, 1):
        prompts = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)) * 3
        steps = list(mode(FrameReader(encoder, lambda numbers: clip[numbers], 1), 8, keys, prompts))
        ends.append(steps[5][0])
    assert (ends[0] - ends[1]).abs().mean() > 0.02


def test_the_memory_does_not_grow_with_the_clip():
    encoder = make_encoder()

    def held(length):
        remembered = ClipMemory(encoder, 2, length)
        reader = FrameReader(encoder, lambda numbers: frames(1)[[0] * len(numbers)], 1)
        for number, features in reader.read(range(length)):
            if number == 0:
                remembered.prompt_with_masks(0, features, logits((3, 4, 14, 20), (18, 2, 30, 9)))
            else:
                remembered.follow(number, features)
        kept = [frame for of_kind in remembered.kept.values() for frame in of_kind.values()]
        return len(kept), sum(frame["maskmem_features"] is not None for frame in kept)

    assert held(40) == held(25) == (1 + 15, 1 + 6)  # as far as SAM 2 looks back: 15 pointers, 6 maps


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode.*eval"):
        ClipMemory(make_encoder().train(), 1, 3)


@torch.no_grad()
def test_prompts_and_memory_go_through_the_tracker():
    """Of two decoders the one fine-tuned for [SEG] must not decide what a click, a box or a given mask means, or where
    an object goes. A SAM 2 with the tracker as its only decoder predicts the same, as `vos_inference.py` loads it."""
    encoder = make_encoder()
    alone = Sa2VAGroundingEncoder(sam2=deepcopy(encoder.sam2_model)).eval()
    alone.sam2_model.sam_mask_decoder = deepcopy(encoder.tracking_decoder)
    clip, given = frames(4), {1: {0: logits((3, 4, 14, 20))[0] > 0}}
    one, other = (dict(follow_objects(network, clip.__getitem__, 4, given)) for network in (encoder, alone))
    for number, masks in one.items():
        torch.testing.assert_close(masks[1], other[number][1])
    prompts = [
        {"points": (torch.tensor([[[40.0, 30.0]]]), torch.ones(1, 1, dtype=torch.int32))},
        {"boxes": torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 30.0, 30.0]])},
        {"masks": logits((3, 4, 14, 20)).unsqueeze(1)},
    ]
    for prompt in prompts:
        features, others = (network.encode(network.normalize(clip[:1])) for network in (encoder, alone))
        found, expected = encoder.prompt(features, **prompt), alone.prompt(others, **prompt)
        torch.testing.assert_close(found.masks, expected.masks)
        assert found.candidates.shape[1] == (1 if "masks" in prompt else 3)
    embedding = torch.randn(1, 64)
    first = torch.zeros(1, dtype=torch.long)
    tuned, stock = encoder.decode(features, first, embedding), alone.decode(others, first, embedding)
    assert (tuned.masks - stock.masks).abs().max() > 1e-3  # [SEG] is the other decoder's
