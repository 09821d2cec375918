"""Laws of what is trained: LoRA stays in the language model, and copies hold what is trained and nothing else."""

import pytest
import torch
from torch import nn

from sa2va_hf.arguments import ModelArguments
from sa2va_hf.training.sa2va.trainable import lora_config, make_trainable, trained_modules


def arguments(**values):
    return ModelArguments(**{"model_name_or_path": "tiny", "lora_rank": 2} | values)


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(tiny_model):
    layers = {
        name for name, module in tiny_model.mllm.model.language_model.named_modules() if isinstance(module, nn.Linear)
    }
    model = make_trainable(tiny_model, arguments())
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert adapted == {f"base_model.model.mllm.model.language_model.{name}" for name in layers}


@pytest.mark.parametrize("grounding", ["decoder", "all", "none"])
def test_the_same_weights_are_trained_with_lora_as_without(tiny_model, grounding):
    from tiny import tiny_model as build

    choice = {"train_grounding_encoder": grounding, "train_vision": True}
    plain = trained(make_trainable(build(), arguments(train_llm="none", **choice)))
    names = trained(make_trainable(tiny_model, arguments(train_embeddings=False, **choice)))
    copies = {n.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for n in names}
    copies = {name for name in copies if "lora_" not in name}
    assert copies == {name for name in plain if not name.endswith("no_mem_embed")}  # a bare parameter: peft cannot


def test_flags_freeze_their_part(tiny_model):
    chosen = arguments(
        train_llm="full", train_projector=False, train_text_hidden_fcs=False, train_grounding_encoder="none"
    )
    names = trained(make_trainable(tiny_model, chosen))
    assert names == {
        name
        for name, _ in tiny_model.named_parameters()
        if "language_model" in name or name.startswith("mllm.lm_head")
    }


def test_nothing_to_train_is_an_error(tiny_model):
    chosen = arguments(
        train_llm="none", train_projector=False, train_text_hidden_fcs=False, train_grounding_encoder="none"
    )
    with pytest.raises(ValueError, match="nothing is trained"):
        make_trainable(tiny_model, chosen)


def test_a_target_that_does_not_exist_is_named_with_those_that_do(tiny_model):
    with pytest.raises(ValueError, match=r"no layer named w_qkv; the model has down_proj, .*q_proj"):
        make_trainable(tiny_model, arguments(lora_targets=["q_proj", "w_qkv"]))


def test_trained_modules_cover_what_is_trained_and_take_containers_apart():
    model = nn.ModuleDict({"all": nn.Linear(2, 2), "part": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))})
    model["mixed"] = nn.TransformerEncoderLayer(2, 1, 2)
    model["mixed"].linear1.requires_grad_(False)
    names = trained_modules(model)
    assert {"all", "part.0", "part.2", "mixed.linear2"} <= set(names)
    assert not {"part", "mixed", "mixed.linear1"} & set(names)
    held = {id(weight) for name in names for weight in model.get_submodule(name).parameters()}
    assert held == {id(weight) for weight in model.parameters() if weight.requires_grad}


def test_lora_starts_as_the_model_it_wraps(tiny_model, tiny_processor):
    from toy_run import logits

    before = logits(tiny_model, tiny_processor)
    assert torch.equal(logits(make_trainable(tiny_model, arguments()), tiny_processor), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dra": True}, "peft's LoraConfig has no use_dra; it has .*use_dora"),
        ({"r": 8}, "r cannot be set here; use `lora_rank`"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base weights at random or from data"),
        ({"init_lora_weights": "corda"}, "merging cannot repeat; use pissa, olora"),
    ],
)
def test_lora_options_that_cannot_be_followed_are_refused(options, said):
    with pytest.raises(ValueError, match=f"`lora_options`: .*{said}"):
        lora_config(arguments(lora_options=options), r=2)


def test_lora_options_reach_peft_and_no_local_path_does(tiny_model, tmp_path):
    tiny_model.config._name_or_path = str(tmp_path)
    wrapped = make_trainable(tiny_model, arguments(lora_options='{"use_rslora": true, "use_dora": true}'))
    config = wrapped.peft_config["default"]
    assert config.use_rslora and config.use_dora and config.base_model_name_or_path == ""
