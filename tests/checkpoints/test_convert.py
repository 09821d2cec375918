"""Laws of converting: every value of a released folder arrives, bit by bit; what does not fit is named."""

import json

import pytest
import torch
from released import GROUNDING, LLM_SHAPES, WIDTH, edit, released_tensors, shard, write
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor, tiny_tokenizer

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.convert import convert, expected_shapes
from sa2va_hf.checkpoints.layouts import internvl
from sa2va_hf.checkpoints.moving import moved_shapes
from sa2va_hf.checkpoints.rules import moves
from sa2va_hf.checkpoints.weights import INDEX, WEIGHTS
from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig

VOCABULARY = len(tiny_tokenizer())


@pytest.fixture
def released(tmp_path_factory):
    """A released folder of the tiny size that a test may spoil."""
    return write(tmp_path_factory.mktemp("released"))


def refused(folder, output, *said):
    """The conversion names all of `said` and leaves nothing behind."""
    with pytest.raises(ValueError) as error:
        convert(folder, output, grounding_config=GROUNDING)
    for text in said:
        assert text in str(error.value)
    assert not list(output.glob("*"))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
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
        "wrong shape: text_hidden_fcs.2.bias is [3], config.json says [64]",
        "wrong shape: vision_model.encoder.layers.0.attn.qkv.weight is [190, 64], config.json says [192, 64]",
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


def test_a_git_lfs_pointer_is_named(released, tmp_path):
    (released / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(released, tmp_path, WEIGHTS, "a git-lfs pointer, not the file itself", "git lfs pull")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "..\\outside.safetensors"])
def test_an_index_names_files_beside_it_only(name, released, tmp_path):
    where = shard(released)
    first = next(iter(where))
    save_file({first: torch.zeros(1)}, released.parent / "outside.safetensors")
    (released / INDEX).write_text(json.dumps({"weight_map": where | {first: name}}))
    refused(released, tmp_path, INDEX, "expected names of files beside it", name)


@pytest.mark.parametrize("in_config", [False, True], ids=["stored rows", "config and stored rows"])
def test_a_padded_embedding_keeps_its_rows(in_config, released, tmp_path):
    tensors = load_file(released / WEIGHTS)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(7, WIDTH, dtype=tensors[name].dtype)])
    save_file(tensors, released / WEIGHTS)
    if in_config:
        edit(released, lambda config: config["llm_config"].update(vocab_size=VOCABULARY + 7))
    convert(released, tmp_path, grounding_config=GROUNDING)
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.vocab_size == VOCABULARY + 7
    assert torch.equal(
        model.get_output_embeddings().weight.bfloat16(), tensors["language_model.lm_head.weight"].bfloat16()
    )
    assert len(Sa2VAProcessor.from_pretrained(tmp_path).tokenizer) == VOCABULARY


def test_a_head_that_is_tied_is_a_copy_of_the_embedding(released, tmp_path):
    tensors = load_file(released / WEIGHTS)
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, released / WEIGHTS)
    edit(released, lambda config: config["llm_config"].update(tie_word_embeddings=False))
    refused(released, tmp_path / "refused", "missing: language_model.lm_head.weight")
    edit(released, lambda config: config["llm_config"].update(tie_word_embeddings=True))
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    ours = load_file(tmp_path / "ours" / WEIGHTS)
    assert torch.equal(ours["mllm.lm_head.weight"], ours["mllm.model.language_model.embed_tokens.weight"])


def same(one, other):
    """Two folders hold the same tensors, bit by bit, in however many files."""
    one, other = (
        {k: v for f in sorted(x.glob("*.safetensors")) for k, v in load_file(f).items()} for x in (one, other)
    )
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("architecture", sorted(LLM_SHAPES))
def test_there_and_back_a_released_folder_is_the_same(architecture, tmp_path):
    for name in ("released", "again"):
        (tmp_path / name).mkdir()
    tokenizer = {"InternLM2ForCausalLM": "InternLM2Tokenizer", "Phi3ForCausalLM": "LlamaTokenizer"}
    source = write(tmp_path / "released", architecture, tokenizer.get(architecture, "fast"))
    convert(source, tmp_path / "ours", grounding_config=GROUNDING)
    convert(tmp_path / "ours", tmp_path / "again", "sa2va", grounding_config=GROUNDING)
    same(source, tmp_path / "again")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("released", "again"))
    lost = {
        "drop_path_rate",
        "use_cache",
        "attn_implementation",
    }  # shape no tensor; the native classes have not got them
    for first, second in ((before, after), *((before[part], after[part]) for part in ("llm_config", "vision_config"))):
        for field in set(first) - lost - {"llm_config", "vision_config", "auto_map", "rope_scaling"}:
            value = first[field].replace("-", "_") if field == "template" else first[field]
            assert second[field] == value, field
    scaling = before["llm_config"]["rope_scaling"]
    assert after["llm_config"]["rope_scaling"] == {k: v for k, v in scaling.items() if k != "rope_type"}
    assert before["auto_map"].items() <= after["auto_map"].items()

    convert(tmp_path / "again", tmp_path / "ours_again", grounding_config=GROUNDING)
    same(tmp_path / "ours", tmp_path / "ours_again")
    for file in ("config.json", "processor_config.json", "tokenizer.json"):
        first, second = (json.loads((tmp_path / name / file).read_text()) for name in ("ours", "ours_again"))
        assert first == second, file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_a_model_of_ours_is_the_same(dtype, tmp_path):
    model = tiny_model(template="phi3_chat").to(dtype)
    model.grounding_encoder.float()  # as training keeps it
    for number, parameter in enumerate(model.parameters()):
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(dtype))
    model.save_pretrained(tmp_path / "ours", max_shard_size="300KB")
    tiny_processor(template="phi3_chat").save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", "sa2va", grounding_config=GROUNDING, max_shard_size="500KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    convert(tmp_path / "theirs", tmp_path / "again", grounding_config=GROUNDING)
    stored, state = load_file(tmp_path / "again" / WEIGHTS), model.state_dict()
    assert set(stored) == set(state)
    for name, tensor in state.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor), name
    config = Sa2VAConfig.from_pretrained(tmp_path / "again")
    assert config.dtype == dtype and config.template == "phi3_chat"
    assert config.mllm_config.vision_config.to_dict() == model.config.mllm_config.vision_config.to_dict()
    processors = [Sa2VAProcessor.from_pretrained(tmp_path / name) for name in ("ours", "again")]
    sentence = "<|user|>\nSegment the Caf\u00e9.<|end|> [SEG]<IMG_CONTEXT>"
    ids, again = (processor.tokenizer(sentence)["input_ids"] for processor in processors)
    assert ids == again


def test_of_two_mask_decoders_the_fine_tuned_one_is_the_decoder(tmp_path):
    (tmp_path / "released").mkdir()
    source = write(tmp_path / "released", two_decoders=True)
    convert(source, tmp_path / "ours", grounding_config=GROUNDING)
    old, new = load_file(source / WEIGHTS), load_file(tmp_path / "ours" / WEIGHTS)
    place, decoders = "grounding_encoder.sam2_model.sam_mask_decoder", 0
    for name, tensor in old.items():
        if name.startswith(f"{place}_modified."):
            tuned, stock = name.replace("_modified", ""), name.replace(f"{place}_modified", f"{place}")
            assert torch.equal(new[tuned], tensor)
            ours = stock.replace("sam2_model.sam_mask_decoder", "tracking_decoder")
            assert torch.equal(new[ours], old[stock]) and not torch.equal(new[ours], tensor)
            decoders += 1
    assert decoders > 50
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.config.grounding_config.tracking_decoder
    assert model.grounding_encoder.tracker is model.grounding_encoder.tracking_decoder
    convert(tmp_path / "ours", tmp_path / "again", "sa2va", grounding_config=GROUNDING)
    same(source, tmp_path / "again")
    # half of the second decoder is no decoder
    del old[f"{place}_modified.iou_token.weight"]
    save_file(old, source / WEIGHTS)
    refused(source, tmp_path / "half", f"missing: {place}_modified.iou_token.weight")


def test_a_model_that_the_released_code_cannot_build_is_not_written(tmp_path):
    tiny_model().save_pretrained(tmp_path / "ours")
    tiny_processor().save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="expected SAM 2.0 large .*48 blocks, width 144.*, got SAM 2.0 .*width 16"):
        convert(tmp_path / "ours", tmp_path / "theirs", "sa2va")
    wide = Sa2VAGroundingConfig(**(GROUNDING.to_dict() | {"image_size": 256}))
    with pytest.raises(ValueError, match="image_size is 128, the released code has 256"):
        convert(tmp_path / "ours", tmp_path / "theirs", "sa2va", grounding_config=wide)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(("version", "size"), [("2.1", "tiny"), ("2.0", "large")])
def test_a_release_with_another_sam2_than_asked_for_is_refused(version, size, released, tmp_path):
    with pytest.raises(ValueError, match=f"expected SAM {version} {size} .* got SAM 2.0 with a trunk of 5 blocks"):
        convert(released, tmp_path, grounding_config=Sa2VAGroundingConfig(version=version, size=size))
    with pytest.raises(ValueError, match="a SAM 2.0 of no published size"):
        convert(released, tmp_path)


@pytest.mark.parametrize("to", ["ours", "sam2"])
def test_what_cannot_be_written_is_said(to, released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    source = tmp_path / "ours" if to == "ours" else released
    with pytest.raises(ValueError, match=f"cannot be written as '{to}'"):
        convert(source, tmp_path / "again", to)
    with pytest.raises(ValueError, match="expected one of .*'gguf'"):
        convert(source, tmp_path / "again", "gguf")
    with pytest.raises(ValueError, match="no config.json"):
        convert(tmp_path, tmp_path / "again", to)


def test_parts_of_a_fused_tensor_in_two_types_are_refused(released, tmp_path):
    convert(released, tmp_path / "ours", grounding_config=GROUNDING)
    tensors = load_file(tmp_path / "ours" / WEIGHTS)
    name = "mllm.model.vision_tower.encoder.layer.0.attention.k_proj.weight"
    save_file(tensors | {name: tensors[name].float()}, tmp_path / "ours" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name}.*become one tensor, but are stored as .*bfloat16.*float32"):
        convert(tmp_path / "ours", tmp_path / "again", "sa2va", grounding_config=GROUNDING)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", INDEX, "shard"])
def test_whichever_file_is_cut_short_is_named(file, released, tmp_path):
    shards = sorted(set(shard(released).values()))
    path = released / (shards[1] if file == "shard" else file)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(released, tmp_path, str(path), "cut short")


def test_an_empty_index_is_named(released, tmp_path):
    shard(released)
    (released / INDEX).write_text("{}")
    refused(released, tmp_path, INDEX, "no weight_map")


def test_a_folder_without_a_tokenizer_is_named(released, tmp_path):
    (released / "tokenizer.json").unlink()
    refused(released, tmp_path, f"{released}: no tokenizer")


def test_pickles_are_not_read(released, tmp_path):
    (released / WEIGHTS).rename(released / "pytorch_model.bin")
    refused(released, tmp_path, WEIGHTS, "pickles")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("template"), ["no template"]),
        (lambda c: c.update(template="alpaca"), ["template", "alpaca"]),
        (lambda c: c["llm_config"].update(architectures=["GemmaForCausalLM"]), ["GemmaForCausalLM", "InternLM2"]),
        (lambda c: c["llm_config"].pop("architectures"), ["architectures", "None"]),
        (lambda c: c["llm_config"].pop("rope_theta"), ["llm_config", "rope_theta"]),
        (lambda c: c["llm_config"].update(vocab_size=9), ["vocab_size is 9", str(VOCABULARY)]),
        (lambda c: c["vision_config"].pop("qkv_bias"), ["vision_config", "qkv_bias"]),
        (lambda c: c.pop("llm_config"), ["llm_config", "sa2va_chat"]),
        (lambda c: c.pop("use_thumbnail"), ["use_thumbnail"]),
        (lambda c: c.update(use_llm_lora=16), ["use_llm_lora 16"]),
        (lambda c: c.update(ps_version="v1"), ["ps_version 'v1'"]),
        (lambda c: c.update(force_image_size=448), ["force_image_size is 448", "56"]),
        (lambda c: c.update(llm_config=None), ["no known Sa2VA release", "sa2va_chat"]),
        (lambda c: c["llm_config"].update(num_attention_heads="4"), ["llm_config.num_attention_heads", "'4'"]),
        (lambda c: c["llm_config"].update(num_key_value_heads=3), ["4 attention heads", "3 key-value heads"]),
        (lambda c: c["llm_config"].update(rope_scaling={"type": "odd"}), ["llm_config.rope_scaling", "'odd'"]),
        (lambda c: c["vision_config"].update(hidden_size="wide"), ["vision_config.hidden_size", "'wide'"]),
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
    assert not (tmp_path / "configuration_sa2va_chat.py").exists()


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
    assert moved_shapes(plan, expected) == {name: tuple(entry["shape"]) for name, entry in spec.items()}
