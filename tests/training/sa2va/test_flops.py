"""Operations of a step: what torch counts when it runs, but for what is left out on purpose.

Run: pytest tests/training/sa2va/test_flops.py
"""

import pytest
from examples import KINDS, batch
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from sa2va_hf.arguments import ModelArguments
from sa2va_hf.training.sa2va.flops import StepFlops, peak_flops
from sa2va_hf.training.sa2va.trainable import make_trainable


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("train_llm", ["lora", "full"])
@pytest.mark.parametrize("kinds", [KINDS, ("text", "text"), ("clip", "image")], ids=["mixed", "text", "masks"])
def test_it_is_about_what_torch_counts(kinds, train_llm):
    model = tiny_model(num_points=0)
    model.set_attn_implementation("eager")  # whose products torch counts one by one
    trained = make_trainable(model, ModelArguments("m", train_llm=train_llm, lora_rank=2)).train()
    inputs = batch(kinds, True)
    flops = StepFlops(model).count(inputs)
    seen = counted(lambda: trained(**inputs, return_logits=False).loss.backward())
    # joined samples attend to the whole row here, and gradients of frozen weights' inputs stop at the embeddings
    assert 0.75 < flops / seen < 1.1


def test_more_of_anything_costs_more_and_padding_nothing():
    model = tiny_model(num_points=0).requires_grad_(False)
    count = StepFlops(model).count
    assert count(batch(KINDS, True)) == pytest.approx(count(batch(KINDS, False)), rel=1e-12)
    assert count(batch(("image", "image"), False)) == pytest.approx(2 * count(batch(("image",), False)), rel=0.01)
    assert (
        count(batch(("clip",), False))
        > count(batch(("image",), False))
        > count(batch(("image without masks",), False))
    )
    frozen = count(batch(("text",), False))
    model.mllm.requires_grad_(True)
    assert StepFlops(model).count(batch(("text",), False)) == pytest.approx(1.5 * frozen)


def test_peaks_of_known_devices():
    assert peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("cpu") is None
