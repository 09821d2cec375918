"""SAM 2 as transformers' Sam2VideoModel and back: every bit, and the same answers.

Run: pytest tests/checkpoints/test_sam2_transformers.py
"""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.sam2_transformers import our_config, transformers_config
from sa2va_hf.model.configuration_sa2va import SAM2_TRUNKS, SAM2_VERSIONS, Sa2VAGroundingConfig
from sa2va_hf.model.grounding import Sa2VAGroundingEncoder, build_sam2
from sa2va_hf.model.grounding_protocol import NO_OBJECT_LOGIT, PIXEL_MEAN, PIXEL_STD
from sa2va_hf.model.tracking import follow_objects

video_model_works = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."),
    reason="Sam2VideoModel of transformers 5.0 stops on every frame: its picture features lack their positions",
)

# transformers' memories are 64 wide, whatever its config says
SMALL = tiny_config().grounding_config.to_dict() | {"version": "2.1", "memory_dim": 64, "hidden_dim": 128}


def saved(folder, **fields):
    config = Sa2VAGroundingConfig(**fields)
    torch.manual_seed(0)
    sam2 = build_sam2(config).eval()
    state = {name: torch.randn_like(tensor) * 0.05 for name, tensor in sam2.state_dict().items()}
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(5.0)  # or there would be nothing to compare
    sam2.load_state_dict(state)
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config.save_pretrained(folder)
    return sam2, state


@pytest.mark.parametrize("version", SAM2_VERSIONS)
def test_there_and_back(tmp_path, version):
    _, state = saved(tmp_path / "ours", **(SMALL | {"version": version}))
    convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    convert(tmp_path / "theirs", tmp_path / "again")
    found = load_file(tmp_path / "again/model.safetensors")
    assert set(found) == set(state) and all(torch.equal(found[name], state[name]) for name in state)
    before, after = (Sa2VAGroundingConfig.from_pretrained(tmp_path / name) for name in ("ours", "again"))
    assert {k: v for k, v in after.to_dict().items() if k != "size"} == {
        k: v for k, v in before.to_dict().items() if k != "size"
    }


def test_the_same_answers(tmp_path):
    """Features of a picture, and masks of a click on it, at the size that is published."""
    sam2, _ = saved(tmp_path / "ours", version="2.1", size="tiny", image_size=256)
    convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    theirs, problems = Sam2VideoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not problems["missing_keys"] and not problems["unexpected_keys"]
    theirs = theirs.eval()
    torch.manual_seed(1)
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        ours = sam2.forward_image(image)["backbone_fpn"]
        found = theirs.vision_encoder(image).fpn_hidden_states
        level = max(found, key=lambda maps: maps.shape[-1] if maps.shape[-1] <= 16 else 0)
        assert torch.allclose(ours[-1], level, atol=1e-4 * float(ours[-1].abs().max()))
        points, labels = torch.tensor([[[100.0, 80.0]]]), torch.tensor([[1]], dtype=torch.int32)
        sparse, dense = sam2.sam_prompt_encoder((points, labels), None, None)
        their_sparse, their_dense = theirs.prompt_encoder(points[None], labels[None], None, None)
        assert torch.allclose(sparse, their_sparse[0], atol=1e-4) and torch.allclose(dense, their_dense, atol=1e-5)


@video_model_works
@pytest.mark.parametrize("version", SAM2_VERSIONS)
def test_a_click_on_a_picture_gives_the_same_masks(tmp_path, version):
    sam2, _ = saved(tmp_path / "ours", version=version, size="tiny", image_size=256)
    convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    theirs, session = opened(tmp_path / "theirs")
    click = {"point_coords": torch.tensor([[[100.0, 80.0]]]), "point_labels": torch.tensor([[1]], dtype=torch.int32)}
    session.add_point_inputs(0, 0, {name: value.unsqueeze(1) for name, value in click.items()})
    wanted = theirs(session, frame_idx=0).pred_masks
    encoder = Sa2VAGroundingEncoder(sam2=sam2)
    with torch.no_grad():
        features = encoder.encode(encoder.normalize(VIDEO[:1]))
        found = encoder.prompt(features, points=(click["point_coords"], click["point_labels"]))
    found = torch.where(found.object_scores > 0, found.masks.flatten(1), NO_OBJECT_LOGIT).view(1, 1, 64, 64)
    close(found, wanted)


@video_model_works
@pytest.mark.parametrize("version", SAM2_VERSIONS)
def test_an_object_is_followed_through_a_video_alike(tmp_path, version):
    """With what transformers always does, and the sam2 package only for interactive use: the memory of a given mask
    is made of it as it is."""
    sam2, _ = saved(tmp_path / "ours", version=version, size="tiny", image_size=256)
    convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    theirs, session = opened(tmp_path / "theirs")
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[40:160, 64:200] = True
    session.add_mask_inputs(0, 0, mask[None, None].float())
    sam2.binarize_mask_from_pts_for_mem_enc = True
    found = follow_objects(sam2, lambda number: VIDEO[number], len(VIDEO), {1: {0: mask}})
    for number, logits in found:
        close(logits[1], theirs(session, frame_idx=number).pred_masks[0, 0])


VIDEO = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (4, 3, 256, 256), np.uint8))


def opened(folder):
    """transformers' model, and its session over `VIDEO` with one object that has new inputs."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    pictures = (VIDEO.float() / 255 - mean) / std
    session = Sam2VideoInferenceSession(pictures, video_height=256, video_width=256, dtype=torch.float32)
    session.obj_id_to_idx(1)
    session.obj_with_new_inputs = [1]
    return Sam2VideoModel.from_pretrained(folder).eval(), session


def close(found, wanted):
    assert found.shape[-2:] == wanted.shape[-2:] and wanted.std() > 0
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_all_published_sizes_have_a_config_that_comes_back():
    for size in SAM2_TRUNKS:
        config = Sa2VAGroundingConfig(version="2.1", size=size)
        assert our_config(transformers_config(config), "x").to_dict() == config.to_dict()


def test_a_sam2_of_pictures_alone_has_no_memory(tmp_path):
    saved(tmp_path / "ours", **SMALL)
    convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    file = tmp_path / "theirs/model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("memory_")}
    save_file(kept, file)
    with pytest.raises(ValueError, match="missing: memory_attention"):
        convert(tmp_path / "theirs", tmp_path / "again")
