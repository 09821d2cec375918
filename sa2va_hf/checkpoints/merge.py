"""A LoRA run's adapter folded into its base: one model folder that `from_pretrained` loads without peft."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from ..listings import listed
from ..model.configuration_sa2va import bundled
from ..model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..model.processing_sa2va import Sa2VAProcessor
from .card import facts_of_run
from .files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAIN_CONFIG, read_json, read_settings
from .hub import export
from .names import published_name
from .vocabulary import extend_vocabulary
from .zero import is_zero_checkpoint

logger = logging.getLogger(__name__)


def merge(
    checkpoint: Path | str,
    output: Path | str,
    *,
    base: str | None = None,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
) -> Sa2VAForConditionalGeneration:
    """Write the merged model, its processor, its code and a model card to `output`.

    Args:
        checkpoint: a run's output folder, one of its checkpoint-N, or what zero_to_fp32.py made of one.
        base: the model that was fine-tuned; default: the one that the adapter or the run's train_config.yaml names.
        dtype: of the language model's weights; "auto": the base's. The sum itself is always float32.
        max_shard_size: larger models are written in several files, with an index.

    Returns:
        The merged model.

    Raises:
        ValueError: the folder holds no adapter, an adapter of another base, or weights that are not finite; the
            message says what the folder is and what to do.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_adapter(checkpoint)
    base = find_base(checkpoint, base)
    _check_finite(checkpoint / ADAPTER_WEIGHTS)
    logger.info("base: %s", base)
    model, kept = load_base(base)
    processor = Sa2VAProcessor.from_pretrained(_processor_folder(checkpoint, base))
    extend_vocabulary(model, len(processor.tokenizer))
    wrapped = PeftModel.from_pretrained(model, str(checkpoint))
    _check_names(wrapped, checkpoint)
    merged = wrapped.merge_and_unload(safe_merge=True)
    dtype = kept if dtype == "auto" else getattr(torch, dtype)
    merged.mllm.to(dtype)  # SAM 2 and text_hidden_fcs stay float32, as `from_pretrained` keeps them
    merged.save_pretrained(output, max_shard_size=max_shard_size)
    processor.save_pretrained(output)
    export(output, facts_of_run(checkpoint, base))
    return merged


def find_base(checkpoint: Path | str, base: str | None = None) -> str:
    """The base model of an adapter: as given, as the adapter names it (a Hub id), or as its run was started with.

    Raises:
        ValueError: none of them names one, or the folder that the run was started with is not there any more.
    """
    checkpoint = Path(checkpoint)
    if base:
        return base
    if named := read_json(checkpoint / ADAPTER_CONFIG).get("base_model_name_or_path"):
        return named
    if named := read_settings(checkpoint, TRAIN_CONFIG).get("model_name_or_path"):
        if Path(bundled(named)).is_dir() or published_name(named):
            return named
        raise ValueError(f"{checkpoint}: its base model {named} is not there: give its folder with --base")
    raise ValueError(
        f"{checkpoint / ADAPTER_CONFIG} names no base model, and neither does a {TRAIN_CONFIG} beside or above it: "
        "give the base with --base"
    )


def _check_finite(path: Path) -> None:
    """Refuse weights that are not finite.

    Raises:
        ValueError: naming the tensors.
    """
    with safe_open(path, "pt") as file:
        broken = [name for name in file.keys() if not bool(torch.isfinite(file.get_tensor(name)).all())]  # noqa: SIM118
    if broken:
        raise ValueError(
            f"{path}: not finite: {listed(broken)}; the run had diverged when this was saved: merge an earlier "
            "checkpoint-N, or train again with a lower learning rate"
        )


def check_adapter(checkpoint: Path | str) -> None:
    """Refuse a folder that is no adapter.

    Raises:
        ValueError: saying what the folder is and what to do.
    """
    checkpoint = Path(checkpoint)
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
    hint = f"; did you mean one of {listed(found)} in it?" if found else ""
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
        f"{what}: {listed(sorted(names))}"
        for what, names in (("missing", expected - saved), ("unexpected", saved - expected))
        if names
    ]
    if problems:
        raise ValueError(f"{checkpoint / ADAPTER_WEIGHTS} does not fit the base model; " + "; ".join(problems))


def _processor_folder(checkpoint: Path, base: str) -> str:
    return str(checkpoint) if (checkpoint / "processor_config.json").is_file() else base
