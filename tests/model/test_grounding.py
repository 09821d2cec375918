"""SAM 2 as we build and prompt it: the published architecture, encoded once, asked with an embedding.

Run: pytest tests/model/test_grounding.py
"""

from collections.abc import Sequence

import pytest
import torch
from sam2.build_sam import build_sam2
from tiny import tiny_config, tiny_model

from sa2va_hf import Sa2VAGroundingConfig
from sa2va_hf.model.configuration_sa2va import SAM2_TRUNKS
from sa2va_hf.model.grounding import build_sam2 as build_ours

YAML = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


@pytest.fixture(scope="module")
def encoder():
    return tiny_model().grounding_encoder.requires_grad_(False)


@pytest.fixture
def encoded(encoder):
    """Batch sizes of the image encoder's calls."""
    calls: list[int] = []
    hook = encoder.sam2_model.image_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    yield calls
    hook.remove()


def frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 255, (count, 3, 128, 128), dtype=torch.uint8, generator=generator)


def settings(model: torch.nn.Module) -> dict:
    """Plain numbers and flags of every submodule, by name."""
    plain = bool | int | float | str
    return {
        f"{name}.{key}": value if isinstance(value, plain) else tuple(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training"
        if isinstance(value, plain) or (isinstance(value, Sequence) and all(isinstance(v, plain) for v in value))
    }


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("size", ["tiny", *(pytest.param(s, marks=pytest.mark.slow) for s in list(SAM2_TRUNKS)[1:])])
def test_it_is_the_published_sam_2(size, version):
    folder, prefix = ("sam2.1", "sam2.1") if version == "2.1" else ("sam2", "sam2")
    yaml = f"configs/{folder}/{prefix}_hiera_{YAML[size]}.yaml"
    published = build_sam2(yaml, device="cpu", apply_postprocessing=False)
    ours = build_ours(Sa2VAGroundingConfig(version=version, size=size))
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (ours, published)]
    assert shapes[0] == shapes[1]
    a, b = settings(ours), settings(published)
    assert {key for key in a | b if a.get(key) != b.get(key)} == set()


def test_normalised_pixels_have_the_exact_constants(encoder):
    pixels = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    pixels[0, :, 0, 0] = 255
    normal = encoder.normalize(pixels)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal[0, :, 1, 1], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    torch.testing.assert_close(normal[0, :, 0, 0], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


def test_features_are_sam_2s_own(encoder):
    pixels = encoder.normalize(frames(2))
    expected = encoder.sam2_model.forward_image(pixels)["backbone_fpn"]
    for ours, theirs in zip(encoder.encode(pixels).levels, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_prompt_is_an_empty_point_its_padding_and_the_embedding(encoder):
    sam, embedding = encoder.sam2_model, torch.randn(1, 64)
    features = encoder.encode(encoder.normalize(frames(1)))
    nowhere = (torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32))
    sparse, dense = sam.sam_prompt_encoder(points=nowhere, boxes=None, masks=None)
    assert sparse.shape[1] == 2
    masks, ious, _, _ = sam.sam_mask_decoder(
        image_embeddings=features.levels[2] + sam.no_mem_embed.view(1, -1, 1, 1),
        image_pe=sam.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=torch.cat([sparse, embedding[:, None]], dim=1),
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=features.levels[:2],
    )
    ours = encoder.decode(features, torch.tensor([0]), embedding)
    torch.testing.assert_close(ours.candidates, masks)
    torch.testing.assert_close(ours.ious, ious)
    torch.testing.assert_close(ours.masks[0], masks[0, ious[0].argmax()])


def test_masks_are_not_blanked_by_a_low_object_score(encoder):
    features = encoder.encode(encoder.normalize(frames(1)))
    decoder, embedding = encoder.sam2_model.sam_mask_decoder, torch.randn(1, 64)
    before = encoder.decode(features, torch.tensor([0]), embedding).masks
    bias = decoder.pred_obj_score_head.layers[-1].bias
    kept = bias.clone()
    bias.fill_(-1000.0)  # "there is no object"
    after = encoder.decode(features, torch.tensor([0]), embedding).masks
    bias.copy_(kept)
    torch.testing.assert_close(before, after)


def test_each_frame_is_encoded_once_however_many_objects(encoder, encoded):
    index = torch.tensor([0, 1, 2] * 4)  # 4 objects on 3 frames
    prediction, _ = encoder(frames(3), index, torch.randn(12, 64))
    assert encoded == [3]
    assert prediction.masks.shape == (12, 32, 32)


def test_frames_that_nobody_asks_about_are_not_encoded(encoder, encoded):
    embeddings = torch.randn(2, 64)
    prediction, _ = encoder(frames(5), torch.tensor([3, 1]), embeddings)
    assert encoded == [2]
    alone, _ = encoder(frames(5)[[3]], torch.tensor([0]), embeddings[:1])
    torch.testing.assert_close(prediction.masks[:1], alone.masks, rtol=1e-4, atol=1e-4)


def test_objects_and_frames_do_not_mix(encoder):
    pixels, embeddings = frames(3), torch.randn(2, 64)
    together, _ = encoder(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), embeddings.repeat_interleave(3, 0))
    for pair in range(6):
        alone, _ = encoder(pixels[[pair % 3]], torch.tensor([0]), embeddings[[pair // 3]])
        torch.testing.assert_close(together.masks[[pair]], alone.masks, rtol=1e-4, atol=1e-4)


def test_without_masks_nothing_is_encoded_and_every_parameter_is_touched(encoded):
    encoder = tiny_model().grounding_encoder
    for given in ((None,), (frames(2), torch.zeros(0, dtype=torch.long), torch.zeros(0, 64))):
        prediction, zero = encoder(*given)
        assert prediction is None and zero == 0
        encoder.zero_grad()
        zero.backward()
        assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())
    assert not encoded


def test_a_frozen_image_encoder_keeps_no_graph_but_its_projections_learn():
    model = tiny_model()
    model.freeze_for_training()
    features = model.grounding_encoder.encode(model.grounding_encoder.normalize(frames(1)))
    assert [level.requires_grad for level in features.levels] == [True, True, False]
    model.freeze_for_training(grounding="all")
    features = model.grounding_encoder.encode(model.grounding_encoder.normalize(frames(1)))
    assert all(level.requires_grad for level in features.levels)


def test_a_config_of_other_numbers_builds_and_draws():
    config = tiny_config().grounding_config
    config.version, config.image_size, config.hidden_dim = "2.1", 64, 32
    from sa2va_hf.model.grounding import Sa2VAGroundingEncoder

    encoder = Sa2VAGroundingEncoder(config).eval()
    pixels = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    prediction, _ = encoder(pixels, torch.tensor([0]), torch.randn(1, 32))
    assert prediction.masks.shape == (1, encoder.mask_size, encoder.mask_size) == (1, 16, 16)
