"""Which weights a run trains, and LoRA around the language model.

The released training (sa2va: `models/sa2va.py`, `models/mllm/internvl.py`): LoRA on every linear layer of the language
model, full copies of the token embedding and the output head, the projector (of InternVL, not of Qwen-VL),
`text_hidden_fcs` and SAM 2's mask decoder. The vision encoder and the rest of SAM 2 stay frozen.
"""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from ...arguments import ModelArguments, Sa2VATrainingArguments
from ...boxes import BOX_TOKENS, OWN_FORMS, SPATIAL
from ...checkpoints.names import published_name
from ...checkpoints.vocabulary import extend_vocabulary
from ...listings import listed
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .quantised import quantization_options
from .speed import use_faster_kernels

logger = logging.getLogger(__name__)

_SET_BY_PEFT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode")
# Initialisations that subtract a part of the base weights which is random, or follows from calibration data.
_NOT_REPEATABLE = ("pissa_niter", "corda", "loftq", "lora_ga")


def load(
    arguments: ModelArguments, training: Sa2VATrainingArguments
) -> tuple[Sa2VAForConditionalGeneration | PeftModel, Sa2VAProcessor]:
    """The model as it will be trained, and its processor."""
    return load_model(arguments, training), load_processor(arguments)


def load_processor(arguments: ModelArguments, boxes: bool = False) -> Sa2VAProcessor:
    """The processor of the model, with the chat template of the run.

    boxes: the run trains answers with boxes. The processor then knows their form, and with `box_tokens` its tokenizer
    has the tokens of the spatial form.
    """
    options = {"template": arguments.template} if arguments.template else {}
    processor = Sa2VAProcessor.from_pretrained(arguments.model_name_or_path, **options)
    if boxes:
        if arguments.box_tokens or not missing_box_tokens(processor):
            add_box_tokens(processor)
        else:
            processor.box_form = processor.box_form or OWN_FORMS.get(processor.backbone, SPATIAL)
    return processor


def missing_box_tokens(processor: Sa2VAProcessor) -> list[str]:
    """Tokens of the spatial form that the tokenizer lacks."""
    known = processor.tokenizer.get_vocab()
    return [token for token in BOX_TOKENS if token not in known]


def add_box_tokens(processor: Sa2VAProcessor) -> None:
    """Make the spatial form the one that the processor writes, with tokens of its own."""
    missing = missing_box_tokens(processor)
    if missing:
        processor.tokenizer.add_tokens(missing, special_tokens=True)
        logger.info("added to the tokenizer: %s", " ".join(missing))
    processor.box_form = SPATIAL


def load_model(
    arguments: ModelArguments, training: Sa2VATrainingArguments, tokens: int = 0, masks: bool = True
) -> Sa2VAForConditionalGeneration | PeftModel:
    """The model as it will be trained.

    tokens: of the tokenizer; a smaller embedding and head are extended. masks: whether the run has any; without, and
    with `train_grounding_encoder: none`, a LoRA run does not load SAM 2.

    Under ZeRO-3 this must come after `training` was built: the weights are then partitioned while they are loaded.
    """
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "bfloat16" if training.bf16 else "float32"
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if arguments.attn_implementation:
        options["attn_implementation"] = arguments.attn_implementation
    options |= quantization_options(arguments, training)
    if not masks and arguments.train_grounding_encoder == "none" and arguments.train_llm == "lora":
        options["grounding"] = False
    model = Sa2VAForConditionalGeneration.from_pretrained(arguments.model_name_or_path, **options)
    extend_vocabulary(model, tokens)
    for name, value in arguments.config_overrides().items():
        setattr(model.config, name, value)
    set_seed(
        training.seed
    )  # LoRA starts from the same numbers however the weights were loaded (ZeRO-3 uses other random numbers)
    model = make_trainable(model, arguments)
    if training.deepspeed_plugin is None:  # AdamW steps of 4e-5 vanish in bfloat16; DeepSpeed has its own copies
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    use_faster_kernels(model, training)
    return model


def make_trainable(
    model: Sa2VAForConditionalGeneration, arguments: ModelArguments
) -> Sa2VAForConditionalGeneration | PeftModel:
    """Freeze what is not trained; with `train_llm: lora` the returned model is wrapped by peft.

    Raises:
        ValueError: nothing is left to train, or no layer has the name of a LoRA target.
    """
    model.freeze_for_training(
        grounding=arguments.train_grounding_encoder, projector=arguments.train_projector, vision=arguments.train_vision
    )
    model.text_hidden_fcs.requires_grad_(arguments.train_text_hidden_fcs)
    model.trained_parts_are_set = True  # the trainer refuses a model without this mark that would train everything
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    if arguments.train_llm == "full":
        model.mllm.model.language_model.requires_grad_(True)
        embeddings[1].requires_grad_(True)
    if arguments.train_llm == "lora":
        for module in embeddings:
            module.requires_grad_(arguments.train_embeddings)
        return add_lora(model, arguments)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing is trained: set one of the `train_...` arguments")
    return model


def add_lora(model: Sa2VAForConditionalGeneration, arguments: ModelArguments) -> PeftModel:
    """LoRA on the language model's linear layers; every other trainable weight as a copy that is saved with it."""
    prefix = next(name for name, _ in model.named_modules() if name.endswith("language_model"))
    names = "|".join(re.escape(target) for target in arguments.lora_targets)
    # Anchored at the language model: the vision encoder and SAM 2 have layers of the same names.
    pattern = rf"{re.escape(prefix)}\..*\.(?:{names})"
    found = {name.rsplit(".")[-1] for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    missing = sorted(set(arguments.lora_targets) - found)
    if missing:
        linear = {
            name.rsplit(".")[-1]
            for name, module in model.get_submodule(prefix).named_modules()
            if isinstance(module, nn.Linear)
        }
        raise ValueError(
            f"`lora_targets`: no layer named {', '.join(missing)}; the model has {', '.join(sorted(linear))}"
        )
    config = lora_config(
        arguments,
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=pattern,
        modules_to_save=trained_modules(model) or None,
    )
    base = published_name(model.name_or_path) or ""  # None would make peft write the local path
    wrapped = get_peft_model(model, config)
    config.base_model_name_or_path = base
    model.name_or_path = model.config._name_or_path = base  # what peft writes into the adapter's README.md
    return wrapped


def lora_config(arguments: ModelArguments, **ours: Any) -> LoraConfig:
    """peft's config from our own arguments and `lora_options`.

    Raises:
        ValueError: an option that peft does not have, that an argument of ours sets, or that cannot be merged later.
    """
    options = arguments.lora_options or {}
    known = sorted(item.name for item in fields(LoraConfig))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"`lora_options`: peft's LoraConfig has no {listed(unknown)}; it has {', '.join(sorted(known))}"
        )
    if fixed := sorted(set(options) & {*ours, *_SET_BY_PEFT}):
        raise ValueError(f"`lora_options`: {listed(fixed)} cannot be set here; use `lora_rank`, `lora_alpha`, ...")
    start = str(options.get("init_lora_weights", True)).lower()
    if start.startswith(_NOT_REPEATABLE):
        raise ValueError(
            f"`lora_options`: init_lora_weights {start!r} changes the base weights at random or from data, which "
            "merging cannot repeat; use pissa, olora, or one that leaves them as they are"
        )
    if start in ("pissa", "olora") and is_deepspeed_zero3_enabled():
        raise ValueError(f"`lora_options`: init_lora_weights {start!r} needs whole weights: use ZeRO-2 or DDP")
    return LoraConfig(**({"bias": "none"} | options | ours))


def trained_modules(model: nn.Module) -> list[str]:
    """The largest modules whose weights are all trainable, by name; together they hold every trainable weight.

    peft copies whole modules. Frozen heads must not be copied along: it would train them. Containers are taken apart
    because they are indexed and unpacked, which a wrapped module cannot be. A bare parameter of a partly frozen
    module (SAM 2's `no_mem_embed`, with `train_grounding_encoder: all`) has no module of its own and stays frozen.
    """
    names: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        flags = [parameter.requires_grad for parameter in module.parameters()]
        container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if flags and all(flags) and not container:
            names.append(name)
        elif any(flags):
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return names


def mark_zero3_leaves(model: nn.Module) -> None:
    """Under ZeRO-3, gather the modules that not every rank runs alike as a whole, so that no rank waits for ever."""
    if not is_deepspeed_zero3_enabled():
        return
    from deepspeed.utils import set_z3_leaf_modules

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if leaves := base.zero3_leaf_modules():
        set_z3_leaf_modules(model, leaves)


def name_fsdp_units(model: nn.Module, plugin: Any) -> None:
    """Under FSDP2, cut only the language model's layers into units of their own (`plugin`: accelerate's).

    All ranks run these in every step. The vision encoder, SAM 2 and the heads are gathered once a step, with
    the whole: a rank whose batch has no image, or no masks, would not take part in gathering units of theirs.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = base.mllm.model.language_model.layers
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
