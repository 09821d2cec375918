"""Faster: the same numbers and names, and clear errors where they cannot work."""

import sys
from types import ModuleType

import pytest
import torch
from tiny import tiny_model, tiny_processor
from torch import nn
from toy_run import ToyDataset

from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.training.sa2va.speed import compile_layers, use_faster_kernels
from sa2va_hf.training.sa2va.trainable import make_trainable


def learned(model: nn.Module, batches: list[dict]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of batches and the gradients of their sum."""
    losses = []
    for batch in batches:
        torch.manual_seed(0)  # the points at which masks are compared
        loss = model(**{name: value for name, value in batch.items() if name != "sample_ids"}).loss
        loss.backward()
        losses.append(loss.item())
    return losses, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.slow
def test_compiled_layers_learn_the_same():
    """Also where activations are computed again. aot_eager: the program is taken down and differentiated as for any
    backend, and runs in torch's own kernels."""
    data = ToyDataset(tiny_processor())
    collate = Sa2VACollator(data.processor)
    batches = [collate([data[index] for index in rows]) for rows in ([1, 2], [3, 0])]
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = make_trainable(tiny_model(num_points=0), ModelArguments("tiny", lora_rank=2, lora_dropout=0.0)).train()
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        names = list(model.state_dict())
        if compiled:
            compile_layers(model.get_base_model(), backend="aot_eager")
            assert list(model.state_dict()) == names
        results.append(learned(model, batches))
    (losses, gradients), (compiled_losses, compiled_gradients) = results
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert gradients.keys() == compiled_gradients.keys()
    for name, gradient in gradients.items():
        distance = (compiled_gradients[name] - gradient).norm()
        assert distance <= 1e-3 * gradient.norm() + 1e-6, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"


def test_liger_gets_the_language_model_and_leaves_the_loss_to_us(monkeypatch, tmp_path):
    given = []
    module = ModuleType("liger_kernel.transformers")
    module._apply_liger_kernel_to_instance = lambda model, **options: given.append((model, options))
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr("sa2va_hf.training.sa2va.speed.find_spec", lambda name: name)
    monkeypatch.setattr(Sa2VATrainingArguments, "device", torch.device("cuda"))
    training = Sa2VATrainingArguments(str(tmp_path), use_liger_kernel=True, liger_kernel_config={"rope": False})
    model = tiny_model()
    use_faster_kernels(model, training)
    chosen = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert given == [(model.mllm.model.language_model, chosen)]


def test_liger_on_a_cpu_or_not_installed_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="`use_liger_kernel`: its kernels need a GPU"):
        Sa2VATrainingArguments(str(tmp_path), use_liger_kernel=True)
    monkeypatch.setattr(Sa2VATrainingArguments, "device", torch.device("cuda"))
    training = Sa2VATrainingArguments(str(tmp_path), use_liger_kernel=True)
    monkeypatch.setattr("sa2va_hf.training.sa2va.speed.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install liger-kernel"):
        use_faster_kernels(tiny_model(), training)


def test_trainers_own_compilation_is_pointed_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="`torch_compile`: must stay False.*`compile_layers`"):
        Sa2VATrainingArguments(str(tmp_path), torch_compile=True)
