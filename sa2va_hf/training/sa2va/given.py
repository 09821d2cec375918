"""What a user gives to `Sa2VATrainer`, completed or refused before anything costly."""

from __future__ import annotations

import logging
from typing import Any

import datasets
from peft import PeftModel
from torch import nn

from ...arguments import Sa2VATrainingArguments
from ...data.collator import Sa2VACollator
from ...data.dataset.dataset import Sa2VADataset
from ...model.processing_sa2va import Sa2VAProcessor
from .scores import NAMES

logger = logging.getLogger(__name__)

WITH_MASKS = (2, 4)  # of `Sa2VADataset.modalities`
NEEDED = ("lengths", "modalities", "entry_indices")  # of a training dataset, by the sampler


def refuse_undecided(model: nn.Module | None) -> None:
    """Raises ValueError for a model as it was loaded, in which every weight would be trained."""
    if model is None or isinstance(model, PeftModel) or getattr(model, "trained_parts_are_set", False):
        return
    if all(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "`model`: every weight would be trained, SAM 2 and the vision encoder too. Choose first: model = "
            "sa2va_hf.training.sa2va.trainable.make_trainable(model, ModelArguments(...))"
        )


def processor_of(*given: Any) -> Sa2VAProcessor | None:
    """The processor that the first of the collator and the datasets has."""
    for one in given:
        one = getattr(one, "dataset", one)  # of a selection
        if getattr(one, "processor", None) is not None:
            return one.processor
    return None


def default_collator(processor: Sa2VAProcessor | None, classes: bool = False) -> Sa2VACollator:
    if processor is None:
        raise ValueError("`processing_class`: expected the model's Sa2VAProcessor, which makes the batches; got None")
    return Sa2VACollator(processor, classes=classes)


def as_dataset(given: Any, name: str, processor: Sa2VAProcessor | None, arguments: Sa2VATrainingArguments) -> Any:
    """A dataset of items from what was given as the argument `name`: itself, or Arrow rows, opened with our defaults.

    Raises:
        ValueError: it is neither, or rows are given without a processor.
    """
    training = name == "train_dataset"
    if isinstance(given, datasets.Dataset):
        if processor is None:
            raise ValueError(
                f"`processing_class`: expected the model's Sa2VAProcessor for the rows in `{name}`, got None"
            )
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        classes = training and arguments.contrastive_weight > 0
        return Sa2VADataset([(given, 1.0)], processor, seed=seed, train=training, classes=classes)
    if isinstance(given, dict):
        return {key: as_dataset(one, name, processor, arguments) for key, one in given.items()}
    missing = [method for method in NEEDED if training and given is not None and not hasattr(given, method)]
    if missing:
        raise ValueError(
            f"`{name}`: expected a Sa2VADataset, or the rows of a prepared dataset (datasets.load_from_disk), got "
            f"{type(given).__name__}, which lacks {', '.join(missing)}"
        )
    return given


def settle_metric(arguments: Sa2VATrainingArguments, eval_dataset: Any) -> None:
    """Let `metric_for_best_model` name a score that the evaluation data give.

    The default falls back to the loss where they have no masks. Of several evaluation datasets the first one decides.

    Raises:
        ValueError: the user named a metric that is none, or one of masks where there are none.
    """
    metric = arguments.metric_for_best_model
    if metric is None or eval_dataset is None:
        return
    first = next(iter(eval_dataset)) if isinstance(eval_dataset, dict) else None
    masks = _has_masks(eval_dataset if first is None else eval_dataset[first])
    if arguments.metric_is_default:
        chosen = metric if masks or metric == "loss" else "loss"
        if chosen != metric:
            logger.warning("no sample of `eval_data` has masks: the best checkpoint is the one of the lowest loss")
        arguments.metric_for_best_model = chosen if first is None else f"{first}_{chosen}"
        arguments.metric_is_default = False
        if arguments.greater_is_better is not None:
            arguments.greater_is_better = chosen != "loss"
        return
    name = metric.removeprefix("eval_").removeprefix(f"{first}_" if first else "")
    if name not in NAMES and name != "loss":
        raise ValueError(f"`metric_for_best_model`: expected loss or one of {', '.join(NAMES)}, got {metric!r}")
    if name in ("cIoU", "gIoU", "masks") and not masks:
        raise ValueError(f"`metric_for_best_model`: {metric} needs masks, no sample of `eval_data` has any; use loss")


def _has_masks(dataset: Any) -> bool:
    """Whether an item has masks; a dataset that does not say is taken to have some."""
    if not hasattr(dataset, "modalities"):
        return True
    return any(modality in WITH_MASKS for modality in set(dataset.modalities(0).tolist()))
