"""Samples joined into one row, and logits only where they are asked for: the same losses, the same gradients.

Run: pytest tests/model/test_joined.py
"""

import pytest
import torch
from examples import KINDS, batch, example
from tiny import loud, tiny_model, tiny_processor

from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.model import modeling_sa2va
from sa2va_hf.model.losses import answer_cross_entropy


def learn(model, inputs, **options):
    model.zero_grad()
    output = model(**inputs, **options)
    output.loss.backward()
    return output, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def trained(attention="sdpa", backbone="internvl"):
    """A model whose vision part is frozen and whose language model is trained whole."""
    model = loud(tiny_model(num_points=0, backbone=backbone)).train()
    model.set_attn_implementation(attention)
    model.freeze_for_training()
    model.mllm.model.language_model.requires_grad_(True)
    return model


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return trained(request.param)


def check_joined(model, kinds, backbone="internvl"):
    (padded, expected), (joined, found) = (learn(model, batch(kinds, join, backbone)) for join in (False, True))
    for name in ("loss", "lm_loss", "mask_loss", "dice_loss"):
        torch.testing.assert_close(getattr(joined, name), getattr(padded, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined.seg_embeddings, padded.seg_embeddings, rtol=1e-4, atol=1e-5)
    assert expected.keys() == found.keys() and len(found) > 20
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-4 * scale + 1e-7, msg=name)


@pytest.mark.parametrize("kinds", [KINDS, ("text", "text", "text"), ("clip", "image")], ids=["mixed", "text", "masks"])
def test_joined_samples_have_the_losses_and_gradients_of_a_padded_batch(model, kinds):
    check_joined(model, kinds)


QWEN_KINDS = tuple(kind for kind in KINDS if kind != "region")


@pytest.mark.parametrize("kinds", [QWEN_KINDS, ("text", "text", "text")], ids=["mixed", "text"])
@pytest.mark.parametrize("backbone", ["qwen2_5_vl", "qwen3_vl"])
def test_so_have_those_whose_tokens_have_rows_and_columns(backbone, kinds):
    check_joined(trained(backbone=backbone), kinds, backbone)


@pytest.mark.parametrize("backbone", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_a_sample_does_not_see_the_one_before_it(backbone):
    model = trained(backbone=backbone)
    alone = model(**batch(["image"], True, backbone))
    second = example("image", 0)
    for before in ("text", "clip", "two objects"):
        inputs = Sa2VACollator(tiny_processor(backbone), join=True)([example(before, 7), second])
        inputs.pop("sample_ids")
        length = alone.logits.shape[1]
        torch.testing.assert_close(model(**inputs).logits[:, -length:], alone.logits, rtol=1e-4, atol=1e-4)


def test_nothing_is_padding_in_a_joined_batch():
    padded, joined = batch(KINDS, False), batch(KINDS, True)
    assert joined["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    assert joined["attention_mask"].all() and joined["seg_counts"].tolist() == [1, 0, 1, 1, 0, 2]
    lengths = padded["attention_mask"].sum(1).tolist()
    assert joined["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]
    assert int((joined["labels"] != -100).sum()) == int((padded["labels"] != -100).sum())


@pytest.mark.parametrize("chunk", [3, 1000])
def test_the_loss_without_logits_is_the_same(model, chunk, monkeypatch):
    monkeypatch.setattr(modeling_sa2va, "LOGITS_CHUNK", chunk)
    heads = []
    hook = model.mllm.lm_head.register_forward_hook(lambda _, args, __: heads.append(args[0].shape[0]))
    inputs = batch(KINDS, False)
    full, expected = learn(model, inputs)
    heads.clear()
    lean, found = learn(model, inputs, return_logits=False)
    hook.remove()
    asked = int((inputs["labels"][:, 1:] != -100).sum())
    assert lean.logits is None and max(heads) <= chunk
    assert sum(heads) == (asked if chunk >= asked else 2 * asked)  # once more in the backward pass
    torch.testing.assert_close(lean.loss, full.loss, rtol=1e-6, atol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_no_label_is_no_loss():
    hidden = torch.randn(2, 5, 4, requires_grad=True)
    loss = answer_cross_entropy(hidden, torch.full((2, 5), -100), torch.nn.Linear(4, 7))
    loss.backward()
    assert loss == 0 and (hidden.grad == 0).all()
