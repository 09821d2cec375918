"""Our order wastes no more than the length-grouped sampler of the reference, on its lists and in all its settings.

Run: SA2VA_TEST_DATA=... pytest tests/data/test_golden_sampler.py
(The folder beside the samples, golden/refs, holds the lists as formulas, and the numbers; without it this is skipped.)
"""

import importlib.util
import json

import numpy as np
import pytest

from sa2va_hf.data.sampler import Sa2VASampler
from sa2va_hf.profiling.data import rank_correlation, worst_share_of_a_tenth

SLACK = 0.005
CASES = [(name, world, batch, accumulation)
         for name in ("uniform_20k", "heavy_50k", "modality_30k")
         for world in (1, 8) for batch in (4, 8, 16) for accumulation in (1, 8)]  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data.parent / "golden/refs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    spec = importlib.util.spec_from_file_location("formulas", folder / "formulas.py")
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    content = json.loads((folder / "G_sampler.json").read_text())
    return formulas, content["seed"], content["lists"]


@pytest.fixture(scope="module")
def lists(golden):
    """name -> (lengths, modalities)"""
    formulas, seed, _ = golden
    heavy = np.exp(1.2 * formulas.draw("G.heavy", (50_000,), seed).astype(np.float64))
    share, noise = formulas.uniform("G.mod", (30_000,), seed), formulas.draw("G.modz", (30_000,), seed)
    modality = np.where(share < 0.5, 0, np.where(share < 0.85, 1, 2))
    noise = noise.astype(np.float64)
    by_modality = [np.clip(180 * np.exp(0.7 * noise), 10, 2048), 1800 + 260 * noise, 1500 + 90 * noise]
    return {
        "uniform_20k": (formulas.integers("G.uniform", (20_000,), 20, 2049, seed), np.zeros(20_000, int)),
        "heavy_50k": (np.clip(np.floor(60 * heavy), 8, 8192).astype(int), np.zeros(50_000, int)),
        "modality_30k": (np.floor(np.choose(modality, by_modality)).astype(int), modality),
    }


def test_the_lists_are_the_references(golden, lists):
    for name, (lengths, _) in lists.items():
        assert (lengths.sum(), lengths.max()) == (golden[2][name]["true_sum"], golden[2][name]["true_max"]), name


@pytest.mark.parametrize(("name", "world", "batch", "accumulation"), CASES)
def test_as_little_is_padding_as_in_the_reference(golden, lists, name, world, batch, accumulation):
    lengths, modalities = lists[name]
    options = {"batch_size": batch, "world_size": world, "accumulation": accumulation}
    sampler = Sa2VASampler(lambda epoch: lengths, lambda epoch: modalities, **options)
    (theirs,) = [
        result
        for result in golden[2][name]["results"]
        if (result["world"], result["batch"], result["accumulation"]) == (world, batch, accumulation)
    ]
    own, together = sampler.padding_efficiency(), sampler.padding_efficiency(across_ranks=True)
    assert own >= theirs["efficiency_per_rank_batch"] - SLACK
    assert together >= theirs["efficiency_global_step"] - SLACK
    if (world, batch, accumulation) == (8, 8, 1) and name != "uniform_20k":
        assert own >= 0.97 and together >= 0.95


@pytest.mark.parametrize("name", ["uniform_20k", "heavy_50k", "modality_30k"])
def test_the_order_stays_shuffled(lists, name):
    lengths, modalities = lists[name]
    sampler = Sa2VASampler(lambda epoch: lengths, lambda epoch: modalities, batch_size=8, world_size=8)
    order = sampler.order()
    steps = lengths[order].reshape(sampler.num_batches, -1).mean(axis=1)
    assert abs(rank_correlation(steps, np.arange(len(steps)))) < 0.05
    tolerance = max(0.01, 64 / (len(order) / 10))  # a tenth of an epoch holds whole global batches
    assert worst_share_of_a_tenth(order, modalities) <= tolerance
    assert set(order.tolist()) == set(range(len(lengths)))  # the reference never draws the tail
