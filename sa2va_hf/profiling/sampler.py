"""The order of a training epoch: ours beside those that transformers has, on the same mixtures of lengths.

Padding and shares are counted, not timed: a step takes as long as the rank with the most tokens, padding included, so
"tokens/s" is the real tokens of the epoch over the padded tokens of the slowest ranks, relative to a random order.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import transformers
from transformers import trainer_pt_utils

from sa2va_hf.profiling.data import heavy_tailed, sampler_of, three_modalities, worst_share_of_a_tenth
from sa2va_hf.profiling.report import table

Order = list[np.ndarray]  # the samples of each micro-batch, those of the ranks in turn


@dataclass
class Mixture:
    """Lengths and modalities of all samples: int (count,) each; ranks, and samples per rank in a step."""

    lengths: np.ndarray
    modalities: np.ndarray
    ranks: int
    batch: int


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the markdown tables one by one."""
    lengths = heavy_tailed(arguments.samples)
    cases = {"three modalities": three_modalities(arguments.samples), "heavy tail": (lengths, np.zeros_like(lengths))}
    for name, (lengths, modalities) in cases.items():
        mixture = Mixture(lengths, modalities, arguments.ranks, arguments.batch)
        found = {title: _row(make, mixture) for title, make in orders().items()}
        random = next(iter(found.values()))[2]
        rows = [[title, *row[:2], row[2] / random, *row[3:]] for title, row in found.items()]
        shape = f"{arguments.samples:,} samples, {arguments.ranks} ranks of {arguments.batch}"
        yield f"### {name}, {shape}; transformers {transformers.__version__}\n\n" + table(COLUMNS, rows)


COLUMNS = [
    "order", "real tokens in a batch", "in a step of all ranks", "tokens/s, times random", "most samples in a batch",
    "batches of one modality", "worst share of a tenth", "independent of torch's global state", "seconds",
]  # fmt: skip


def orders() -> dict[str, Callable[[Mixture, int], Order]]:
    """Each order as a function of a mixture and the seed of torch at that time, as another run would have it."""
    found = {"random": _random, "group_by_length": _grouped}
    if hasattr(trainer_pt_utils, "BatchRebalanceSampler"):  # of newer versions than the lowest supported one
        found["batch_rebalance"] = _rebalanced
    return found | {"ours": _ours}


def _random(mixture: Mixture, seed: int) -> Order:
    # a RandomSampler, whose seed the Trainer draws and restores: the same after a resume
    return _cut(np.random.default_rng(0).permutation(len(mixture.lengths)), mixture)


def _grouped(mixture: Mixture, seed: int) -> Order:
    torch.manual_seed(seed)  # its generator is torch's global one, unless the caller gives one: the Trainer does not
    sampler = trainer_pt_utils.LengthGroupedSampler(mixture.batch, lengths=mixture.lengths.tolist())
    return _cut(np.array(list(sampler)), mixture)


def _rebalanced(mixture: Mixture, seed: int) -> Order:
    lengths, step = mixture.lengths.tolist(), mixture.batch * mixture.ranks
    make = partial(trainer_pt_utils.BatchRebalanceSampler, lengths, step, mixture.ranks, 1, seed=0)
    ranks = [list(make(rank=rank)) for rank in range(mixture.ranks)]
    return [np.array(batch) for step in zip(*ranks, strict=True) for batch in step]


def _ours(mixture: Mixture, seed: int) -> Order:
    order = sampler_of(mixture.lengths, mixture.modalities, batch_size=mixture.batch, world_size=mixture.ranks).order()
    return list(order.reshape(-1, mixture.batch))


def _cut(order: np.ndarray, mixture: Mixture) -> Order:
    """Micro-batches of whole steps."""
    whole = len(order) // (mixture.batch * mixture.ranks) * mixture.batch * mixture.ranks
    return list(order[:whole].reshape(-1, mixture.batch))


def _row(make: Callable[[Mixture, int], Order], mixture: Mixture) -> list[object]:
    start = time.perf_counter()
    order = make(mixture, 1)
    seconds = time.perf_counter() - start
    again = make(mixture, 2)
    lengths = [mixture.lengths[batch] for batch in order]
    real, longest, counts = (np.array([f(one) for one in lengths]) for f in (np.sum, np.max, len))
    padded = longest * counts
    slowest = padded.reshape(-1, mixture.ranks).max(axis=1).sum() * mixture.ranks
    alike = np.mean([len(np.unique(mixture.modalities[batch])) == 1 for batch in order])
    same = len(order) == len(again) and all(map(np.array_equal, order, again))
    share = worst_share_of_a_tenth(np.concatenate(order), mixture.modalities)
    efficiency = real.sum() / padded.sum(), real.sum() / slowest
    return [*(f"{value:.3f}" for value in efficiency), efficiency[1], int(counts.max()), f"{100 * alike:.0f} %",
            f"{share:.4f}", "yes" if same else "no", seconds]  # fmt: skip
