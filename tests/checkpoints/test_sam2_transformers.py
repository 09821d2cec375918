"""SAM 2 as transformers' Sam2VideoModel and back: every bit, and the same answers.

Run: pytest tests/checkpoints/test_sam2_transformers.py
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from transformers import Sam2VideoModel

from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.sam2_transformers import our_config, transformers_config
from sa2va_hf.model.configuration_sa2va import SAM2_TRUNKS, SAM2_VERSIONS, Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2

# transformers' memories are 64 wide, whatever its config says
SMALL = tiny_config().grounding_config.to_dict() | {"version": "2.1", "memory_dim": 64, "hidden_dim": 128}


def saved(folder, **fields):
    config = Sa2VAGroundingConfig(**fields)
    torch.manual_seed(0)
    sam2 = build_sam2(config).eval()
    state = {name: torch.randn_like(tensor) * 0.05 for name, tensor in sam2.state_dict().items()}
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
