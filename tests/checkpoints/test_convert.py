"""Laws of converting: every value of a released folder arrives, bit by bit; what does not fit is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model, tiny_tokenizer

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.convert import convert, expected_shapes, released_shapes
from sa2va_hf.checkpoints.layouts import internvl
from sa2va_hf.checkpoints.rules import moves
from sa2va_hf.checkpoints.weights import INDEX, WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
GROUNDING = tiny_config().grounding_config
WIDTH, PATCHES, VOCABULARY = 64, 16, len(tiny_tokenizer())
SHAPES = {  # of the released layout, without SAM 2; {} is a layer
    "vision_model.embeddings.class_embedding": (1, 1, WIDTH),
    "vision_model.embeddings.position_embedding": (1, PATCHES + 1, WIDTH),
    "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
    "vision_model.embeddings.patch_embedding.bias": (WIDTH,),
    "vision_model.encoder.layers.{}.ls1": (WIDTH,),
    "vision_model.encoder.layers.{}.ls2": (WIDTH,),
    "vision_model.encoder.layers.{}.attn.qkv.weight": (3 * WIDTH, WIDTH),
    "vision_model.encoder.layers.{}.attn.qkv.bias": (3 * WIDTH,),
    "vision_model.encoder.layers.{}.attn.proj.weight": (WIDTH, WIDTH),
    "vision_model.encoder.layers.{}.attn.proj.bias": (WIDTH,),
    "vision_model.encoder.layers.{}.mlp.fc1.weight": (128, WIDTH),
    "vision_model.encoder.layers.{}.mlp.fc1.bias": (128,),
    "vision_model.encoder.layers.{}.mlp.fc2.weight": (WIDTH, 128),
    "vision_model.encoder.layers.{}.mlp.fc2.bias": (WIDTH,),
    "vision_model.encoder.layers.{}.norm1.weight": (WIDTH,),
    "vision_model.encoder.layers.{}.norm1.bias": (WIDTH,),
    "vision_model.encoder.layers.{}.norm2.weight": (WIDTH,),
    "vision_model.encoder.layers.{}.norm2.bias": (WIDTH,),
    "mlp1.0.weight": (4 * WIDTH,),
    "mlp1.0.bias": (4 * WIDTH,),
    "mlp1.1.weight": (WIDTH, 4 * WIDTH),
    "mlp1.1.bias": (WIDTH,),
    "mlp1.3.weight": (WIDTH, WIDTH),
    "mlp1.3.bias": (WIDTH,),
    "language_model.model.embed_tokens.weight": (VOCABULARY, WIDTH),
    "language_model.model.layers.{}.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "language_model.model.layers.{}.self_attn.k_proj.weight": (32, WIDTH),
    "language_model.model.layers.{}.self_attn.v_proj.weight": (32, WIDTH),
    "language_model.model.layers.{}.self_attn.o_proj.weight": (WIDTH, WIDTH),
    "language_model.model.layers.{}.mlp.gate_proj.weight": (128, WIDTH),
    "language_model.model.layers.{}.mlp.up_proj.weight": (128, WIDTH),
    "language_model.model.layers.{}.mlp.down_proj.weight": (WIDTH, 128),
    "language_model.model.layers.{}.input_layernorm.weight": (WIDTH,),
    "language_model.model.layers.{}.post_attention_layernorm.weight": (WIDTH,),
    "language_model.model.norm.weight": (WIDTH,),
    "language_model.lm_head.weight": (VOCABULARY, WIDTH),
    "text_hidden_fcs.0.weight": (WIDTH, WIDTH),
    "text_hidden_fcs.0.bias": (WIDTH,),
    "text_hidden_fcs.2.weight": (GROUNDING.hidden_dim, WIDTH),
    "text_hidden_fcs.2.bias": (GROUNDING.hidden_dim,),
}
OF_THE_LLM = {
    "Qwen2ForCausalLM": {"q_proj.bias": WIDTH, "k_proj.bias": 32, "v_proj.bias": 32},
    "Qwen3ForCausalLM": {"q_norm.weight": 16, "k_norm.weight": 16},
    "LlamaForCausalLM": {},
}
CONFIG = {
    "model_type": "sa2va_chat",
    "architectures": ["Sa2VAChatModel"],
    "auto_map": {"AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig"},
    "template": "phi3-chat",
    "select_layer": -1,
    "ps_version": "v2",
    "force_image_size": 56,
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 4,
    "use_thumbnail": False,
    "use_llm_lora": 0,
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 12345.0,
        "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        "use_cache": False,
    },
    "vision_config": {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "drop_path_rate": 0.1,
    },
}


def released_tensors(architecture="Qwen2ForCausalLM"):
    """Random bfloat16 values under the released names."""
    shapes = {}
    for name, shape in SHAPES.items():
        for layer in range(2 if "{}" in name else 1):
            shapes[name.format(layer)] = shape
    for name, size in OF_THE_LLM[architecture].items():
        for layer in range(2):
            shapes[f"language_model.model.layers.{layer}.self_attn.{name}"] = (size,)
    for name, tensor in tiny_model().grounding_encoder.state_dict().items():
        name = name.replace(".gamma", ".g_weight")
        shapes[f"grounding_encoder.{name}"] = tuple(tensor.shape)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.fixture
def released(tmp_path_factory):
    """A released folder of the tiny size that a test may spoil."""
    return write(tmp_path_factory.mktemp("released"))


def write(folder, architecture="Qwen2ForCausalLM"):
    save_file(released_tensors(architecture), folder / WEIGHTS)
    config = json.loads(json.dumps(CONFIG))
    config["llm_config"]["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    return folder


def shard(folder, count=3):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, where = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: tensors[name] for name in names[number::count]}, folder / file)
        where |= dict.fromkeys(names[number::count], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, output, *said):
    """The conversion names all of `said` and leaves nothing behind."""
    with pytest.raises(ValueError) as error:
        convert(folder, output, grounding_config=GROUNDING)
    for text in said:
        assert text in str(error.value)
    assert not list(output.glob("*"))


@pytest.mark.parametrize("architecture", sorted(OF_THE_LLM))
def test_every_value_arrives_under_its_new_name(architecture, tmp_path):
    source, output = tmp_path / "released", tmp_path / "ours"
    source.mkdir()
    convert(write(source, architecture), output, grounding_config=GROUNDING)
    old, new = released_tensors(architecture), load_file(output / WEIGHTS)
    tower = "mllm.model.vision_tower"
    for layer in range(2):
        for part in ("weight", "bias"):
            ours = [new.pop(f"{tower}.encoder.layer.{layer}.attention.{x}_proj.{part}") for x in "qkv"]
            assert torch.equal(torch.cat(ours), old.pop(f"vision_model.encoder.layers.{layer}.attn.qkv.{part}"))
    names = [
        ("vision_model.embeddings.class_embedding", f"{tower}.embeddings.cls_token"),
        ("vision_model.embeddings.position_embedding", f"{tower}.embeddings.position_embeddings"),
        ("vision_model.embeddings.patch_embedding", f"{tower}.embeddings.patch_embeddings.projection"),
        ("vision_model.encoder.layers", f"{tower}.encoder.layer"),
        ("attn.proj", "attention.projection_layer"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        (".ls1", ".lambda_1"),
        (".ls2", ".lambda_2"),
        ("mlp1.0.", "mllm.model.multi_modal_projector.layer_norm."),
        ("mlp1.1.", "mllm.model.multi_modal_projector.linear_1."),
        ("mlp1.3.", "mllm.model.multi_modal_projector.linear_2."),
        ("language_model.model.", "mllm.model.language_model."),
        ("language_model.lm_head", "mllm.lm_head"),
        ("g_weight", "gamma"),
    ]
    for name, tensor in old.items():
        if not name.startswith("grounding_encoder") or name.endswith("g_weight"):
            for theirs, ours in names:
                name = name.replace(theirs, ours)
        assert new[name].dtype == torch.bfloat16
        assert torch.equal(new.pop(name), tensor), name
    assert not new


def test_the_result_loads_and_is_the_model_that_was_stored(released, tmp_path):
    convert(released, tmp_path, grounding_config=GROUNDING)
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    stored = load_file(tmp_path / WEIGHTS)
    state = model.state_dict()
    assert set(state) == set(stored)
    assert all(torch.equal(state[name].bfloat16(), stored[name]) for name in stored)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


def test_config_and_processor_say_what_the_released_config_says(released, tmp_path):
    convert(released, tmp_path, grounding_config=GROUNDING)
    config, processor = Sa2VAConfig.from_pretrained(tmp_path), Sa2VAProcessor.from_pretrained(tmp_path)
    tokenizer, text = tiny_tokenizer(), config.get_text_config()
    assert config.template == processor.template == "phi3_chat"
    assert config.seg_token_id == tokenizer.convert_tokens_to_ids("[SEG]") == processor.seg_token_id
    assert config.mllm_config.image_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert config.mllm_config.image_seq_length == processor.tokens_per_tile == 4
    assert text.rope_parameters["rope_theta"] == 12345.0
    assert (text.rope_parameters["rope_type"], text.rope_parameters["factor"]) == ("dynamic", 2.0)
    assert text.max_position_embeddings == 4096
    assert not any(c.tie_word_embeddings for c in (config, config.mllm_config, text))
    assert (processor.tile_size, processor.patch_size, processor.downsample_ratio) == (56, 14, 0.5)
    assert (processor.min_tiles, processor.max_tiles, processor.use_thumbnail) == (1, 4, False)
    assert processor.grounding_image_size == GROUNDING.image_size and not processor.add_bos
    sentence = "Sure, it is [SEG].<IMG_CONTEXT><|im_end|>"
    assert processor.tokenizer(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]


def test_the_number_of_files_makes_no_difference(released, tmp_path):
    convert(released, tmp_path / "one", grounding_config=GROUNDING)
    shard(released)
    convert(released, tmp_path / "many", grounding_config=GROUNDING, max_shard_size="300KB")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    one = load_file(tmp_path / "one" / WEIGHTS)
    assert set(one) == set(together) and all(torch.equal(one[name], together[name]) for name in one)
    loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "many").state_dict()
    assert all(torch.equal(loaded[name], one[name].to(loaded[name].dtype)) for name in one)


def test_all_tensors_that_do_not_fit_are_listed_at_once(released, tmp_path):
    tensors = load_file(released / WEIGHTS)
    del tensors["mlp1.3.bias"], tensors["vision_model.encoder.layers.1.attn.qkv.bias"]
    tensors["text_hidden_fcs.2.bias"] = torch.zeros(3)
    tensors["vision_model.encoder.layers.0.attn.qkv.weight"] = torch.zeros(190, WIDTH)
    tensors["language_model.model.layers.7.input_layernorm.weight"] = torch.zeros(WIDTH)
    tensors["critic.weight"] = torch.zeros(2)
    save_file(tensors, released / WEIGHTS)
    refused(
        released,
        tmp_path,
        "missing: mlp1.3.bias [64]",
        "missing: vision_model.encoder.layers.1.attn.qkv.bias [192]",
        "wrong shape: text_hidden_fcs.2.bias is [3], the config says [64]",
        "wrong shape: vision_model.encoder.layers.0.attn.qkv.weight is [190, 64], the config says [192, 64]",
        "unexpected: language_model.model.layers.7.input_layernorm.weight [64]",
        "unexpected: critic.weight [2]",
    )


def test_a_buffer_that_follows_from_the_config_may_be_there(released, tmp_path, caplog):
    tensors = load_file(released / WEIGHTS)
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {name: torch.ones(8)}, released / WEIGHTS)
    with caplog.at_level("INFO"):
        convert(released, tmp_path, grounding_config=GROUNDING)
    assert name in caplog.text


def test_a_missing_shard_is_named(released, tmp_path):
    file = sorted(set(shard(released).values()))[1]
    (released / file).unlink()
    refused(released, tmp_path, INDEX, file)


def test_an_index_that_disagrees_with_its_shards_is_refused(released, tmp_path):
    where = shard(released)
    first, *_, last = sorted(set(where.values()))
    tensors = load_file(released / first)
    tensors["mlp1.9.bias"] = tensors.pop(lost := next(iter(tensors)))
    save_file(tensors, released / first)
    refused(released, tmp_path, f"{lost} is not in {first}", f"mlp1.9.bias in {first} is not named")


def test_a_file_cut_short_is_named(released, tmp_path):
    data = (released / WEIGHTS).read_bytes()
    (released / WEIGHTS).write_bytes(data[: len(data) // 2])
    refused(released, tmp_path, WEIGHTS, "cut short")


def test_pickles_are_not_read(released, tmp_path):
    (released / WEIGHTS).rename(released / "pytorch_model.bin")
    refused(released, tmp_path, WEIGHTS, "pickles")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("template"), ["no template"]),
        (lambda c: c.update(template="vicuna"), ["template", "vicuna"]),
        (lambda c: c["llm_config"].update(architectures=["InternLM2ForCausalLM"]), ["InternLM2ForCausalLM"]),
        (lambda c: c["llm_config"].pop("architectures"), ["architectures", "None"]),
        (lambda c: c["llm_config"].pop("rope_theta"), ["llm_config", "rope_theta"]),
        (lambda c: c["llm_config"].update(vocab_size=9), ["vocab_size is 9", str(VOCABULARY)]),
        (lambda c: c["vision_config"].pop("qkv_bias"), ["vision_config", "qkv_bias"]),
        (lambda c: c.pop("llm_config"), ["llm_config", "sa2va_chat"]),
        (lambda c: c.pop("use_thumbnail"), ["use_thumbnail"]),
        (lambda c: c.update(use_llm_lora=16), ["use_llm_lora 16"]),
        (lambda c: c.update(ps_version="v1"), ["ps_version 'v1'"]),
        (lambda c: c.update(force_image_size=448), ["force_image_size is 448", "56"]),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(change, said, released, tmp_path):
    edit(released, change)
    refused(released, tmp_path, *said)


def test_a_tokenizer_without_the_special_tokens_is_refused(released, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (released / file).read_text()
        (released / file).write_text(text.replace("[SEG]", "[SAG]").replace("</vp>", "</vq>"))
    refused(released, tmp_path, "[SEG]", "</vp>")


def test_a_folder_that_holds_a_model_is_left_alone(released):
    before = {path: path.read_bytes() for path in released.iterdir()}
    with pytest.raises(ValueError, match="holds a model already"):
        convert(released, released, grounding_config=GROUNDING)
    assert before == {path: path.read_bytes() for path in released.iterdir()}


def test_code_in_the_folder_is_not_run(released, tmp_path):
    trap = "raise SystemExit('run')\nclass Sa2VAChatConfig: pass\nclass Trap: pass\n"
    (released / "configuration_sa2va_chat.py").write_text(trap)
    convert(released, tmp_path, grounding_config=GROUNDING)
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.slow
def test_the_command_lists_what_is_wrong_and_fails(released, tmp_path):
    edit(released, lambda c: c.pop("template"))
    command = [sys.executable, ROOT / "scripts" / "convert_checkpoint.py", "--source", released, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "config.json: no template" in done.stderr and "Traceback" not in done.stderr


def test_every_name_of_the_released_4b_layout_has_its_place(shared_data, tmp_path):
    golden = shared_data.parent / "golden" / "sa2va"
    if not golden.is_dir():
        pytest.skip(f"{golden} is not there")
    released = json.loads((golden / "config.json").read_text())
    spec = json.loads((golden / "state_dict_spec.json").read_text())
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        found = golden / file if file == "config.json" else golden / "tokenizer" / file
        (tmp_path / file).write_bytes(found.read_bytes())
    config, _ = internvl.read(tmp_path, released, Sa2VAConfig().grounding_config)
    expected = expected_shapes(config)
    plan = moves(expected, internvl.rules(config))
    assert released_shapes(plan, expected) == {name: tuple(entry["shape"]) for name, entry in spec.items()}
