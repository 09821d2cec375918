"""LoRA on a language model in 4 or 8 bits: what is quantised, that it trains, that it merges into the whole weights.

Run: pytest tests/training/sa2va/test_quantised.py
"""

import sys

import pytest
import torch
from tiny import tiny_model, tiny_processor
from toy_run import build, logits

from sa2va_hf import Sa2VAForConditionalGeneration
from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.training.sa2va.quantised import quantization_config, quantization_options

KINDS = {"bnb_4bit": "bitsandbytes", "bnb_8bit": "bitsandbytes", "torchao_int8": "torchao"}
LLM = "base_model.model.mllm.model.language_model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def quantised(model):
    """Names of the layers whose weights are packed."""
    packed = {"Params4bit", "Int8Params", "Int8Tensor", "AffineQuantizedTensor"}
    return {
        name
        for name, weight in model.named_parameters()
        if packed & {type(weight).__name__, type(weight.data).__name__}
    }


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_a_quantised_llm_trains_and_merges(folder, tmp_path, kind):
    pytest.importorskip(KINDS[kind], reason=f"needs {KINDS[kind]}")
    settings = {"output_dir": tmp_path / "run", "model": folder, "model_arguments": {"quantization": kind}}
    trainer = build(**settings, size=4, max_steps=2, report_to="none", use_cpu=True, eval_strategy="no")
    names = quantised(trainer.model)
    assert len(names) == 14 and all(name.startswith(LLM) for name in names), "7 linear layers in each of 2 layers"
    trained = {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert any("lora_A" in name for name in trained) and not names & set(trained)
    trainer.train()
    moved = [
        name
        for name, weight in trainer.model.named_parameters()
        if name in trained and (weight != trained[name]).any()
    ]
    assert any("lora_B" in name for name in moved) and any("text_hidden_fcs" in name for name in moved)
    trainer.save_model()
    merge(tmp_path / "run", tmp_path / "merged", base=str(folder))
    whole = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert not quantised(whole)
    live, merged = (logits(model, trainer.processing_class) for model in (trainer.model, whole))
    before = logits(Sa2VAForConditionalGeneration.from_pretrained(folder), trainer.processing_class)
    assert (live - merged).abs().mean() < 0.5 * (before - merged).abs().mean() + 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "int3"}, "`quantization`: expected one of bnb_4bit, bnb_8bit, torchao_int8; got 'int3'"),
        ({"quantization": "bnb_4bit", "train_llm": "full"}, "`quantization` needs `train_llm: lora`, got 'full'"),
        (
            {"quantization": "bnb_8bit", "lora_options": {"init_lora_weights": "pissa"}},
            "init_lora_weights 'pissa' changes the base weights, which are quantised",
        ),
    ],
)
def test_what_does_not_go_with_quantised_weights_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ModelArguments("tiny", **options)


def test_sharding_engines_and_a_missing_package_are_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    arguments = ModelArguments("tiny", quantization="torchao_int8")
    training = Sa2VATrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="torchao_int8 needs the package torchao: pip install torchao"):
        quantization_options(arguments, training)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="bnb_4bit needs the package bitsandbytes: pip install bitsandbytes"):
        quantization_config("bnb_4bit")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="torchao_int8 weights cannot be sharded; use DDP or ZeRO-2"):
        quantization_options(arguments, training)
    assert quantization_options(ModelArguments("tiny"), training) == {}
