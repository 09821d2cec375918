"""SAM 3 in a release, in its own file and in transformers' folder: every tensor accounted for, every bit kept.

Run: pytest tests/checkpoints/test_sam3.py
"""

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam3s import FIELDS, needs_sam3, tiny_sam3, tiny_sam3_model
from tiny import tiny_model, tiny_tokenizer

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints import sam3
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.grounding_rules import SAM3, sam3_rules
from sa2va_hf.checkpoints.layouts import qwen_vl
from sa2va_hf.checkpoints.moving import moved_shapes
from sa2va_hf.checkpoints.rules import SAM2, moves
from sa2va_hf.checkpoints.trackers import load_tracker
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


QWEN3_VL_4B = {  # fields of the release that shape the weights of its language model and vision part
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151674,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "depth": 24,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}


@pytest.mark.slow
def test_the_whole_release_has_1459_tensors_of_the_classes_that_its_config_names():
    """714 of Qwen3-VL, 4 of the projection and 741 of SAM 3, and the published number of parameters; on meta."""
    config = Sa2VAConfig(
        mllm_config=qwen_vl.to_mllm(QWEN3_VL_4B).to_dict(),
        grounding_config={"model_type": Sa2VASam3Config.model_type},
    )
    with torch.device("meta"):
        model = Sa2VAForConditionalGeneration(config)
    kinds = {name: type(model.get_submodule(name)).__name__ for name in CLASSES}
    assert kinds == CLASSES
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = moved_shapes(moves(expected, qwen_vl.rules(config)), expected)
    stored = {name: Stored(shape, torch.float32, lambda: None) for name, shape in names.items()}
    shapes = {name: tensor.shape for name, tensor in sam3.scattered(stored, SAM2).items()}
    groups = {"model.model.language_model.": 398, "model.model.visual.": 315, "model.lm_head.": 1}
    groups |= {"text_hidden_fcs.": 4, SAM2: 741}
    assert {prefix: sum(name.startswith(prefix) for name in shapes) for prefix in groups} == groups
    assert len(shapes) == sum(groups.values()) == 1459
    numbers = Counter()
    for name, shape in shapes.items():
        numbers[name.split(".")[0]] += torch.Size(shape).numel()
    assert numbers == {
        "model": 4_825_430_528,
        "text_hidden_fcs": 7_211_776,
        "grounding_encoder": 473_585_282 + 256,  # parameters, and the random matrix of positions
    }


CLASSES = {
    "mllm": "Qwen3VLForConditionalGeneration",
    "mllm.model.language_model": "Qwen3VLTextModel",
    "mllm.model.visual": "Qwen3VLVisionModel",
    "grounding_encoder": "Sa2VASam3Encoder",
    "grounding_encoder.sam3_model": "Sam3TrackerVideoModel",
    "grounding_encoder.sam3_model.vision_encoder": "Sam3VisionModel",
    "grounding_encoder.sam3_model.vision_encoder.backbone": "Sam3ViTModel",
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


@pytest.mark.parametrize("two_decoders", [False, True], ids=["one decoder", "two decoders"])
def test_a_fine_tuned_one_takes_the_place_of_that_of_a_sa2va(release, tmp_path, two_decoders):
    """Everything else stays, bit by bit; of two decoders, that of [SEG]."""
    ours, _ = release
    if two_decoders:
        ours = tmp_path / "model"
        grounding = {"model_type": TINY.model_type, **FIELDS, "tracking_decoder": True}
        tiny_sam3_model(grounding_config=grounding).save_pretrained(ours)
    state = tiny_sam3(seed=7).sam3_model.state_dict()
    (tmp_path / "given").mkdir()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "given" / WEIGHTS)
    TINY.save_pretrained(tmp_path / "given")
    convert(ours, tmp_path / "joined", with_sam2=tmp_path / "given")
    before, after = load_file(ours / WEIGHTS), load_file(tmp_path / "joined" / WEIGHTS)
    kept = {name for name in before if not name.startswith("grounding_encoder.")}
    if two_decoders:
        kept |= {name for name in before if name.startswith(SAM3 + "mask_decoder.")}
        place = "grounding_encoder.tracking_decoder."
        assert torch.equal(after[place + "iou_token.weight"], state["mask_decoder.iou_token.weight"])
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in kept)
    encoder, config = load_tracker(tmp_path / "joined")
    assert not config.tracking_decoder and encoder.tracking_decoder is None
    assert all(torch.equal(encoder.network.state_dict()[name], state[name]) for name in state)
    tiny_model().save_pretrained(tmp_path / "with_sam2")
    with pytest.raises(ValueError, match=r"given: expected SAM 2, as .* has it, got SAM 3"):
        convert(tmp_path / "with_sam2", tmp_path / "no", with_sam2=tmp_path / "given")


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
    with pytest.raises(ValueError, match="expected SAM 3 with a vision transformer of 32 layers"):
        load_tracker(tmp_path / "sam3.pt")  # of no published size
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
