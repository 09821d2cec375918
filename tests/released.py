"""Released Sa2VA folders of the InternVL family in a tiny size: their names and fields, with random weights."""

from __future__ import annotations

import json
import struct

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model, tiny_tokenizer

from sa2va_hf.checkpoints.weights import INDEX, WEIGHTS
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SPECIAL_TOKENS

GROUNDING = tiny_config().grounding_config
WIDTH, PATCHES, LAYERS = 64, 16, 2
# Names and shapes of the released layout; {} is a layer.
SHAPES = {
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
    "text_hidden_fcs.0.weight": (WIDTH, WIDTH),
    "text_hidden_fcs.0.bias": (WIDTH,),
    "text_hidden_fcs.2.weight": (GROUNDING.hidden_dim, WIDTH),
    "text_hidden_fcs.2.bias": (GROUNDING.hidden_dim,),
}
_LAYER = "language_model.model.layers.{}."
_LLAMA = {
    "language_model.model.embed_tokens.weight": ("vocabulary", WIDTH),
    _LAYER + "self_attn.q_proj.weight": (WIDTH, WIDTH),
    _LAYER + "self_attn.k_proj.weight": (32, WIDTH),
    _LAYER + "self_attn.v_proj.weight": (32, WIDTH),
    _LAYER + "self_attn.o_proj.weight": (WIDTH, WIDTH),
    _LAYER + "mlp.gate_proj.weight": (128, WIDTH),
    _LAYER + "mlp.up_proj.weight": (128, WIDTH),
    _LAYER + "mlp.down_proj.weight": (WIDTH, 128),
    _LAYER + "input_layernorm.weight": (WIDTH,),
    _LAYER + "post_attention_layernorm.weight": (WIDTH,),
    "language_model.model.norm.weight": (WIDTH,),
    "language_model.lm_head.weight": ("vocabulary", WIDTH),
}
_INTERNLM2 = {
    "language_model.model.tok_embeddings.weight": ("vocabulary", WIDTH),
    _LAYER + "attention.wqkv.weight": (WIDTH + 32 + 32, WIDTH),
    _LAYER + "attention.wo.weight": (WIDTH, WIDTH),
    _LAYER + "feed_forward.w1.weight": (128, WIDTH),
    _LAYER + "feed_forward.w2.weight": (WIDTH, 128),
    _LAYER + "feed_forward.w3.weight": (128, WIDTH),
    _LAYER + "attention_norm.weight": (WIDTH,),
    _LAYER + "ffn_norm.weight": (WIDTH,),
    "language_model.model.norm.weight": (WIDTH,),
    "language_model.output.weight": ("vocabulary", WIDTH),
}
_ATTENTION = _LAYER + "self_attn."
_PHI3 = {name: shape for name, shape in _LLAMA.items() if not name.endswith(("_proj.weight",))} | {
    _ATTENTION + "qkv_proj.weight": (WIDTH + 32 + 32, WIDTH),
    _ATTENTION + "o_proj.weight": (WIDTH, WIDTH),
    _LAYER + "mlp.gate_up_proj.weight": (2 * 128, WIDTH),
    _LAYER + "mlp.down_proj.weight": (WIDTH, 128),
}
_QWEN2 = {_ATTENTION + f"{x}_proj.bias": (n,) for x, n in (("q", WIDTH), ("k", 32), ("v", 32))}
LLM_SHAPES = {
    "Qwen2ForCausalLM": _LLAMA | _QWEN2,
    "Qwen3ForCausalLM": _LLAMA | {_ATTENTION + "q_norm.weight": (16,), _ATTENTION + "k_norm.weight": (16,)},
    "LlamaForCausalLM": _LLAMA,
    "InternLM2ForCausalLM": _INTERNLM2,
    "Phi3ForCausalLM": _PHI3,
}
LLM_FIELDS = {  # beside those that all have
    "Qwen3ForCausalLM": {"head_dim": 16},
    "InternLM2ForCausalLM": {
        "bias": False,
        "attn_implementation": "eager",
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "Phi3ForCausalLM": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)]},
        "sliding_window": 2047,
        "pad_token_id": 0,
    },
}
# Pieces of a sentencepiece model: words of a few sentences, letter by letter.
WORDS = (
    "Sure it is Please segment the red circle in this image What a dog user assistant There are part regions".split()
)
KINDS = {"NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "UNUSED": 5, "BYTE": 6}
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


def released_tensors(architecture="Qwen2ForCausalLM", vocabulary=None, *, two_decoders=False, dtype=torch.bfloat16):
    """Random values under the released names: small weights, norms around one."""
    shapes = {}
    for name, shape in (SHAPES | LLM_SHAPES[architecture]).items():
        shape = tuple((vocabulary or len(tiny_tokenizer())) if size == "vocabulary" else size for size in shape)
        for layer in range(LAYERS if "{}" in name else 1):
            shapes[name.format(layer)] = shape
    for name, tensor in tiny_model().grounding_encoder.state_dict().items():
        name = f"grounding_encoder.{name.replace('.gamma', '.g_weight')}"
        shapes[name] = tuple(tensor.shape)
        if two_decoders and "sam_mask_decoder" in name:
            shapes[name.replace("sam_mask_decoder", "sam_mask_decoder_modified")] = tuple(tensor.shape)
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (value + ("norm" in name)).to(dtype) for name, value in values.items()}


def write(folder, architecture="Qwen2ForCausalLM", tokenizer="fast", **what):
    """A released folder. tokenizer: "fast" (tiny.py's), or the class of a sentencepiece one; what: of
    `released_tensors`."""
    if tokenizer == "fast":
        vocabulary = len(tiny_tokenizer())
        tiny_tokenizer().save_pretrained(folder)
    else:
        vocabulary = write_sentencepiece(folder, tokenizer)
    save_file(released_tensors(architecture, vocabulary, **what), folder / WEIGHTS)
    config = json.loads(json.dumps(CONFIG))
    config["llm_config"] |= LLM_FIELDS.get(architecture, {})
    config["llm_config"] |= {"architectures": [architecture], "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_sentencepiece(folder, tokenizer_class, pieces=None, **settings):
    """tokenizer.model and tokenizer_config.json; returns the number of tokens. settings: of `sentencepiece_model`."""
    pieces = sentencepiece_pieces() if pieces is None else pieces
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces, **settings))
    marks = ["<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *SPECIAL_TOKENS]
    added = {0: "<unk>", 1: "<s>", 2: "</s>"} | {len(pieces) + i: mark for i, mark in enumerate(marks)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": tokenizer_class,
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(number): {"content": text} | flags for number, text in added.items()},
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(pieces) + len(marks)


def sentencepiece_pieces():
    """(text, score, kind) of every piece, by id."""
    merged = [f"\u2581{word}"[:length] for word in WORDS for length in range(2, len(word) + 2)]
    letters = sorted({letter for word in WORDS for letter in word} | {"\u2581", ".", ",", "?"})
    normal = [*dict.fromkeys(merged), *letters]
    return [
        *[("<unk>", 0.0, "UNKNOWN"), ("<s>", 0.0, "CONTROL"), ("</s>", 0.0, "CONTROL")],
        *[(f"<0x{byte:02X}>", 0.0, "BYTE") for byte in range(256)],
        *[(text, -float(rank), "NORMAL") for rank, text in enumerate(normal)],
    ]


def sentencepiece_model(pieces, *, prefix_space=False, joins_spaces=False, model_type=2):
    """The bytes of a tokenizer.model: protobuf, fields as in sentencepiece_model.proto."""

    def number(field, value):
        return bytes([*varint(field << 3), *varint(value)])

    def block(field, data):
        return bytes([*varint(field << 3 | 2), *varint(len(data))]) + data

    def varint(value):
        return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]

    message = b""
    for text, score, kind in pieces:
        kind = b"" if kind == "NORMAL" else number(3, KINDS[kind])  # a default is not written
        message += block(1, block(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + kind)
    trainer = number(3, model_type) + number(4, len(pieces)) + number(35, 1) + number(40, 0)
    normalizer = block(1, b"identity") + number(3, prefix_space) + number(4, joins_spaces)
    return message + block(2, trainer) + block(3, normalizer)


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
