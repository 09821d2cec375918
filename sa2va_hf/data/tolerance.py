"""Samples that cannot be used at training time: skipped and reported, never replaced by others.

In the loading processes nothing can be counted for the whole run: what was skipped travels with the batch, as
`batch["rejects"]`, a list of {"id", "reason"}.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sa2va_hf.data.schema import Reject

REJECTS = "rejects"


class TolerantDataset(Dataset):
    """A training dataset in which an item that raises ValueError is a `Reject` instead."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | Reject:
        try:
            return self.dataset[index]
        except ValueError as error:
            return Reject(self.dataset.sample_id(index), str(error))

    def lengths(self, epoch: int) -> np.ndarray:
        return self.dataset.lengths(epoch)

    def modalities(self, epoch: int) -> np.ndarray:
        return self.dataset.modalities(epoch)

    def entry_indices(self, epoch: int) -> np.ndarray:
        return self.dataset.entry_indices(epoch)


class TolerantCollator:
    """A collator that makes its batch of the examples that can be used, with the others in `rejects`.

    Where none is left the batch has nothing but `rejects`: another sample in its place would count twice.

    Raises:
        ValueError: examples that can be used one by one, but not together.
    """

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, examples: Sequence[dict[str, Any] | Reject]) -> dict[str, Any]:
        rejects = [example for example in examples if isinstance(example, Reject)]
        usable = [example for example in examples if not isinstance(example, Reject)]
        batch = self._collate(usable, rejects)
        if batch is None:
            batch = {}
        if rejects:
            batch[REJECTS] = [{"id": reject.id, "reason": reject.reason} for reject in rejects]
        return batch

    def _collate(self, examples: list[dict[str, Any]], rejects: list[Reject]) -> dict[str, Any] | None:
        if not examples:
            return None
        try:
            return self.collator(examples)
        except ValueError:
            usable, found = [], []
            for example in examples:  # which of them is it?
                try:
                    self.collator([example])
                    usable.append(example)
                except ValueError as error:
                    found.append(Reject(str(example["sample_id"]), str(error)))
            if not found:  # only together: that is no sample's fault
                raise
            rejects += found
            return self._collate(usable, rejects)
