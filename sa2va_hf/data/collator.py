"""Examples of `Sa2VADataset` -> one padded batch. Tokens and pixels are made here, in the worker, by one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from sa2va_hf.model.configuration_sa2va import IGNORE_INDEX

NO_CLASS = "object"  # is embedded where no [SEG] of a batch has a class, and not used
OPTIONAL = ("ignore_labels", "mask_known", "box_labels")  # of an example, see `Sa2VADataset`


class Sa2VACollator:
    """Makes what `Sa2VAForConditionalGeneration.forward` takes, and `sample_ids`, the list of the samples' names.

    `mask_labels` is always there, a list with one bool tensor (num_seg, num_frames, H, W) per sample; those of
    `OPTIONAL` where some sample has them, with None for the others.

    join: no padding: the samples follow each other in one row, each with positions from 0, and none sees another. The
    losses are those of the padded batch. With `attn_implementation: flash_attention_2` it costs what its tokens cost;
    other attention builds a mask of the whole row.

    masks: False: without the pixels for SAM 2, in a run that has no masks.

    classes: also the names of the classes in the batch: `class_ids` and `class_mask` (C, T), a row per class (one at
    least, so that all ranks make the same calls), and lists: `class_index`, the row of each [SEG] or None, and
    `class_names`.

    Raises:
        ValueError: naming the sample that the processor refuses, or that has more than `max_length` tokens: nothing is
            cut off, since that could cut a [SEG] or a picture.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        join: bool = False,
        masks: bool = True,
        classes: bool = False,
    ):
        self.processor = processor
        self.classes = classes
        self.max_length = max_length
        self.join = join
        self.masks = masks

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = [example["sample_id"] for example in examples]
        batch = dict(self._encode(examples, names))
        if not self.masks:
            batch.pop("grounding_pixel_values", None)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for name, length in zip(names, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"sample {name!r} has {length} tokens, max_length is {self.max_length}: give the dataset the same "
                    "max_length and processor as the collator"
                )
        if self.join:
            batch |= _joined(batch, self.processor.seg_token_id)
        batch["mask_labels"] = [example["mask_labels"] for example in examples]
        for name in OPTIONAL:
            given: list[torch.Tensor | None] = [example.get(name) for example in examples]
            if any(labels is not None for labels in given):
                batch[name] = given
        if self.classes:
            batch |= self._classes([one for example in examples for one in example.get("seg_classes", [])])
        batch["sample_ids"] = names
        return batch

    def _classes(self, of_segs: list[str | None]) -> dict[str, Any]:
        known = sorted({one for one in of_segs if one is not None})
        rows = [torch.tensor(self.processor.tokenizer(phrase_of(one)).input_ids) for one in known or [NO_CLASS]]
        return {
            "class_ids": pad_sequence(rows, batch_first=True),
            "class_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "class_index": [None if one is None else known.index(one) for one in of_segs],
            "class_names": known,
        }

    def _encode(self, examples: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
        try:
            return self._apply([example["messages"] for example in examples])
        except (ValueError, TypeError, KeyError) as error:
            for name, example in zip(names, examples, strict=True):  # which of them is it?
                try:
                    self._apply([example["messages"]])
                except (ValueError, TypeError, KeyError) as single:
                    raise ValueError(f"sample {name!r}: {single}") from single
            raise ValueError(f"samples {list(names)}, only together: {error}") from error

    def _apply(self, messages: list[list[dict[str, Any]]]) -> Any:
        return self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=False,
            padding=True,
            return_labels=True,
        )


def phrase_of(category: str) -> str:
    """ "mug:handle" -> "handle of the mug"."""
    whole, _, part = category.partition(":")
    return f"{part} of the {whole}" if part else whole


def _joined(batch: dict[str, Any], seg_token_id: int) -> dict[str, torch.Tensor]:
    """The rows (B, L) without their padding as one row, what its positions are, and how many [SEG] each sample has."""
    real = batch["attention_mask"].bool()
    lengths = real.sum(dim=1)
    starts = lengths.cumsum(0) - lengths
    labels = batch["labels"][real]
    labels[starts] = IGNORE_INDEX  # what comes before is another sample
    return {
        "input_ids": batch["input_ids"][real].unsqueeze(0),
        "attention_mask": torch.ones(1, int(lengths.sum()), dtype=batch["attention_mask"].dtype),
        "labels": labels.unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()]).unsqueeze(0),
        "seg_counts": (batch["input_ids"] == seg_token_id).logical_and(real).sum(dim=1),
    }
