"""The config keeps what it is told, through files as well, and refuses what cannot be.

Run: pytest tests/model/test_configuration.py
"""

import json

import pytest
from tiny import tiny_config
from transformers import AutoConfig

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAGroundingConfig, Sa2VAPredictor
from sa2va_hf.model.configuration_sa2va import (
    CONTROL_BREAK,
    SAM2_TRUNKS,
    SPECIAL_TOKENS,
    break_control_tokens,
    bundled,
    control_tokens_in,
)


def test_a_saved_config_comes_back(tmp_path):
    config = tiny_config(template="phi3_chat", num_points=7, objects_per_frame=None, mask_loss_weight=3.5)
    config.save_pretrained(tmp_path)
    for again in (Sa2VAConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is Sa2VAConfig
        old, new = config.to_dict(), again.to_dict()
        assert {key for key in old | new if old.get(key) != new.get(key)} <= {"transformers_version", "_name_or_path"}
        assert again.grounding_config.embed_dim == 16 and again.mllm_config.text_config.hidden_size == 64
        assert (again.template, again.num_points, again.objects_per_frame) == ("phi3_chat", 7, None)


def test_default_numbers_are_those_of_the_released_training():
    config = Sa2VAConfig()
    assert (config.mask_loss_weight, config.dice_loss_weight, config.iou_loss_weight) == (2.0, 0.5, 0.0)
    assert (config.num_points, config.oversample_ratio, config.importance_sample_ratio) == (12544, 3.0, 0.75)
    assert config.objects_per_frame == 5 and config.mask_targets == "nearest"
    assert (config.grounding_config.version, config.grounding_config.size) == ("2.0", "large")
    assert SPECIAL_TOKENS == ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")  # released tokenizers added them in this order


@pytest.mark.parametrize("size", sorted(SAM2_TRUNKS))
def test_a_size_fills_the_trunk_and_what_is_given_wins(size):
    assert Sa2VAGroundingConfig(size=size).embed_dim == SAM2_TRUNKS[size]["embed_dim"]
    mixed = Sa2VAGroundingConfig(size=size, stages=[1, 1, 1, 1])
    assert mixed.stages == [1, 1, 1, 1] and mixed.window_spec == SAM2_TRUNKS[size]["window_spec"]


def test_embedding_and_head_are_two_matrices_at_every_level():
    config = tiny_config()
    assert config.tie_word_embeddings is False
    assert config.mllm_config.tie_word_embeddings is False
    assert config.get_text_config().tie_word_embeddings is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "3"}, "grounding_config.version.*'3'"),
        ({"size": "huge"}, "grounding_config.size.*'huge'"),
        ({"image_size": 100}, "multiple of 32, got 100"),
        ({"hidden_dim": 100}, "multiple of 32, got 100"),
        ({"max_cond_frames_in_attn": 1}, "expected -1 .all. or at least 2, got 1"),
    ],
)
def test_a_sam_2_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sa2VAGroundingConfig(**fields)


def test_an_unknown_kind_of_mask_targets_is_refused():
    with pytest.raises(ValueError, match="mask_targets.*'cubic'"):
        tiny_config(mask_targets="cubic")


def test_a_folder_goes_before_a_bundled_model_of_its_name(tmp_path, monkeypatch):
    assert bundled("nobody/nothing") == "nobody/nothing"
    assert bundled("no-such-model") == "no-such-model"
    assert bundled(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes-tiny").mkdir()
    assert bundled("shapes-tiny") == "shapes-tiny"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "sa2va_chat", "architectures": ["Sa2VAChatModel"]},
            "released Sa2VA; convert it: python scripts/",
        ),
        ({"model_type": "llava", "architectures": ["LISAForCausalLM"]}, "LISA checkpoint"),
        ({"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"]}, "base of one in training"),
        ({"model_type": "sa2va_grounding"}, "SAM 2 alone"),
        (None, "LoRA weights without their base model; merge them first"),
    ],
)
def test_another_kind_of_model_is_refused_before_anything_is_built(tmp_path, monkeypatch, fields, message):
    """A released folder once built a random 7B model before it failed."""
    name = "adapter_config.json" if fields is None else "config.json"
    (tmp_path / name).write_text(json.dumps(fields or {"peft_type": "LORA"}))

    def never(*_, **__):
        raise AssertionError("something was built")

    monkeypatch.setattr(Sa2VAForConditionalGeneration, "__init__", never)
    for load in (
        Sa2VAConfig.from_pretrained,
        Sa2VAForConditionalGeneration.from_pretrained,
        Sa2VAPredictor.from_pretrained,
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [0, 1_000_000, 128.0, True])
def test_sizes_are_bounded(side):
    with pytest.raises(ValueError, match="image_size: expected a whole number of pixels from 1 to 4096"):
        Sa2VAGroundingConfig(image_size=side)


def test_control_tokens_are_found_and_broken():
    text = "a <|im_end|> and <IMG_CONTEXT>, but [SEG] <p>it</p> <IMAGE>"
    assert control_tokens_in(text) == ["<|im_end|>", "<IMG_CONTEXT>"]
    broken = break_control_tokens(text)
    assert control_tokens_in(broken) == [] and broken.replace(CONTROL_BREAK, "") == text
    with pytest.raises(ValueError, match="U\\+E000"):
        break_control_tokens(broken)


def test_a_vision_tower_of_another_kind_survives_a_file(tmp_path):
    """InternVL builds its tower by AutoModel but reads every dict as one of its own ViT."""
    fields = tiny_config().to_dict()
    tower = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "hidden_size": 16}
    fields["mllm_config"]["vision_config"] = tower | {"image_size": [64, 64], "patch_size": [8, 8]}
    Sa2VAConfig(**{k: v for k, v in fields.items() if k != "model_type"}).save_pretrained(tmp_path)
    vision = Sa2VAConfig.from_pretrained(tmp_path).mllm_config.vision_config
    assert vision.model_type == "dinov3_convnext" and vision.hidden_sizes == [8, 16]


def test_the_config_of_a_bundled_model_is_found_by_its_name():
    assert Sa2VAConfig.from_pretrained("shapes-tiny").model_type == "sa2va"
