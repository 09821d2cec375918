"""SAM 3 in a release, in its own file and in transformers' folder: every tensor accounted for, every bit kept.

Run: pytest tests/checkpoints/test_sam3.py
"""

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam3s import FIELDS, needs_sam3, tiny_sam3, tiny_sam3_model
from tiny import tiny_tokenizer

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints import sam3
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.grounding_rules import SAM3, sam3_rules
from sa2va_hf.checkpoints.moving import moved_shapes
from sa2va_hf.checkpoints.rules import SAM2, moves
from sa2va_hf.checkpoints.weights import WEIGHTS, Stored
from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.configuration_sam3 import Sa2VASam3Config

needs_sam3()
TINY = Sa2VASam3Config(**FIELDS)
PUBLISHED = {  # tensors of the release `Sa2VA-Qwen3-VL-4B-SAM3`, by group
    "backbone.vision_backbone.trunk": 388,
    "backbone.vision_backbone.convs": 22,
    "backbone.vision_backbone.sam2_convs": 22,
    "sam_mask_decoder": 131,
    "transformer": 106,
    "maskmem_backbone": 40,
    "sam_prompt_encoder": 17,
    "obj_ptr_proj": 6,
    "mask_downsample": 2,
    "obj_ptr_tpos_proj": 2,
    **dict.fromkeys(("maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"), 1),
}


def test_the_published_names_and_sizes_are_those_that_the_rules_give():
    expected = {SAM3 + name: shape for name, shape in sam3.shapes(Sa2VASam3Config()).items()}
    assert len(expected) == 845
    released = moved_shapes(moves(expected, sam3_rules(SAM3, SAM2)), expected)
    stored = {name: Stored(shape, torch.float32, lambda: None) for name, shape in released.items()}
    names = {name.removeprefix(SAM2): tensor.shape for name, tensor in sam3.scattered(stored, SAM2).items()}
    groups = Counter(".".join(name.split(".")[: 3 if name.startswith("backbone.") else 1]) for name in names)
    assert groups == PUBLISHED and len(names) == 741
    numbers = sum(torch.Size(shape).numel() for shape in names.values())
    assert numbers == 473_585_282 + 256  # parameters, and the random matrix of positions
    assert names["backbone.vision_backbone.trunk.pos_embed"] == (1, 577, 1024)
    assert {name for name in names if name.endswith("g_weight")} == {
        f"maskmem_backbone.fuser.layers.{layer}.g_weight" for layer in (0, 1)
    }


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder of ours on Qwen3-VL and SAM 3, and the release that it becomes."""
    ours, released = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("released")
    model = tiny_sam3_model(backbone="qwen3_vl", seg_before_norm=True)
    model.save_pretrained(ours)
    Sa2VAProcessor.for_model(model.config, tiny_tokenizer("qwen3_vl")).save_pretrained(ours)
    convert(ours, released, "sa2va", grounding_config=TINY)
    return ours, released


def test_a_release_comes_back_bit_by_bit(release, tmp_path):
    ours, released = release
    old, new = load_file(ours / WEIGHTS), load_file(released / WEIGHTS)
    grounding = {name.removeprefix(SAM2) for name in new if name.startswith(SAM2)}
    assert "maskmem_backbone.fuser.layers.0.g_weight" in grounding
    qkv = new[SAM2 + "backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight"]
    first = SAM3 + "vision_encoder.backbone.layers.0.attention."
    assert torch.equal(qkv, torch.cat([old[f"{first}{letter}_proj.weight"] for letter in "qkv"]))
    convert(released, tmp_path, grounding_config=TINY)
    again = load_file(tmp_path / WEIGHTS)
    assert set(again) == set(old) and all(torch.equal(again[name], old[name]) for name in old)
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert isinstance(model.config.grounding_config, Sa2VASam3Config) and model.config.seg_before_norm
    assert Sa2VAProcessor.from_pretrained(tmp_path).grounding_image_size == FIELDS["image_size"]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("maskmem_backbone.fuser.layers.1.g_weight", "missing: grounding_encoder.sam2_model.maskmem_backbone.fuser"),
        ("sam_prompt_encoder.point_embeddings.2.weight", "point_embeddings"),
        ("backbone.vision_backbone.trunk.pos_embed", "missing: grounding_encoder.sam2_model.backbone.vision_backbone"),
    ],
)
def test_a_missing_tensor_is_an_error(release, tmp_path, lost, said):
    _, released = release
    for path in released.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors[SAM2 + lost]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=said):
        convert(tmp_path, tmp_path / "output", grounding_config=TINY)


def test_the_size_and_the_kind_are_checked(release, tmp_path):
    _, released = release
    with pytest.raises(ValueError, match="expected SAM 3 with a vision transformer of 32 layers, width 1024"):
        convert(released, tmp_path)
    with pytest.raises(ValueError, match="expected SAM 2.0 large, got SAM 3"):
        convert(released, tmp_path, grounding_config=Sa2VAGroundingConfig())


def test_its_own_file_and_transformers_folder(release, tmp_path):
    """Out of a Sa2VA to `sam3.pt`; back to a folder; to transformers' folder, which it loads; and back."""
    from transformers import Sam3TrackerVideoModel

    ours, _ = release
    convert(ours, tmp_path / "file", "sam3")
    state = torch.load(tmp_path / "file" / sam3.FILE)["model"]
    assert "tracker.maskmem_backbone.fuser.layers.0.gamma" in state
    assert "detector.backbone.vision_backbone.sam2_convs.0.conv_1x1.weight" in state
    state |= {
        "detector.dot_prod_scoring.weight": torch.zeros(2),
        "detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis": torch.zeros(2, dtype=torch.complex64),
    }
    torch.save({"model": state}, tmp_path / "sam3.pt")
    convert(tmp_path / "sam3.pt", tmp_path / "alone", grounding_config=TINY)
    inside = {n.removeprefix(SAM3): t for n, t in load_file(ours / WEIGHTS).items() if n.startswith(SAM3)}
    alone = load_file(tmp_path / "alone" / WEIGHTS)
    assert set(alone) == set(inside) and all(torch.equal(alone[name], inside[name]) for name in inside)
    convert(tmp_path / "alone", tmp_path / "theirs", "transformers")
    model, problems = Sam3TrackerVideoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not problems["missing_keys"] and not problems["unexpected_keys"]
    pixels = torch.randn(1, 3, FIELDS["image_size"], FIELDS["image_size"])
    with torch.no_grad():
        found, wanted = (
            one.vision_encoder(pixels).fpn_hidden_states for one in (model.eval(), tiny_sam3().sam3_model)
        )
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(found, wanted, strict=True))
    whole = {}
    for name, tensor in load_file(tmp_path / "theirs" / WEIGHTS).items():
        for theirs, mine in sam3.WHOLE_MODEL:
            if name.startswith(mine):
                whole[theirs + name.removeprefix(mine)] = tensor
                break
    whole["detector_model.text_encoder.weight"] = torch.zeros(2)
    save_file(whole, tmp_path / "theirs" / WEIGHTS)
    convert(tmp_path / "theirs", tmp_path / "again")
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert set(again) == set(inside) and all(torch.equal(again[name], inside[name]) for name in inside)
    assert Sa2VASam3Config.from_pretrained(tmp_path / "again").to_diff_dict() == TINY.to_diff_dict()
