"""A LoRA run's adapter folded into its base: one model folder that `from_pretrained` loads without peft."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from .card import model_card
from .zero import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_zero_checkpoint, read_json

logger = logging.getLogger(__name__)


def merge(
    checkpoint: Path, output: Path, *, base: str | None = None, dtype: str = "auto"
) -> Sa2VAForConditionalGeneration:
    """Write the merged model, its processor and a model card to `output`; returns the model.

    Args:
        checkpoint: a run's output folder, one of its checkpoint-N, or what zero_to_fp32.py made of one.
        base: the model that was fine-tuned; default: the one that the adapter names.
        dtype: of the language model's weights; "auto": the base's. The sum itself is always float32.

    Errors: ValueError saying what the folder is and what to do when it holds no adapter, or one of another base.
    """
    check_adapter(checkpoint)
    base = base or read_json(checkpoint / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{checkpoint / ADAPTER_CONFIG} names no base model: give it with --base")
    logger.info("base: %s", base)
    model, kept = load_base(base)
    wrapped = PeftModel.from_pretrained(model, str(checkpoint))
    _check_names(wrapped, checkpoint)
    merged = wrapped.merge_and_unload(safe_merge=True)
    dtype = kept if dtype == "auto" else getattr(torch, dtype)
    merged.mllm.to(dtype)  # SAM 2 and text_hidden_fcs stay float32, as `from_pretrained` keeps them
    merged.save_pretrained(output)
    Sa2VAProcessor.from_pretrained(_processor_folder(checkpoint, base)).save_pretrained(output)
    (output / "README.md").write_text(model_card(base, checkpoint), encoding="utf-8")
    return merged


def check_adapter(checkpoint: Path) -> None:
    """Errors: ValueError telling apart the folders that are no adapter."""
    if (checkpoint / ADAPTER_CONFIG).is_file() and (checkpoint / ADAPTER_WEIGHTS).is_file():
        return
    if is_zero_checkpoint(checkpoint):
        raise ValueError(
            f"{checkpoint} holds DeepSpeed shards and no gathered adapter: first run "
            f"python scripts/zero_to_fp32.py {checkpoint} FOLDER, then merge that FOLDER"
        )
    if (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is a whole model, not an adapter: there is nothing to merge, load it as it is")
    found = sorted(path.parent.name for path in checkpoint.glob(f"checkpoint-*/{ADAPTER_CONFIG}"))
    hint = f"; did you mean one of {', '.join(found)} in it?" if found else ""
    raise ValueError(f"{checkpoint}: no {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}{hint}")


def load_base(base: str) -> tuple[Sa2VAForConditionalGeneration, torch.dtype]:
    """The base in float32, and the type its language model is stored in."""
    stored = Sa2VAForConditionalGeneration.config_class.from_pretrained(base).dtype or torch.float32
    return Sa2VAForConditionalGeneration.from_pretrained(base, dtype=torch.float32), stored


def _check_names(wrapped: PeftModel, checkpoint: Path) -> None:
    """peft loads what fits and warns about the rest; an adapter that fits in part is of another model."""
    with safe_open(checkpoint / ADAPTER_WEIGHTS, "pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    problems = [
        f"{what}: {', '.join(sorted(names)[:8])}"
        for what, names in (("missing", expected - saved), ("unexpected", saved - expected))
        if names
    ]
    if problems:
        raise ValueError(f"{checkpoint / ADAPTER_WEIGHTS} does not fit the base model; " + "; ".join(problems))


def _processor_folder(checkpoint: Path, base: str) -> str:
    return str(checkpoint) if (checkpoint / "processor_config.json").is_file() else base


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a model folder to the Hub (or to HF_ENDPOINT); returns its address. The token is the logged-in one."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Merged Sa2VA model"))
