"""Laws of the language models: what the released class computes, the native one computes from converted weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from released import GROUNDING, LAYERS, WIDTH, edit, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Phi3Config

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.layouts.languages import grouped_qkv
from sa2va_hf.checkpoints.weights import WEIGHTS

HEADS, KV_HEADS = 4, 2


def logits(folder, ids):
    """(B, L, V) of our model in float32."""
    model = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def converted(tmp_path, architecture, tokenizer, change=None, **what):
    """(released folder, ours, released weights in float32, ids to try them on)"""
    source, output = tmp_path / "released", tmp_path / "ours"
    source.mkdir()
    write(source, architecture, tokenizer, **what)
    if change:
        edit(source, change)
    convert(source, output, grounding_config=GROUNDING)
    vocabulary = json.loads((source / "config.json").read_text())["llm_config"]["vocab_size"]
    ids = torch.randint(vocabulary, (2, 48), generator=torch.Generator().manual_seed(1))
    return source, output, {name: tensor.float() for name, tensor in load_file(source / WEIGHTS).items()}, ids


def internlm2(weights, ids, config):
    """InternLM2 on its own names: wqkv holds, for every key-value head, its queries, its key and its value."""

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight

    size, length = WIDTH // HEADS, ids.shape[1]
    base, known, factor = config["rope_theta"], config["max_position_embeddings"], config["rope_scaling"]["factor"]
    if length > known:  # dynamic NTK scaling
        base *= (factor * length / known - (factor - 1)) ** (size / (size - 2))
    angles = torch.outer(torch.arange(length), base ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)

    def rotate(x):  # (B, heads, L, size)
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    x = weights["language_model.model.tok_embeddings.weight"][ids]
    for layer in range(LAYERS):
        at = f"language_model.model.layers.{layer}."
        groups = linear(norm(x, weights[at + "attention_norm.weight"]), at + "attention.wqkv")
        groups = groups.view(*ids.shape, KV_HEADS, HEADS // KV_HEADS + 2, size).permute(0, 2, 3, 1, 4)  # (B,kv,n,L,s)
        queries, keys, values = groups[:, :, :-2], groups[:, :, -2:-1], groups[:, :, -1:]
        queries, keys = (rotate(part.flatten(1, 2)) for part in (queries, keys.expand_as(queries)))
        values = values.expand(-1, -1, HEADS // KV_HEADS, -1, -1).flatten(1, 2)
        scores = queries @ keys.transpose(-1, -2) / size**0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values
        x = x + linear(mixed.transpose(1, 2).flatten(2), at + "attention.wo")
        y = norm(x, weights[at + "ffn_norm.weight"])
        gated = F.silu(linear(y, at + "feed_forward.w1")) * linear(y, at + "feed_forward.w3")
        x = x + linear(gated, at + "feed_forward.w2")
    return linear(norm(x, weights["language_model.model.norm.weight"]), "language_model.output")


@pytest.mark.parametrize("known_positions", [4096, 32])  # 32: shorter than the text, so its rotary base is scaled
def test_internlm2_computes_the_same_as_a_llama(known_positions, tmp_path):
    def change(config):
        config["llm_config"]["max_position_embeddings"] = known_positions

    source, output, weights, ids = converted(tmp_path, "InternLM2ForCausalLM", "InternLM2Tokenizer", change)
    config = json.loads((source / "config.json").read_text())["llm_config"]
    expected = internlm2(weights, ids, config)
    assert expected.std() > 0.1
    assert (logits(output, ids) - expected).abs().max() < 1e-5
    # the reference is no echo: with the rows of wqkv in plain order it says something else
    name = "language_model.model.layers.0.attention.wqkv.weight"
    plain = torch.cat(list(grouped_qkv(HEADS, KV_HEADS).split(weights[name])))
    assert (internlm2(weights | {name: plain}, ids, config) - expected).abs().max() > 0.01


def test_internlm2_with_biases(tmp_path):
    (tmp_path / "released").mkdir()
    source = write(tmp_path / "released", "InternLM2ForCausalLM", "InternLM2Tokenizer")
    edit(source, lambda config: config["llm_config"].update(bias=True))
    # copies: the file that is loaded is mapped into memory, and is written anew below
    weights = {name: tensor.clone() for name, tensor in load_file(source / WEIGHTS).items()}
    for layer in range(LAYERS):
        for name, size in (("wqkv", 2 * WIDTH), ("wo", WIDTH)):
            weights[f"language_model.model.layers.{layer}.attention.{name}.bias"] = torch.linspace(-1, 1, size)
    save_file(weights, source / WEIGHTS)
    convert(source, tmp_path / "ours", grounding_config=GROUNDING)
    ids = torch.arange(20).view(1, -1) + 270
    config = json.loads((source / "config.json").read_text())["llm_config"]
    expected = internlm2({name: tensor.float() for name, tensor in weights.items()}, ids, config)
    assert (logits(tmp_path / "ours", ids) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("known_positions", [64, 32])  # 32: the text is longer, so the long factors apply
def test_phi3_computes_the_same_as_the_native_class_on_released_names(known_positions, tmp_path):
    def change(config):
        config["llm_config"]["original_max_position_embeddings"] = known_positions

    source, output, weights, ids = converted(tmp_path, "Phi3ForCausalLM", "LlamaTokenizer", change)
    llm = json.loads((source / "config.json").read_text())["llm_config"]
    scaling = llm.pop("rope_scaling") | {"type": "longrope"}
    native = AutoModelForCausalLM.from_config(Phi3Config(**llm, rope_scaling=scaling), dtype=torch.float32).eval()
    prefix = "language_model."
    native.load_state_dict({name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)})
    with torch.no_grad():
        expected = native(input_ids=ids).logits
    assert expected.std() > 0.1
    assert (logits(output, ids) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "bos"),
    [
        ("InternLM2ForCausalLM", "InternLM2Tokenizer", True),
        ("Phi3ForCausalLM", "LlamaTokenizer", True),
        ("Qwen2ForCausalLM", "fast", False),
    ],
)
def test_conversations_begin_as_in_training(architecture, tokenizer, bos, tmp_path):
    _, output, _, _ = converted(tmp_path, architecture, tokenizer)
    processor = Sa2VAProcessor.from_pretrained(output)
    inputs = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}])
    ids = inputs["input_ids"][0].tolist()
    assert processor.add_bos is bos
    assert (ids[0] == processor.tokenizer.bos_token_id) is bos
    assert ids.count(processor.tokenizer.bos_token_id) == bos


def test_grouped_rows_are_a_bijection():
    fusion = grouped_qkv(heads=6, kv_heads=2)
    fused = torch.arange(2 * (3 + 2) * 4 * 5).view(-1, 5)
    queries, keys, values = fusion.split(fused)
    assert (len(queries), len(keys), len(values)) == (24, 8, 8)
    # the first key-value head's three queries, then the second's
    assert torch.equal(queries, torch.cat([fused[:12], fused[20:32]]))
    assert torch.equal(keys, torch.cat([fused[12:16], fused[32:36]]))
    assert torch.equal(values, torch.cat([fused[16:20], fused[36:]]))
    assert torch.equal(fusion.join([queries, keys, values]), fused)
    assert torch.equal(fusion.join(fusion.split(fused[:, 0])), fused[:, 0])  # a bias
