"""SAM 3 as a grounding encoder: equal to transformers' trackers, and to the release's steps for [SEG] written anew.

Run: pytest tests/model/test_sam3.py
"""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sam3s import EVEN, FIELDS, LOW, SIDE, needs_sam3, tiny_sam3, tiny_sam3_config, tiny_sam3_model
from tiny import tiny_processor

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_hf.locating.tracks import track_boxes
from sa2va_hf.model.configuration_sam3 import Sa2VASam3Config
from sa2va_hf.model.grounding_protocol import NO_OBJECT_LOGIT
from sa2va_hf.model.sam3 import transformers_config
from sa2va_hf.model.tracking import ClipMemory, follow_objects
from sa2va_hf.model.video_modes import VIDEO_MODES, FrameReader, clip_masks

needs_sam3()
CLICK = torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]], dtype=torch.int32)


def frames(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.randint(
        0, 255, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )


@pytest.fixture(scope="module")
def encoder():
    return tiny_sam3().requires_grad_(False)


def balance(encoder, features, embeddings, wanted: float) -> None:
    """Shift the object scores, in place, so that the share `wanted` of them is positive."""
    index = torch.zeros(len(embeddings), dtype=torch.long)
    scores = torch.cat([encoder.decode(one, index, embeddings).object_scores for one in features])
    middle = scores.flatten().quantile(1 - wanted)
    encoder.mask_decoder.pred_obj_score_head.proj_out.bias.sub_(middle)


# ---------------------------------------------------------------- transformers' trackers
@pytest.mark.parametrize("kind", ["points", "box", "box and points", "mask", "mask and point"])
def test_prompts_of_a_picture_are_those_of_transformers(encoder, kind):
    """Of features with the no-memory embedding: from pixels, transformers' image model adds it to a level that it then
    drops, unlike its video model and SAM 3's own tracker."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config = transformers_config(Sa2VASam3Config(**FIELDS))
    parts = {name: getattr(config, name) for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    theirs = Sam3TrackerModel(Sam3TrackerConfig(**{name: part.to_dict() for name, part in parts.items()})).eval()
    problems = theirs.load_state_dict(encoder.sam3_model.state_dict(), strict=False)
    assert not problems.missing_keys
    points = torch.tensor([[[40.0, 60.0], [10.0, 90.0]]]), torch.tensor([[1, 0]], dtype=torch.int32)
    box, mask = torch.tensor([[20.0, 30.0, 70.0, 99.0]]), torch.randn(1, 1, LOW, LOW) * 5
    ours = {
        "points": {"points": points},
        "box": {"boxes": box},
        "box and points": {"boxes": box, "points": points},
        "mask": {"masks": mask},
        "mask and point": {"masks": mask, "points": CLICK},
    }[kind]
    given = {"input_boxes": ours["boxes"][None]} if "boxes" in ours else {}
    if "points" in ours:
        given |= {"input_points": ours["points"][0][None], "input_labels": ours["points"][1][None]}
    if "masks" in ours:
        given |= {"input_masks": mask}
    pixels = encoder.normalize(frames(1))
    features = encoder.encode(pixels)
    found = encoder.prompt(features, **ours)
    with torch.no_grad():
        maps = theirs.get_image_features(pixels, return_dict=True).fpn_hidden_states[:3]
        maps = [
            x.permute(1, 2, 0).view(1, -1, *level.shape[2:]) for x, level in zip(maps, features.levels, strict=True)
        ]
        maps[2] = maps[2] + theirs.no_memory_embedding.view(1, -1, 1, 1)
        wanted = theirs(image_embeddings=maps, multimask_output=kind != "mask", **given)
    torch.testing.assert_close(found.candidates, wanted.pred_masks[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.ious, wanted.iou_scores[0], rtol=1e-4, atol=1e-4)
    assert found.candidates.std() > 0.5


@pytest.mark.parametrize("kind", ["click", "mask"])
def test_a_clip_is_followed_as_by_transformers(kind):
    """A stride of 16, at which transformers' own order of resizing and activating a mask changes nothing. Of a given
    mask the original tracker keeps the token of the single mask, transformers that of the best of three."""
    from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

    encoder, clip = tiny_sam3(**EVEN).requires_grad_(False), frames(8, 128)
    encoder.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3)  # nothing is gone; see the next test
    theirs, mask = encoder.sam3_model, torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, 30:90, 20:70] = True
    pixels = encoder.normalize(clip)
    session = Sam3TrackerVideoInferenceSession(pixels, video_height=128, video_width=128, dtype=torch.float32)
    session.obj_id_to_idx(1)
    session.obj_with_new_inputs = [1]
    remembered = ClipMemory(encoder, 1, len(clip), torch.bfloat16)
    features = [encoder.encode(pixels[n : n + 1]) for n in range(len(clip))]
    if kind == "click":
        session.add_point_inputs(0, 0, {"point_coords": CLICK[0][None], "point_labels": CLICK[1][None]})
        prediction = encoder.prompt(features[0], points=CLICK)
        assert prediction.object_scores > 0
        remembered.prompt_with_embeddings(0, features[0], prediction)
        found = [prediction.masks]
    else:
        forward = theirs._single_frame_forward
        theirs._single_frame_forward = lambda **given: forward(**({"multimask_output": False} | given))
        session.add_mask_inputs(0, 0, mask[None].float())
        found = [remembered.prompt_with_masks(0, features[0], mask)]
    found += [remembered.follow(n, features[n])[0] for n in range(1, len(clip))]
    wanted = [theirs(session, frame_idx=n).pred_masks[:, 0] for n in range(len(clip))]
    # Both keep the memory in bfloat16: where a last bit of float32 decides how a value is rounded, more differs.
    difference, allowed = (
        (torch.stack(found) - torch.stack(wanted).float()).abs(),
        1e-4 + 1e-4 * torch.stack(wanted).abs(),
    )
    assert (difference <= allowed).float().mean() > 0.98 and difference.max() < 2e-3
    assert torch.stack(found)[1:].std(0).mean() > 0.01, "frames that are all alike would agree"


# ---------------------------------------------------------------- [SEG] prompts and the release's video steps, anew
class Release:
    """One [SEG] on a clip as the release runs it, a fresh state per object, with nothing of ours but the weights."""

    def __init__(self, sam3, pixels, seg):
        self.sam, self.pixels, self.seg, self.total = sam3, pixels, seg, len(pixels)
        self.prompted, self.tracked = {}, {}

    def run(self, first):
        masks = []
        for t in range(self.total):
            levels = self.sam.vision_encoder(self.pixels[t : t + 1]).fpn_hidden_states
            fine = [self.sam.mask_decoder.conv_s0(levels[0]), self.sam.mask_decoder.conv_s1(levels[1])]
            seg = t < first
            grid = levels[2] + self.sam.no_memory_embedding.view(1, -1, 1, 1) if seg else self.attend(t, levels[2])
            logits, token, score = self.head(grid, fine, self.seg if seg else None)
            there = (score > 0).float()
            logits = torch.where(score > 0, logits, -1024.0)
            pointer = there * self.sam.object_pointer_proj(token) + (1 - there) * self.sam.no_object_pointer
            memory = self.memorise(levels[2], logits, there, binary=seg)
            (self.prompted if seg else self.tracked)[t] = (*memory, pointer)
            masks.append(logits)
        return torch.stack(masks)

    def head(self, grid, fine, seg):
        pads = self.sam.prompt_encoder.not_a_point_embed.weight
        tokens = [pads, pads] if seg is None else [pads, pads, seg[None]]
        dense = self.sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(grid)
        masks, ious, out, score = self.sam.mask_decoder(
            grid, self.sam.get_image_wide_positional_embeddings(), torch.cat(tokens)[None, None], dense, True, fine
        )
        best = ious[0, 0].argmax()
        return masks[0, 0, best], out[0, 0, best : best + 1], score[0, 0]

    def memorise(self, grid, logits, there, binary):
        large = F.interpolate(logits[None, None], size=SIDE, mode="bilinear")
        large = ((large > 0).float() if binary else large.sigmoid()) * 20 - 10
        large = F.interpolate(large, size=16 * grid.shape[-1], mode="bilinear", antialias=True)
        maps, positions = self.sam.memory_encoder(grid, large)
        maps = maps + (1 - there) * self.sam.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
        return maps.bfloat16().float().flatten(2).permute(2, 0, 1), positions.flatten(2).permute(2, 0, 1)

    def attend(self, t, grid):
        chosen = sorted(self.prompted, key=lambda s: t - s)[:4]
        rest = {s: kept for s, kept in self.prompted.items() if s not in chosen} | self.tracked
        temporal = self.sam.memory_temporal_positional_encoding
        maps = [(self.prompted[s][0], self.prompted[s][1] + temporal[6]) for s in chosen]
        maps += [(rest[t - d][0], rest[t - d][1] + temporal[d - 1]) for d in range(1, 7) if t - d in rest]
        reach = min(self.total, 16)
        pointers = [(t - s, self.prompted[s][2]) for s in chosen]
        pointers += [(d, rest[t - d][2]) for d in range(1, reach) if t - d in rest]
        width = grid.shape[1]
        for distance, pointer in pointers:
            rates = 10000 ** (2 * (torch.arange(width // 2) // 2) / (width // 2))
            angles = torch.tensor(distance / (reach - 1)) / rates
            where = self.sam.temporal_positional_encoding_projection_layer(torch.cat([angles.sin(), angles.cos()]))
            maps.append((pointer.view(-1, 1, 64), where.expand(width // 64, 1, 64)))
        where = self.sam.vision_encoder.neck.position_encoding(grid.shape, grid.device, grid.dtype)
        read = self.sam.memory_attention(
            grid.flatten(2).permute(2, 0, 1),
            torch.cat([one for one, _ in maps]),
            where.flatten(2).permute(2, 0, 1),
            torch.cat([one for _, one in maps]),
            len(pointers) * width // 64,
        )
        return read.reshape(-1, width).T.reshape(grid.shape)


def test_seg_prompts_are_followed_as_by_the_release():
    """Long enough for the fifth prompted frame to leave the memory (after frame 6) and the pointers (after 15)."""
    encoder, clip = tiny_sam3(seed=4).requires_grad_(False), frames(19)
    embeddings = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    pixels = encoder.normalize(clip, torch.bfloat16)
    balance(encoder, [encoder.encode(pixels[n : n + 1]) for n in range(5)], embeddings, 0.5)
    steps = clip_masks(encoder, lambda indices: clip[indices], len(clip), list(range(5)), embeddings, "memory")
    found = torch.cat([masks for masks, _ in steps], dim=1)
    wanted = torch.stack([Release(encoder.sam3_model, pixels, one).run(5) for one in embeddings])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    gone = (found == NO_OBJECT_LOGIT).flatten(2).all(2)
    for kind in (gone[:, :5], gone[:, 5:]):
        assert 0 < kind.sum() < kind.numel(), "prompted and followed objects that are there and gone"


def test_absent_objects_are_blanked_outside_training_alone(encoder):
    features, index = encoder.encode(encoder.normalize(frames(1))), torch.zeros(8, dtype=torch.long)
    embeddings = 3 * torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    other = tiny_sam3(blank_absent=False).requires_grad_(False)
    for one in (encoder, other):
        balance(one, [features], embeddings, 0.5)
    found, kept = encoder.decode(features, index, embeddings), other.decode(features, index, embeddings)
    absent = found.object_scores[:, 0] <= 0
    assert absent.any() and not absent.all()
    assert (found.masks[absent] == NO_OBJECT_LOGIT).all() and (found.candidates[absent] == NO_OBJECT_LOGIT).all()
    assert torch.equal(found.masks[~absent], kept.masks[~absent])
    assert not (kept.masks == NO_OBJECT_LOGIT).any()
    encoder.train()
    assert not (encoder.decode(features, index, embeddings).masks == NO_OBJECT_LOGIT).any()
    encoder.eval()


def test_the_memory_of_a_prompted_frame_is_made_of_a_binary_mask(encoder):
    features, masks = encoder.encode(encoder.normalize(frames(1))), torch.randn(2, LOW, LOW)
    there = torch.ones(2, 1, dtype=torch.bool)

    def stored(scale, prompted):
        return encoder.remember(features, scale * masks, there, prompted)[0]

    torch.testing.assert_close(stored(5, True), stored(1, True))
    assert (stored(5, False) - stored(1, False)).abs().max() > 0.05
    encoder.train()
    torch.testing.assert_close(stored(1, True), stored(1, False))  # in training it makes no difference
    encoder.eval()
    absent = encoder.remember(features, masks, ~there, True)[0] - stored(1, True)
    row = encoder.sam3_model.occlusion_spatial_embedding_parameter[0]
    torch.testing.assert_close(absent, row.expand_as(absent), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prompted", "index", "chosen"),
    [
        ([0, 1, 2, 3, 4], 5, {1, 2, 3, 4}),
        ([0, 1, 2, 3, 4], 40, {1, 2, 3, 4}),
        ([0, 10, 20, 30, 40], 11, {0, 10, 20, 30}),
        ([0, 1, 2, 3, 30], 6, {1, 2, 3, 30}),
        ([0, 9, 11], 5, {0, 9, 11}),
    ],
)
def test_a_frame_looks_at_four_prompted_frames(encoder, prompted, index, chosen):
    kept = encoder.begin()
    kept["cond_frame_outputs"] = {frame: {} for frame in prompted}
    selected, others = encoder._selected(kept, index)
    assert set(selected) == chosen and set(others) == set(prompted) - chosen


def test_key_frames_after_a_frame_are_read_without_their_pointers(encoder):
    clip, embeddings = frames(6), torch.randn(2, 128)
    reader = FrameReader(encoder, lambda indices: clip[indices], 1)
    remembered = ClipMemory(encoder, 2, 6)
    for index, features in reader.read([3, 5]):
        prediction = encoder.decode(features, torch.zeros(2, dtype=int), embeddings)
        remembered.prompt_with_masks(index, features, prediction.masks)
    assert not list(encoder._pointers(remembered.kept, 1, 6))
    [(_, features)] = reader.read([1])
    assert remembered.follow(1, features)[0].isfinite().all()


# ---------------------------------------------------------------- in a Sa2VA
def test_every_video_mode_runs(encoder):
    clip, embeddings = frames(7), torch.randn(2, 128)
    for name, mode in VIDEO_MODES.items():
        keys = mode.key_frames(7, 3)
        masks, scores = zip(*clip_masks(encoder, lambda i: clip[i], 7, keys, embeddings, name), strict=True)
        assert torch.cat(masks, 1).shape == (2, 7, LOW, LOW) and torch.cat(scores, 1).shape == (2, 7, 2)


def test_boxes_and_given_masks_are_followed(encoder):
    clip = frames(4)
    boxes = {1: [[20.0, 30.0, 70.0, 99.0], None, [5.0, 5.0, 40.0, 40.0]]}
    found = list(track_boxes(encoder, clip.__getitem__, 4, boxes))
    assert [one.index for one in found] == [0, 1, 2, 3] and found[1].logits.shape == (2, LOW, LOW)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[20:60, 30:80] = True
    followed = dict(follow_objects(encoder, clip.__getitem__, 4, {7: {1: mask}}))
    assert sorted(followed) == [1, 2, 3] and all(one[7].shape == (LOW, LOW) for one in followed.values())
    small = F.interpolate(mask[None, None].float(), size=(LOW, LOW))[0, 0] > 0.5
    assert ((followed[1][7] > 0) == small).float().mean() > 0.9


def chat():
    picture = {"type": "image", "image": Image.new("RGB", (80, 60), (90, 20, 20))}
    user = [picture, {"type": "text", "text": "Please segment the red circle."}]
    return [{"role": "user", "content": user}, {"role": "assistant", "content": "Sure, it is [SEG]."}]


def test_it_trains_as_released_and_comes_back_from_its_files(tmp_path):
    model = tiny_sam3_model()
    processor = tiny_processor(grounding_image_size=SIDE)
    batch = processor.apply_chat_template([chat()], add_generation_prompt=False, return_labels=True)
    batch["mask_labels"] = [torch.rand(1, 1, 60, 80) > 0.5]
    model.freeze_for_training()
    assert not model.grounding_encoder.image_encoder.training
    model.train()(**batch).loss.backward()
    reached = {name for name, one in model.grounding_encoder.named_parameters() if one.grad is not None}
    trained = {name for name, one in model.grounding_encoder.named_parameters() if one.requires_grad}
    assert reached == trained
    assert all(name.startswith("sam3_model.mask_decoder.") for name in trained) and len(trained) == 131 - 6 - 6 - 6 - 4
    assert model.text_hidden_fcs[0].weight.grad.abs().sum() > 0
    model.eval().freeze_for_training("all")
    assert model.grounding_encoder.sam3_model.no_memory_embedding.requires_grad
    model.save_pretrained(tmp_path)
    again = Sa2VAForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert isinstance(again.config.grounding_config, Sa2VASam3Config)
    with torch.no_grad():  # positions are no weights: they must be made anew
        mine, theirs = model(**batch), again(**batch)
    torch.testing.assert_close(mine.pred_masks[0], theirs.pred_masks[0])
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), again.buffers(), strict=True))


def test_the_model_type_chooses_the_encoder():
    with pytest.raises(ValueError, match=r"grounding_config.model_type: expected one of .*, got 'sam9'"):
        Sa2VAConfig(grounding_config={"model_type": "sam9"})
    config = tiny_sam3_config()
    assert Sa2VAConfig(**config.to_dict()).grounding_config.to_dict() == config.grounding_config.to_dict()
    assert isinstance(Sa2VAConfig.from_dict(config.to_diff_dict()).grounding_config, Sa2VASam3Config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 1024}, "grounding_config.image_size: expected a multiple of 336, got 1024"),
        ({"hidden_dim": 96}, "grounding_config.hidden_dim: expected a multiple of 64, got 96"),
        ({"memory_dim": 32}, "grounding_config.memory_dim: SAM 3's is 64, got 32"),
        ({"max_cond_frames_in_attn": 1}, "grounding_config.max_cond_frames_in_attn: expected -1"),
    ],
)
def test_sizes_that_sam_3_cannot_have(fields, message):
    with pytest.raises(ValueError, match=message):
        Sa2VASam3Config(**fields)


def test_without_sam_3_in_transformers_the_message_says_so(monkeypatch):
    import transformers

    class Older:
        __version__ = "5.2.0"
        __name__ = "transformers"

    from sa2va_hf.model.sam3 import build_sam3

    monkeypatch.setitem(__import__("sys").modules, "transformers", Older())
    with pytest.raises(ImportError, match=r"needs SAM 3, which transformers 5.2.0 does not have; upgrade it"):
        build_sam3(Sa2VASam3Config(**FIELDS))
    monkeypatch.undo()
    assert transformers
