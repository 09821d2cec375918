"""Released Sa2VA folders on Qwen2.5-VL and Qwen3-VL: every value arrives, and the native model says the same.

Run: pytest tests/checkpoints/layouts/test_qwen_vl.py
"""

import inspect
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model, tiny_processor, tiny_tokenizer

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.weights import WEIGHTS
from sa2va_hf.model.pictures import PICTURES

KINDS = ["qwen2_5_vl", "qwen3_vl"]
GROUNDING = tiny_config().grounding_config
WIDTH, FEED, KEYS, TOKENS = 64, 128, 32, len(tiny_tokenizer("qwen3_vl"))
NATIVE = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}

# Names and shapes of the released layouts (transformers 4.57's); {} is a layer.
_TEXT, _BLOCK = "model.model.language_model.layers.{}.", "model.model.visual.blocks.{}."
TEXT = {
    "model.model.language_model.embed_tokens.weight": (TOKENS, WIDTH),
    _TEXT + "self_attn.q_proj.weight": (WIDTH, WIDTH),
    _TEXT + "self_attn.k_proj.weight": (KEYS, WIDTH),
    _TEXT + "self_attn.v_proj.weight": (KEYS, WIDTH),
    _TEXT + "self_attn.o_proj.weight": (WIDTH, WIDTH),
    _TEXT + "mlp.gate_proj.weight": (FEED, WIDTH),
    _TEXT + "mlp.up_proj.weight": (FEED, WIDTH),
    _TEXT + "mlp.down_proj.weight": (WIDTH, FEED),
    _TEXT + "input_layernorm.weight": (WIDTH,),
    _TEXT + "post_attention_layernorm.weight": (WIDTH,),
    "model.model.language_model.norm.weight": (WIDTH,),
    "model.lm_head.weight": (TOKENS, WIDTH),
}
VISION = {
    _BLOCK + "norm1.weight": (WIDTH,),
    _BLOCK + "norm2.weight": (WIDTH,),
    _BLOCK + "attn.qkv.weight": (3 * WIDTH, WIDTH),
    _BLOCK + "attn.qkv.bias": (3 * WIDTH,),
    _BLOCK + "attn.proj.weight": (WIDTH, WIDTH),
    _BLOCK + "attn.proj.bias": (WIDTH,),
}
_MERGER, _DEEP = "model.model.visual.merger.", "model.model.visual.deepstack_merger_list.{}."
ONLY = {
    "qwen2_5_vl": {
        "model.model.visual.patch_embed.proj.weight": (WIDTH, 3, 2, 14, 14),
        _TEXT + "self_attn.q_proj.bias": (WIDTH,),
        _TEXT + "self_attn.k_proj.bias": (KEYS,),
        _TEXT + "self_attn.v_proj.bias": (KEYS,),
        _BLOCK + "mlp.gate_proj.weight": (FEED, WIDTH),
        _BLOCK + "mlp.gate_proj.bias": (FEED,),
        _BLOCK + "mlp.up_proj.weight": (FEED, WIDTH),
        _BLOCK + "mlp.up_proj.bias": (FEED,),
        _BLOCK + "mlp.down_proj.weight": (WIDTH, FEED),
        _BLOCK + "mlp.down_proj.bias": (WIDTH,),
        _MERGER + "ln_q.weight": (WIDTH,),
        _MERGER + "mlp.0.weight": (4 * WIDTH, 4 * WIDTH),
        _MERGER + "mlp.0.bias": (4 * WIDTH,),
        _MERGER + "mlp.2.weight": (WIDTH, 4 * WIDTH),
        _MERGER + "mlp.2.bias": (WIDTH,),
    },
    "qwen3_vl": {
        "model.model.visual.patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16),
        "model.model.visual.patch_embed.proj.bias": (WIDTH,),
        "model.model.visual.pos_embed.weight": (16, WIDTH),
        _TEXT + "self_attn.q_norm.weight": (16,),
        _TEXT + "self_attn.k_norm.weight": (16,),
        _BLOCK + "norm1.bias": (WIDTH,),
        _BLOCK + "norm2.bias": (WIDTH,),
        _BLOCK + "mlp.linear_fc1.weight": (FEED, WIDTH),
        _BLOCK + "mlp.linear_fc1.bias": (FEED,),
        _BLOCK + "mlp.linear_fc2.weight": (WIDTH, FEED),
        _BLOCK + "mlp.linear_fc2.bias": (WIDTH,),
        **{
            prefix + name: shape
            for prefix, wide in ((_MERGER, WIDTH), (_DEEP, 4 * WIDTH))
            for name, shape in {
                "norm.weight": (wide,),
                "norm.bias": (wide,),
                "linear_fc1.weight": (4 * WIDTH, 4 * WIDTH),
                "linear_fc1.bias": (4 * WIDTH,),
                "linear_fc2.weight": (WIDTH, 4 * WIDTH),
                "linear_fc2.bias": (WIDTH,),
            }.items()
        },
    },
}
DEPTH = {"qwen2_5_vl": 2, "qwen3_vl": 3}
BRIDGE = {
    "text_hidden_fcs.0.weight": (WIDTH, WIDTH),
    "text_hidden_fcs.0.bias": (WIDTH,),
    "text_hidden_fcs.2.weight": (GROUNDING.hidden_dim, WIDTH),
    "text_hidden_fcs.2.bias": (GROUNDING.hidden_dim,),
}


def released_tensors(kind: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    shapes = {}
    for name, shape in (TEXT | VISION | ONLY[kind] | BRIDGE).items():
        layers = DEPTH[kind] if ".blocks." in name else 2 if "{}" in name else 1
        shapes |= {name.format(layer): shape for layer in range(layers)}
    for name, tensor in tiny_model().grounding_encoder.state_dict().items():
        shapes[f"grounding_encoder.{name.replace('.gamma', '.g_weight')}"] = tuple(tensor.shape)
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (value + ("norm" in name and "weight" in name)).to(dtype) for name, value in values.items()}


def released_config(kind: str) -> dict:
    """As transformers 4.57 writes it for the released config classes; Qwen2.5-VL's has lost two fields at the top."""
    tokenizer, pictures = tiny_tokenizer(kind), PICTURES[kind]
    text = {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": FEED, "max_position_embeddings": 4096, "model_type": f"{kind}_text",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 54321.0, "use_cache": True, "vocab_size": len(tokenizer), "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "depth": DEPTH[kind], "hidden_size": WIDTH, "in_channels": 3, "initializer_range": 0.02,
        "intermediate_size": FEED, "model_type": kind, "num_heads": 4, "out_hidden_size": WIDTH,
        "patch_size": 14 if kind == "qwen2_5_vl" else 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    top = {
        "auto_map": {"AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen"},
        "image_token_id": tokenizer.convert_tokens_to_ids(pictures.context),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(pictures.start),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(pictures.end),
        "video_token_id": len(tokenizer),
        "model_type": "sa2va_chat",
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0",
    }
    if kind == "qwen2_5_vl":
        text |= {"architectures": ["Sa2VAChatModelQwen"], "use_sliding_window": False, "sliding_window": None}
        text |= {"max_window_layers": 2, "layer_types": ["full_attention"] * 2}
        text |= {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}}
        vision |= {"hidden_act": "silu", "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        return top | {"text_config": text, "vision_config": vision}
    text |= {"head_dim": 16, "attention_bias": False}
    text |= {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}}
    vision |= {"hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return top | {
        "architectures": ["Sa2VAChatModelQwen"],
        "template": "qwen_chat",
        "text_config": text,
        "vision_config": vision,
    }


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def released(kind, tmp_path):
    """A released folder of the tiny size that a test may spoil."""
    folder = tmp_path / "released"
    tokenizer = tiny_tokenizer(kind)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    save_file(released_tensors(kind), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(released_config(kind)))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "merge_size": 2, "max_pixels": 9}
    if kind == "qwen3_vl":
        (folder / "preprocessor_config.json").write_text(json.dumps(half))
    return folder


def edit(folder, change, file="config.json") -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def refused(folder, output, *said: str) -> None:
    with pytest.raises(ValueError) as error:
        convert(folder, output, grounding_config=GROUNDING)
    for text in said:
        assert text in str(error.value)
    assert not output.exists()


def test_every_value_arrives_under_its_new_name(kind, released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    old, new = released_tensors(kind), load_file(tmp_path / "ours" / WEIGHTS)
    for name, tensor in old.items():
        ours = f"mllm.{name[6:]}" if name.startswith("model.") else name.replace("g_weight", "gamma")
        assert new[ours].dtype == torch.bfloat16 and torch.equal(new.pop(ours), tensor), name
    assert not new
    state = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto").state_dict()
    stored = load_file(tmp_path / "ours" / WEIGHTS)
    assert state.keys() == stored.keys()
    assert [n for n in state if not torch.equal(state[n].bfloat16(), stored[n])] == []


@torch.no_grad()
def test_the_native_model_with_the_released_weights_says_the_same(kind, released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    processor = Sa2VAProcessor.from_pretrained(tmp_path / "ours")
    config = transformers.AutoConfig.for_model(
        kind,
        **{key: value for key, value in released_config(kind).items() if key.endswith(("token_id", "_config"))},
        tie_word_embeddings=False,
    )  # as transformers itself reads these fields
    native = getattr(transformers, NATIVE[kind])(config).float().eval()
    tensors = {name: tensor for name, tensor in released_tensors(kind).items() if name.startswith("model.")}
    native.load_state_dict({name[6:]: tensor.float() for name, tensor in tensors.items()}, strict=True)
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    content = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": "Segment it."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Sure, [SEG]."}]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=False)
    keys = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    given = {key: inputs[key] for key in keys}
    context = inputs["input_ids"] == config.image_token_id
    asks = "mm_token_type_ids" in inspect.signature(native.forward).parameters  # not in transformers 5.0
    extra = {"mm_token_type_ids": context.int()} if asks else {}
    before: list[torch.Tensor] = []
    native.model.language_model.norm.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    expected, out = native(**given, **extra), model(**inputs)
    assert torch.equal(out.logits, expected.logits)
    # where the released code, which runs on transformers 4.57, reads [SEG]
    states = before[-1] if kind == "qwen3_vl" else native.model.language_model.norm(before[-1])
    assert torch.equal(out.seg_hidden_states, states[inputs["input_ids"] == processor.seg_token_id])


def test_config_and_processor_say_what_the_folder_says(kind, released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    config, processor = (c.from_pretrained(tmp_path / "ours") for c in (Sa2VAConfig, Sa2VAProcessor))
    text, vision, tokenizer = config.get_text_config(), config.mllm_config.vision_config, tiny_tokenizer(kind)
    assert config.template == processor.template == "qwen_chat"
    assert config.seg_token_id == tokenizer.convert_tokens_to_ids("[SEG]") == processor.seg_token_id
    assert config.seg_before_norm == (kind == "qwen3_vl")
    assert text.rope_parameters["rope_theta"] == 54321.0 and text.rms_norm_eps == 1e-5
    assert text.rope_parameters["mrope_section"] == {"qwen2_5_vl": [2, 3, 3], "qwen3_vl": [4, 2, 2]}[kind]
    assert not any(c.tie_word_embeddings for c in (config, config.mllm_config, text))
    given = released_config(kind)["vision_config"]
    assert {name: getattr(vision, name) for name in given if name != "model_type"} == {
        name: value for name, value in given.items() if name != "model_type"
    }
    assert (processor.backbone, processor.patch_size, processor.add_bos) == (kind, given["patch_size"], False)
    assert list(processor.pixel_mean)[0] == {"qwen2_5_vl": 0.48145466, "qwen3_vl": 0.5}[kind]
    assert list(processor.frame_pixels) == [128 * 28 * 28, 512 * 28 * 28]
    assert processor.grounding_image_size == 128 and processor.tokenizer.chat_template == CHATML


def test_there_and_back_a_released_folder_is_the_same(kind, released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    convert(tmp_path / "ours", tmp_path / "again", "sa2va", grounding_config=GROUNDING)
    one, other = load_file(released / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (released, tmp_path / "again"))
    parts = ("text_config", "vision_config")
    moved = {*parts, "auto_map", "transformers_version", "torch_dtype", "architectures"}
    for first, second in ((before, after), *((before[part], after[part]) for part in parts)):
        for field in set(first) - moved:
            assert second[field] == first[field], field
    assert after["architectures"] == ["Sa2VAChatModelQwen"] and after["template"] == "qwen_chat"
    convert(tmp_path / "again", tmp_path / "ours_again", grounding_config=GROUNDING)
    for file in ("config.json", "processor_config.json", "tokenizer.json"):
        first, second = (json.loads((tmp_path / name / file).read_text()) for name in ("ours", "ours_again"))
        assert first == second, file


def test_there_and_back_a_saved_model_of_ours_is_the_same(kind, tmp_path):
    """`save_pretrained` gives Qwen2.5-VL's tensors other names than the model has."""
    model = tiny_model(backbone=kind, seg_before_norm=kind == "qwen3_vl")
    model.save_pretrained(tmp_path / "ours")
    Sa2VAProcessor.for_model(model.config, tiny_tokenizer(kind)).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", "sa2va", grounding_config=GROUNDING)
    convert(tmp_path / "theirs", tmp_path / "again", grounding_config=GROUNDING)
    stored, state = load_file(tmp_path / "again" / WEIGHTS), model.state_dict()
    assert stored.keys() == state.keys() and all(torch.equal(stored[name], state[name]) for name in state)


def test_what_the_released_code_would_read_otherwise_is_not_written(kind, tmp_path):
    for name, changes, said in (
        ("norm", {"seg_before_norm": kind != "qwen3_vl"}, "seg_before_norm is"),
        ("pixels", {"seg_before_norm": kind == "qwen3_vl"}, r"image_pixels is .*the released code knows \[401408"),
    ):
        tiny_model(backbone=kind, **changes).save_pretrained(tmp_path / name)
        tiny_processor(kind).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=said):
            convert(tmp_path / name, tmp_path / "theirs", "sa2va", grounding_config=GROUNDING)
        assert not (tmp_path / "theirs").exists()


def test_rotary_settings_of_transformers_5_are_read_too(kind, released, tmp_path):
    convert(released, tmp_path / "one", grounding_config=GROUNDING)

    def rewrite(config):
        text = config["text_config"]
        text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
        config["vision_config"]["model_type"] += "_vision"

    edit(released, rewrite)
    convert(released, tmp_path / "two", grounding_config=GROUNDING)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(template="alpaca"), ["template", "alpaca"]),
        (lambda c: c["text_config"].update(vocab_size=9), ["text_config.vocab_size is 9", str(TOKENS)]),
        (lambda c: c["text_config"].pop("num_key_value_heads"), ["text_config lacks num_key_value_heads"]),
        (lambda c: c["text_config"].pop("rope_scaling"), ["rope_scaling.mrope_section"]),
        (lambda c: c["vision_config"].pop("depth"), ["vision_config lacks depth"]),
        (lambda c: c.pop("video_token_id"), ["the top level lacks video_token_id"]),
        (lambda c: c.update(image_token_id=5), ["image_token_id is 5", "<|image_pad|>"]),
        (lambda c: c["vision_config"].update(depth=1), ["unexpected: model.model.visual.blocks.1.norm1.weight [64]"]),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(change, said, released, tmp_path):
    edit(released, change)
    refused(released, tmp_path / "ours", *said)


def test_the_template_is_the_configs_or_that_of_the_folders_chat_template(kind, released, tmp_path):
    edit(released, lambda config: config.update(template="phi3-chat"))
    convert(released, tmp_path / "said", grounding_config=GROUNDING)
    assert Sa2VAConfig.from_pretrained(tmp_path / "said").template == "phi3_chat"
    edit(released, lambda config: config.pop("template"))
    convert(released, tmp_path / "written", grounding_config=GROUNDING)
    assert Sa2VAConfig.from_pretrained(tmp_path / "written").template == "qwen_chat"
    tiny_tokenizer(kind).save_pretrained(released)  # without a chat template
    (released / "chat_template.jinja").unlink()
    refused(released, tmp_path / "neither", "config.json: no template")


def test_an_image_processor_of_another_model_is_refused(kind, released, tmp_path):
    (released / "preprocessor_config.json").write_text(json.dumps({"patch_size": 15}))
    refused(released, tmp_path / "ours", "preprocessor_config.json: patch_size is 15")


def test_a_tokenizer_of_the_base_model_is_refused(released, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (released / file).read_text()
        (released / file).write_text(text.replace("[SEG]", "[SAG]").replace("<|image_pad|>", "<|image_pod|>"))
    refused(released, tmp_path / "ours", "the tokenizer lacks <|image_pad|>, [SEG]")
