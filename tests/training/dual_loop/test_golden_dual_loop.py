"""The dual loop's pure parts against the numbers of the original program.

Run: SA2VA_TEST_DATA=... pytest tests/training/dual_loop/test_golden_dual_loop.py
"""

import json

import numpy as np
import pytest
import torch
from golden import systems
from torch import nn

from sa2va_hf.training.dual_loop.captions import caption_loss, corrupt, denoising_loss, straight_through
from sa2va_hf.training.dual_loop.regions import region_cells
from sa2va_hf.training.dual_loop.schedule import interleave
from sa2va_hf.training.dual_loop.surgery import combine
from sa2va_hf.training.ema import Ema

STRAIGHT = ("plain", "k_is_vocab", "k1", "cold", "hot", "float64", "chunk3", "chunk0_all", "edge_uniforms")
CORRUPTIONS = (
    "quarter",
    "no_forbidden",
    "many_forbidden",
    "all_but_one_forbidden",
    "ratio_zero",
    "ratio_one",
    "pad_only_row_included",
)
SURGERIES = (
    "plain",
    "plain_no_clip",
    "conflict",
    "same_direction",
    "beta_0",
    "beta_1",
    "g1_zero",
    "parameters_only_in_one_loss",
    "accumulate_2",
    "accumulate_3_large",
    "bf16",
)
GRIDS = ("64", "256", "100_not_divisible", "rect_48x80", "8_smaller_than_grid")


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = systems(shared_data)
    with np.load(folder / "I_dual_loop.npz") as arrays:
        return json.loads((folder / "I_dual_loop.json").read_text()), dict(arrays)


def named(rows, name):
    return next(row for row in rows if row["name"] == name)


def close(value, expected, relative):
    """Within `relative` of the expected tensor's largest entry."""
    expected = torch.as_tensor(expected)
    bound = relative * max(float(expected.abs().max()), 1e-30)
    assert float((value.to(expected.dtype) - expected).abs().max()) <= bound


@pytest.mark.parametrize("name", [*STRAIGHT, "large_k_512"])
def test_straight_through_embeddings_and_their_gradients(golden, name):
    case, arrays = named(golden[0]["straight_through"], name), golden[1]
    of = {key: torch.from_numpy(arrays[f"st.{name}.{key}"]) for key in ("logits", "uniform", "E", "upstream")}
    logits, table = of["logits"].requires_grad_(), of["E"].requires_grad_()
    embedded, picked = straight_through(
        logits, table, k=case["k"], tau=case["tau"], uniform=of["uniform"], chunk=case["chunk"]
    )
    embedded.backward(of["upstream"].to(embedded.dtype))
    # float64 logits with a float32 table: the table's gradient is float32
    tolerance = 1e-12 if case["dtype"] == "float64" else 2e-5
    assert picked.tolist() == arrays[f"st.{name}.picked_token"].tolist()
    close(embedded.detach(), arrays[f"st.{name}.text_embeds"], 1e-6)
    close(logits.grad, arrays[f"st.{name}.grad_logits"], tolerance)
    close(table.grad, arrays[f"st.{name}.grad_E"], 2e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_tokens(golden, name):
    case = named(golden[0]["corruption"], name)
    rounds = iter([np.ravel(case["first_random_tokens"]), *case["redraws"]])
    result = corrupt(
        torch.tensor(case["tokens"]),
        case["mask_ratio"],
        pad=case["pad"],
        forbidden=case["forbidden"] or (),
        uniform=torch.tensor(case["uniform"]),
        sample=lambda count: torch.tensor(next(rounds)),
        keep_forbidden=True,
    )
    assert result.tolist() == case["result"]


def test_the_average_of_weights(golden):
    for case in golden[0]["ema"]["updates"]:
        model = nn.Module()
        for key in ("a", "b"):
            model.register_parameter(key, nn.Parameter(torch.tensor(case["initial"][key])))
        average = Ema(model, case["decay"])
        for step in case["steps"]:
            with torch.no_grad():
                model.a.copy_(torch.tensor(step["student_a"]))
                model.b.copy_(torch.tensor(step["student_b"]))
            average.update(model)
            for key in ("a", "b"):
                torch.testing.assert_close(
                    average.averages[key], torch.tensor(step[f"ema_{key}"]), rtol=1e-6, atol=1e-6
                )


@pytest.mark.parametrize("name", SURGERIES)
def test_gradient_surgery(golden, name):
    case = named(golden[0]["gradient_surgery"], name)
    dtype, steps = getattr(torch, case["dtype"]), case["grad_accum_steps"]
    tolerance = 5e-3 if case["dtype"] == "bfloat16" else 1e-6
    total = None
    for first, second, logged in zip(case["g1"], case["g2"], case["logged"], strict=True):
        gradients = [
            {
                str(index): torch.tensor(value, dtype=dtype)
                for index, value in enumerate(values)
                if index not in case[f"only_in_loss{other}"]
            }
            for values, other in ((first, 2), (second, 1))
        ]
        combined, overlap = combine(*gradients, beta=case["beta"])
        sizes = overlap.norm1 * overlap.norm2  # of the products that the dot sums up, which may cancel
        assert overlap.dot == pytest.approx(logged["dot_g1_g2"], abs=tolerance * max(sizes, 1))
        assert overlap.norm1 == pytest.approx(logged["g1_norm"], rel=tolerance)
        assert overlap.norm2 == pytest.approx(logged["g2_norm"], rel=tolerance)
        assert overlap.coefficient == pytest.approx(logged["coeff"], rel=tolerance, abs=tolerance)
        assert overlap.cosine == pytest.approx(logged["cos_g1_g2"], rel=tolerance, abs=tolerance)
        share = {key: value.float() / steps for key, value in combined.items()}
        total = share if total is None else {key: total[key] + share[key] for key in total}
    for index, expected in enumerate(case["accumulated"]):
        close(total[str(index)], torch.tensor(expected), tolerance)


def test_supervised_batches_are_spread_evenly(golden):
    for case in golden[0]["schedule"]["orders"]:
        order = interleave(case["pseudo_batches"], case["supervised_batches"])
        assert "".join("r" if supervised else "p" for supervised in order) == case["order"]


@pytest.mark.parametrize("name", GRIDS)
def test_cells_of_predicted_masks(golden, name):
    arrays = golden[1]
    logits = torch.from_numpy(arrays[f"grid.{name}.logits"].astype(np.float32)).squeeze(1)
    expected = np.unpackbits(arrays[f"grid.{name}.active"], count=len(logits) * 256).reshape(-1, 16, 16)
    assert np.array_equal(region_cells(logits, at_least_one=False).numpy(), expected.astype(bool))
    filled = region_cells(logits)
    assert filled.flatten(1).any(1).all()
    some = expected.reshape(len(logits), -1).any(1)
    assert np.array_equal(filled[some].numpy(), expected[some].astype(bool))


def test_caption_loss_with_and_without_its_padding(golden):
    study, arrays = golden[0]["caption_loss_bigram"], golden[1]
    table, weights = (torch.from_numpy(arrays[f"bigram.{key}"]) for key in ("E", "W"))

    def logits_after(last_prompt_token, captions):
        before = torch.cat([torch.full_like(captions[:, :1], last_prompt_token), captions[:, :-1]], 1)
        return table[before] @ weights.T

    for row in study["rows"]:
        captions = torch.tensor(row["caption_token_ids"])
        logits = logits_after(row["last_prompt_token_id"], captions)
        assert float(caption_loss(logits, captions, row["pad_id"], count_padding=True)) == pytest.approx(
            row["loss"], rel=2e-6
        )
        real = captions != row["pad_id"]
        alone = torch.nn.functional.cross_entropy(logits[real], captions[real])
        assert float(caption_loss(logits, captions, row["pad_id"])) == pytest.approx(float(alone), rel=1e-6)


def test_one_whole_step(golden):
    """Corrupted captions -> logits -> straight-through embeddings -> a linear mask loss, and denoising beside it."""
    cases, arrays = golden[0]["generation2_step"], golden[1]
    tokens, table = torch.from_numpy(arrays["step.tokens"]).long(), torch.from_numpy(arrays["step.E"])
    weights = torch.from_numpy(arrays["step.mask_loss_weights"])
    for index, case in enumerate(cases):
        logits = torch.from_numpy(arrays["step.logits"].copy()).requires_grad_()
        uniform = torch.from_numpy(arrays[f"step.{index}.uniform"])
        corrupted = torch.from_numpy(arrays[f"step.{index}.masked_tokens"]).long()
        embedded, _ = straight_through(logits, table, k=case["topk"], tau=case["tau"], uniform=uniform)
        total = (embedded * weights).sum() + case["pseudo_llm_loss_weight"] * case["answer_lm_loss"]
        if case["masked_lm_loss_weight"]:
            denoising = denoising_loss(logits, tokens, corrupted, case["pad"])
            assert float(denoising) == pytest.approx(case["masked_lm_loss"], rel=1e-5)
            total = total + case["masked_lm_loss_weight"] * denoising
        assert total.item() == pytest.approx(case["total_loss"], rel=1e-5)
        total.backward()
        close(logits.grad, arrays[f"step.{index}.grad_logits"], 2e-5)
